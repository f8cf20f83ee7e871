"""The model to compress, from what the user typed, with its weights, in evaluation mode."""

from __future__ import annotations

import difflib
import hashlib
import pickle
import re
import textwrap
from collections.abc import Container, Mapping
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from automc.errors import InputError, MissingError, UnknownNameError
from automc.evaluate.functions import call, is_function, load_function

__all__ = ["KINDS", "apply_weights", "load_model", "model_digest", "read_weights"]

KINDS = ("demo", "file.py:function", "package.module:function", "torchvision:NAME", "timm:NAME")
_NESTED = ("state_dict", "model", "weights", "model_state_dict", "state_dict_ema")
_NAMES = 3
"""So many names of a file are enough to see what it was saved from."""


def load_model(spec: str | None, weights: Path | None = None, classes: int | None = None) -> nn.Module:
    """The model that `demo` (None), `file.py:function`, `package.module:function`, `torchvision:NAME` or `timm:NAME` names.

    Args:
        weights: a .safetensors file or a torch file of tensors; without it, the weights the model comes with, which
            torchvision and timm download.
        classes: outputs of a torchvision or timm model; None leaves what it comes with.

    Raises:
        UnknownNameError: no such kind, or no model of that name; carries the closest match.
        InputError: the function does not return a model, or the weights do not fit.
        MissingError: torchvision or timm is not installed, or its weights cannot be downloaded.
    """
    kind, _, name = (spec or "demo").partition(":")
    if kind == "demo" and not name:
        from automc.demo import model as demo

        model: Any = demo.load() if weights is None else demo.build()
    elif kind in ("torchvision", "timm"):
        model = _from_zoo(kind, name, pretrained=weights is None, classes=classes)
    elif spec is not None and is_function(spec):
        model = _from_function(spec)
    else:
        raise UnknownNameError("model", spec or "", KINDS)
    if weights is not None:
        apply_weights(model, weights)
    return model.eval()


def apply_weights(model: nn.Module, path: Path) -> None:
    """Load weights into a model; all of them must fit, batch counters of batch norms and tied weights given by one name excepted.

    A prefix that all names share, such as `module.` of data-parallel training, goes where more of them fit without it.

    Raises:
        InputError: not a tensor file, or a key is missing, unexpected or of another shape: the first in the model's order.
    """
    expected = model.state_dict()
    given = _without_prefix(read_weights(path), expected)
    held = {
        tensor.untyped_storage().data_ptr() for name, tensor in expected.items() if name in given and _is_whole(tensor)
    }
    for name, tensor in expected.items():
        if (name in given and given[name].shape == tensor.shape) or name.endswith("num_batches_tracked"):
            continue
        if name not in given and tensor.numel() and tensor.untyped_storage().data_ptr() in held:
            continue
        has = f"{_shape(given[name])} in the file" if name in given else "missing from the file"
        raise InputError(
            f"The weights in {path} do not fit: {name} is {_shape(tensor)} in the model, {has}.", remedy=_advice(given)
        )
    extra = [name for name in given if name not in expected]
    if extra:
        raise InputError(
            f"The weights in {path} do not fit: the model has no {extra[0]} ({_shape(given[extra[0]])}).",
            remedy=_advice(given),
        )
    model.load_state_dict(given, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Parameter name -> tensor, from a .safetensors file or a torch file that holds nothing but tensors.

    A torch file may nest them under state_dict, model or weights, or under any other key if it is the only one that holds tensors.

    Raises:
        InputError: no such file, not a file of tensors, or one of several models. Nothing in it is ever executed.
    """
    if not path.is_file():
        raise InputError(f"There is no weights file {path}.", remedy="Check the path after --weights.")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for name in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    nested = [key for key, value in found.items() if _are_tensors(value)] if isinstance(found, Mapping) else []
    if len(nested) > 1:
        raise InputError(
            f"{path} holds several models: {', '.join(map(str, nested))}.",
            remedy=f"Save one alone: torch.save(torch.load(file)[{nested[0]!r}], new_file).",
        )
    found = found[nested[0]] if nested else found
    if not _are_tensors(found):
        raise InputError(f"{path} holds no named tensors.", remedy="Save it with torch.save(model.state_dict(), file).")
    return {str(name): value for name, value in found.items()}


def model_digest(model: nn.Module) -> str:
    """Sixteen hex digits of the model's class and of the name, type, shape and bytes of each weight and buffer."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _are_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _advice(given: Mapping[str, Tensor]) -> str:
    """What to do where names or shapes do not fit, and the first names, as the file has them but for a prefix."""
    return (
        f"Give the weights of this very architecture; the first names of these are {', '.join(list(given)[:_NAMES])}."
    )


def _without_prefix(given: Mapping[str, Tensor], expected: Container[str]) -> dict[str, Tensor]:
    """The tensors without the shared prefix that leaves most names expected: the shortest such, none where that is as good."""
    places = zip(*(name.split(".")[:-1] for name in given), strict=False)
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, places)]
    prefixes = ["".join(f"{part}." for part in shared[:count]) for count in range(len(shared) + 1)]
    best = max(prefixes, key=lambda prefix: sum(name.removeprefix(prefix) in expected for name in given))
    return {name.removeprefix(best): tensor for name, tensor in given.items()}


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of its memory, so that loading it loads every tensor that shares it."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _from_function(spec: str) -> nn.Module:
    function = load_function(spec)
    model = function if isinstance(function, nn.Module) else call(function, spec)
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned {type(model).__name__}, not a model.", remedy="Return a torch.nn.Module.")
    return model


def _from_zoo(kind: str, name: str, *, pretrained: bool, classes: int | None) -> nn.Module:
    try:
        zoo = import_module("torchvision.models" if kind == "torchvision" else "timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise MissingError(
            f"{kind}:{name} needs {kind}: {error}.", remedy="Install it: pip install 'automc[vision]'"
        ) from error
    known = zoo.list_models()
    if name not in known:
        raise UnknownNameError(
            f"{kind} model", name, difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known[:5]
        )
    outputs = {} if classes is None else {"num_classes": classes}
    try:
        if kind == "torchvision":
            model = zoo.get_model(name, weights="DEFAULT" if pretrained else None, **outputs)
        else:
            model = zoo.create_model(name, pretrained=pretrained, **outputs)
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingError(
            f"The weights of {kind}:{name} could not be had: {error}.", remedy="Give a file of them with --weights."
        ) from error
    return model


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a safetensors file ({error}).", remedy="Write it with safetensors.torch."
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        whole = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if whole is not None:
            raise InputError(
                f"{path} is not a file of tensors alone: it pickles {whole[1]}, as torch.save(model) does with a whole module, and loading "
                "that would execute what is in the file.",
                remedy="Save its state_dict: torch.save(model.state_dict(), file).",
            ) from error
        raise InputError(
            f"{path} is not a file of tensors ({_reason(error)}).",
            remedy="Save it with torch.save(model.state_dict(), file), or as .safetensors.",
        ) from error


def _reason(error: Exception) -> str:
    """What torch says of a file it does not read, without its advice to read it all the same."""
    said = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    first = (said.strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(first.partition(". ")[0].rstrip("."), 120, placeholder=" ...")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
