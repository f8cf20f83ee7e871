"""Turning the scales of rounded layers into parameters for training with learned step sizes, and back. See `steps`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from automc.compression.quantize import Quantized

__all__ = ["fix_steps", "learn_steps"]

_SMALLEST = 1e-9


def learn_steps(model: nn.Module) -> list[nn.Parameter]:
    """Make the scales of all evenly spaced grids of a model parameters, in place, and return them.

    Code books and binary weights have no step; they keep their straight-through gradients.
    """
    found = []
    for module in model.modules():
        if isinstance(module, Quantized):
            names = (["weight_scale"] if module.is_even else []) + (["scale"] if module.rounds_input else [])
            found += [_swap(module, name, nn.Parameter(getattr(module, name).detach().clone())) for name in names]
    return [step for step in found if isinstance(step, nn.Parameter)]


def fix_steps(model: nn.Module) -> None:
    """Make the scales constants again, in place, with the weights on the grid that they span."""
    for module in model.modules():
        if isinstance(module, Quantized):
            for name in ("weight_scale", "scale"):
                if name in module._parameters:
                    _swap(module, name, getattr(module, name).detach().clone().clamp_min(_SMALLEST))
            module.requantize()


def _swap(module: nn.Module, name: str, value: Tensor) -> Tensor:
    delattr(module, name)
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, torch.as_tensor(value))
    return value
