"""Factors as layers, and back to the one weight that they amount to.

A chain of convolutions without biases in between, of which along each axis only one is wider than 1, is one convolution: zeros padded
around a channel map are zeros of any linear map of it, so padding, stride and dilation may stay with the factor that has the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn

from automc.factors import Factor

__all__ = ["assemble", "join", "reading", "weights_of"]

T = TypeVar("T", nn.Conv2d, nn.Linear)


def assemble(
    layer: nn.Conv2d | nn.Linear, shapes: Sequence[Factor], weights: Sequence[Tensor], bias: Tensor | None
) -> nn.Sequential:
    """The layers of `weights`, each (outputs, inputs or 1, height, width); the last one carries the bias."""
    biases = [*[None] * (len(weights) - 1), bias]
    if isinstance(layer, nn.Linear):
        return nn.Sequential(*(_linear(w.flatten(1), b) for w, b in zip(weights, biases, strict=True)))
    parts = [_conv(layer, shape, w, b) for shape, w, b in zip(shapes, weights, biases, strict=True)]
    return nn.Sequential(*parts)


def weights_of(factors: nn.Sequential) -> list[Tensor]:
    """The weight of each factor, (outputs, inputs or 1, height, width)."""
    weights = [part.weight.detach() for part in factors if isinstance(part, (nn.Conv2d, nn.Linear))]
    return [weight if weight.dim() == 4 else weight[:, :, None, None] for weight in weights]


def join(weights: Sequence[Tensor]) -> Tensor:
    """(outputs, inputs, height, width) the product of weights that are applied one after the other."""
    joined = weights[0]
    for weight in weights[1:]:
        depthwise = weight.shape[1] != len(joined)
        pattern = "mxhw,mcij->mchiwj" if depthwise else "omhw,mcij->ochiwj"
        taps = (weight.shape[2] * joined.shape[2], weight.shape[3] * joined.shape[3])
        joined = torch.einsum(pattern, weight, joined).reshape(len(weight), joined.shape[1], *taps)
    return joined


def reading(weights: Sequence[Tensor], index: int) -> list[Tensor]:
    """Matrices that map the layer's input columns to the columns that factor `index` reads.

    (features read, features of the layer) each. One where this factor reads all the taps that are left; otherwise one per tap that a later
    factor chooses among.
    """
    total, kernel = join(weights).shape[1:], weights[index].shape[2:]
    channels = int(total[0])
    before = join(weights[:index]) if index else torch.eye(channels)[:, :, None, None]
    have = before.shape[2:]
    later = [total[1 + axis] // (have[axis] * kernel[axis]) for axis in (0, 1)]
    found = []
    for top, left in product(range(later[0]), range(later[1])):
        matrix = torch.zeros(len(before), *kernel, *total, dtype=before.dtype)
        for row, column in product(range(kernel[0]), range(kernel[1])):
            rows, columns = slice(top + row, top + row + have[0]), slice(left + column, left + column + have[1])
            matrix[:, row, column, :, rows, columns] = before
        found.append(matrix.reshape(len(before) * kernel[0] * kernel[1], -1))
    return found


def _conv(layer: nn.Conv2d, shape: Factor, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution with the layer's geometry along the axes of the factor's kernel."""
    axes = (shape.rows, shape.columns)

    def along(values: tuple[int, ...], otherwise: int) -> tuple[int, int]:
        return (values[0] if axes[0] else otherwise, values[1] if axes[1] else otherwise)

    padding = layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0)
    conv = nn.Conv2d(
        shape.inputs, shape.outputs, (weight.shape[2], weight.shape[3]), along(layer.stride, 1),
        padding if any(axes) else 0, along(layer.dilation, 1), shape.outputs if shape.depthwise else 1,
        bias is not None, layer.padding_mode, device="meta",
    )  # fmt: skip
    return _filled(conv, weight, bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta"), weight, bias)


def _filled(layer: T, weight: Tensor, bias: Tensor | None) -> T:
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
