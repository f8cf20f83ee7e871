"""Rounding with learned step sizes (LSQ; Esser et al. 2020, arXiv 1902.08153)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["on_grid", "stepped"]


def on_grid(values: Tensor, scale: Tensor | float, zero: Tensor | int, first: int, last: int) -> Tensor:
    """`values` on one grid, scale * (code - zero); gradients reach `scale` where it asks for them."""
    if isinstance(scale, Tensor) and isinstance(zero, Tensor):
        if scale.requires_grad:
            return stepped(values, scale, zero, first, last)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, first, last)
    return torch.fake_quantize_per_tensor_affine(values, float(scale), int(zero), first, last)


def stepped(values: Tensor, step: Tensor, zero: Tensor, first: int, last: int) -> Tensor:
    """`values` on the grid step * (code - zero), first <= code <= last; gradients reach both `values` and `step`.

    Straight-through rounding inside a plain expression gives the gradients of the paper: of values 1 inside the grid and 0 outside
    (eq. 5), of steps round(v / s) - v / s inside and the end of the grid outside (eq. 3).

    Args:
        step, zero: that `values` can be divided by; each value of `step` is shared by `values.numel() / step.numel()` values.
    """
    shared = values.numel() / step.numel()
    share = 1.0 / math.sqrt(shared * max(1, last))  # the gradient scale g of section 2.2
    step = (step * share + (step - step * share).detach()).clamp_min(1e-9)
    code = (values / step + zero).clamp(first, last)
    return (code + (code.round() - code).detach() - zero) * step
