"""Grids of few values for weights, and the scales that lose least.

A scale per output, or per group of features, is searched between a tenth of the one that covers the largest weight and that one: at few
bits cutting off the largest weights costs less than coarse steps do. The error of a weight counts as much as its input varies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from automc.compression.storage import group_count
from automc.policy import Quantize

__all__ = ["Grid", "uniform_grid"]

_SHRINK = torch.linspace(1.0, 0.1, 37).tolist()
_UNUSED_SCALE = 1e-6
"""Of rows without weights: integer biases are multiples of it."""


@dataclass(frozen=True)
class Grid:
    """The values that weights may take: scale * (code - zero), or an entry of a code book.

    Attributes:
        scale: (outputs, groups).
        zero: (outputs, groups) whole numbers, as floats.
        book: (entries,) ascending values in place of scales; codes are indices.
    """

    spec: Quantize
    scale: Tensor
    zero: Tensor
    book: Tensor | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest code of an evenly spaced grid; a binary one has nothing between them."""
        if self.spec.codes == "binary":
            return -1, 1
        last = 2 ** (self.spec.weight_bits - 1) - 1
        return (-last, last) if self.spec.symmetric else (0, 2**self.spec.weight_bits - 1)

    def encode(self, values: Tensor, columns: Tensor) -> Tensor:
        """(outputs, columns) codes of the nearest grid values, as floats; `columns` are the features that `values` belong to."""
        if self.book is not None:
            return torch.bucketize(values, (self.book[1:] + self.book[:-1]) / 2).to(values.dtype)
        if self.spec.codes == "binary":
            return torch.where(values >= 0, 1.0, -1.0)
        scale, zero = self._at(columns)
        return (values / scale).add_(zero).round_().clamp_(*self.limits)

    def decode(self, codes: Tensor, columns: Tensor) -> Tensor:
        """(outputs, columns) what the codes stand for."""
        if self.book is not None:
            return self.book[codes.long()]
        scale, zero = self._at(columns)
        return (codes - zero) * scale

    def nearest(self, values: Tensor) -> Tensor:
        """(outputs, features) `values` moved to the grid."""
        columns = torch.arange(values.shape[1])
        return self.decode(self.encode(values, columns), columns)

    def _at(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        if self.spec.group_size == 0:
            return self.scale, self.zero
        groups = columns // self.spec.group_size
        return self.scale[:, groups], self.zero[:, groups]


def uniform_grid(weight: Tensor, spec: Quantize, importance: Tensor) -> Grid:
    """The evenly spaced grid of `spec` with the least error of each output (and group), summed with `importance` (features,)."""
    rows, features = weight.shape
    groups = group_count(spec, features)
    size = spec.group_size or features
    padding = (0, groups * size - features)
    grouped = F.pad(weight, padding).reshape(rows * groups, size)
    share = F.pad(importance, padding).reshape(groups, size).repeat(rows, 1)
    scale, zero = _search(grouped, replace(spec, group_size=0), share)
    return Grid(spec, scale.reshape(rows, groups), zero.reshape(rows, groups))


def _search(weight: Tensor, spec: Quantize, share: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, 1) the best scale and zero point of each row."""
    best, least = _covering(weight, spec, 1.0), torch.full((len(weight), 1), torch.inf)
    columns = torch.arange(weight.shape[1])
    for shrink in _SHRINK:
        grid = _covering(weight, spec, shrink)
        rounded = grid.decode(grid.encode(weight, columns), columns)
        error = rounded.sub_(weight).square_().mul_(share).sum(1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        scale, zero = torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero)
        best = Grid(spec, scale, zero)
    return best.scale, best.zero


def _covering(weight: Tensor, spec: Quantize, shrink: float) -> Grid:
    """The grid whose ends are those of each row's weights (and zero) times `shrink`."""
    low, high = weight.amin(1, keepdim=True).clamp_max(0), weight.amax(1, keepdim=True).clamp_min(0)
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    grid = Grid(spec, high, torch.zeros_like(high))
    first, last = grid.limits
    scale = (high - low) * (shrink / (last - first))
    scale = torch.where(scale > 0, scale, _UNUSED_SCALE)
    zero = grid.zero if spec.symmetric else (-low * shrink / scale).round()
    return Grid(spec, scale, zero)
