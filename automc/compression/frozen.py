"""Small modules as plain data and back: what a file of layer variants holds. Nothing in such a file is executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from automc.compression.grid import Grid
from automc.compression.quantize import Quantized
from automc.compression.rounding import Rounded
from automc.errors import InputError
from automc.policy import Quantize

__all__ = ["freeze", "is_freezable", "thaw"]

_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_LINEAR = ("in_features", "out_features")


def is_freezable(module: nn.Module) -> bool:
    """Whether `freeze` knows every part of `module`."""
    if isinstance(module, nn.Sequential):
        return all(is_freezable(part) for part in module)
    return type(module) in (nn.Conv2d, nn.Linear) or (isinstance(module, Quantized) and is_freezable(module.inner))


def freeze(module: nn.Module) -> dict[str, Any]:
    """The structure of a module as JSON values; its tensors are its state dict.

    Raises:
        TypeError: a part is of a class that is not known here.
    """
    if isinstance(module, nn.Sequential):
        return {"class": "Sequential", "parts": [freeze(part) for part in module]}
    if isinstance(module, Quantized):
        return {
            "class": "Quantized",
            "spec": module.spec.to_json(),
            "rounds_input": module.rounds_input,
            "scales": list(module.weight_scale.shape),
            "book": module.book.numel(),
            "inner": freeze(module.inner),
        }
    fields = {nn.Conv2d: _CONV, nn.Linear: _LINEAR}.get(type(module))
    if fields is None:
        raise TypeError(f"{type(module).__name__} cannot be frozen")
    values = {name: getattr(module, name) for name in fields}
    return {"class": type(module).__name__, "bias": module.bias is not None, **values}


def thaw(structure: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """The module that `freeze` described, in eval mode, with the tensors whose names begin with `prefix`.

    Raises:
        InputError: a class that is not known, or tensors that do not fit.
    """
    state = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        module = _skeleton(structure)
        module.load_state_dict(state, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"A stored layer cannot be read: {error}.") from error
    return module.eval().requires_grad_(False)


def _skeleton(structure: Mapping[str, Any]) -> nn.Module:
    kind, fields = structure["class"], {k: _tuples(v) for k, v in structure.items() if k != "class"}
    if kind == "Sequential":
        return nn.Sequential(*(_skeleton(part) for part in structure["parts"]))
    if kind == "Quantized":
        inner = _skeleton(structure["inner"])
        assert isinstance(inner, (nn.Conv2d, nn.Linear))
        spec, scales = Quantize(**structure["spec"]), torch.empty(structure["scales"], device="meta")
        book = torch.empty(structure["book"], device="meta") if structure["book"] else None
        weight = inner.requires_grad_(False).weight.flatten(1)
        module = Quantized(inner, spec, Rounded(weight, weight, Grid(spec, scales, scales, book)))
        module.rounds_input = structure["rounds_input"]
        return module
    return {"Conv2d": nn.Conv2d, "Linear": nn.Linear}[kind](**fields, device="meta")


def _tuples(value: Any) -> Any:
    """JSON has lists where modules want tuples."""
    return tuple(value) if isinstance(value, list) else value
