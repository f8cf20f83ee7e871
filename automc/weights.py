"""The tensors of a compressed model as safetensors, and back into a model of the same policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import safetensors
import safetensors.torch
from torch import Tensor, nn

from automc.errors import InputError

__all__ = ["adopt", "pack", "unpack"]


def pack(model: nn.Module) -> bytes:
    """All parameters and buffers of a model, by name."""
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors)


def unpack(model: nn.Module, data: bytes) -> nn.Module:
    """Put into `model`, in place, what `pack` made of a model of the same policy.

    Raises:
        InputError: it is of another model, or damaged.
    """
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"The weights are damaged ({error}).", remedy="Run the search again.") from error
    _refuse_difference(model.state_dict(), tensors)
    return _put(model, tensors)


def adopt(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` with these parameters and buffers, by name."""
    return _put(copy.deepcopy(model), tensors)


def _put(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    for name, tensor in tensors.items():
        place, _, last = name.rpartition(".")
        owner = model.get_submodule(place)
        if last in owner._buffers:
            owner._buffers[last] = tensor
        else:  # training gives a bias to layers that had none
            owner.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    return model


def _refuse_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if name not in found or found[name].shape != tensor.shape:
            has = tuple(found[name].shape) if name in found else "missing"
            raise InputError(
                f"The weights are of another model: {name} is {has}, not {tuple(tensor.shape)}.",
                remedy="Run the search again.",
            )
    extra = [name for name in found if name not in expected and name.rpartition(".")[2] != "bias"]
    if extra:
        raise InputError(f"The weights are of another model: it has no {extra[0]}.", remedy="Run the search again.")
