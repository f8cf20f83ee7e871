"""Setting single weights to zero and letting the others make up for them.

SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1): columns are visited in order; in each block of them the
weights with the least w^2 / [H^-1]_cc^2 go, H being the covariance of what the layer reads, and the error of each removal is
spread over the columns still to come (Optimal Brain Surgeon; "OBC", arXiv 2208.11580). Each output is solved for itself.

n:m sparsity keeps n of every m consecutive inputs (Mishra et al. 2021, arXiv 2104.08378). Hardware multiplies along the
input channels at one kernel position, so in a convolution the groups are m consecutive channels of one tap. A last group of
fewer than m channels keeps at most n of them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from automc.compression.obs import DAMPING
from automc.errors import InputError
from automc.policy import Sparsify

__all__ = ["UNSTRUCTURED", "n_of_m", "sparsify"]

UNSTRUCTURED = "unstructured"
_BLOCK = 128
"""Columns whose mask is chosen together, as in SparseGPT."""


def sparsify(weight: Tensor, spec: Sparsify, covariance: Tensor | None = None, *, taps: int = 1) -> Tensor:
    """`weight` (outputs, features) with only the weights that `spec` keeps, corrected for those that are gone.

    Unstructured masks keep round(density x weights), spread over outputs and blocks of columns as the data ask for. The bias must still
    take over the mean of the difference: add (weight - result) @ mean of the input.

    Args:
        covariance: (features, features) of the input; (features,) its diagonal, which picks by w^2 C_cc and corrects nothing;
            None picks by magnitude.
        taps: kernel positions; features are ordered as in PyTorch, channel by channel, the taps of each together.

    Raises:
        InputError: the density is not in (0, 1], or is not n / m of an n:m pattern.
    """
    order = _by_tap(weight.shape[1], taps)
    found = torch.empty_like(weight)
    if covariance is not None and covariance.dim() == 2:
        found[:, order] = _compensated(weight[:, order], spec, covariance[order][:, order], taps)
    else:
        importance = weight.square() if covariance is None else weight.square() * covariance
        chosen = _Chooser(spec, weight.shape, taps)
        blocks = [chosen.mask(importance[:, order][:, start:stop], start) for start, stop in chosen.blocks()]
        found[:, order] = torch.where(torch.cat(blocks, 1), weight[:, order], 0.0)
    return found


def n_of_m(spec: Sparsify) -> tuple[int, int] | None:
    """(n, m) of an n:m pattern, None where `spec` is unstructured.

    Raises:
        InputError: the pattern is neither, or the density does not belong to it.
    """
    if not 0.0 < spec.density <= 1.0:
        raise InputError(f"A density of {spec.density} keeps nothing or more than all.", remedy="Give one in (0, 1].")
    if spec.pattern == UNSTRUCTURED:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", spec.pattern)
    n, m = (int(number) for number in found.groups()) if found else (0, 0)
    if not 0 < n < m:
        raise InputError(
            f"There is no sparsity pattern {spec.pattern!r}.", remedy="Use 'unstructured' or n:m, as in 2:4."
        )
    if not math.isclose(spec.density, n / m):
        raise InputError(f"The pattern {spec.pattern} has density {n / m:g}, not {spec.density:g}.")
    return n, m


@dataclass
class _Chooser:
    """Which weights stay, block of columns after block.

    Attributes:
        shape: (outputs, features) of the whole weight, features tap by tap.
    """

    spec: Sparsify
    shape: tuple[int, ...]
    taps: int

    def __post_init__(self) -> None:
        self.pattern = n_of_m(self.spec)

    def blocks(self) -> list[tuple[int, int]]:
        """(first, end) of the columns whose mask is chosen together."""
        features = self.shape[1]
        if self.pattern is None:
            return [(start, min(start + _BLOCK, features)) for start in range(0, features, _BLOCK)]
        channels, m = features // self.taps, self.pattern[1]
        starts = [tap * channels + channel for tap in range(self.taps) for channel in range(0, channels, m)]
        return list(zip(starts, [*starts[1:], features], strict=True))

    def mask(self, importance: Tensor, start: int) -> Tensor:
        """(outputs, columns) whether each weight of the block that begins at column `start` stays."""
        outputs, columns = importance.shape
        if self.pattern is None:
            kept = self._kept(start + columns) - self._kept(start)
            flat = torch.zeros(outputs * columns, dtype=torch.bool)
            flat[importance.flatten().topk(kept).indices] = True
            return flat.view(outputs, columns)
        best = importance.topk(min(self.pattern[0], columns), dim=1).indices
        return torch.zeros_like(importance, dtype=torch.bool).scatter(1, best, True)

    def _kept(self, columns: int) -> int:
        """How many weights of the first `columns` columns stay, so that rounding does not add up over blocks."""
        return round(self.spec.density * self.shape[0] * columns)


def _compensated(weight: Tensor, spec: Sparsify, covariance: Tensor, taps: int) -> Tensor:
    """Algorithm 1 of SparseGPT, columns and covariance tap by tap."""
    weight, chosen = weight.clone(), _Chooser(spec, weight.shape, taps)
    root = _inverse_root(covariance)
    for start, stop in chosen.blocks():
        importance = weight[:, start:stop].square() / root.diagonal()[start:stop].square()
        mask = chosen.mask(importance, start)
        errors = torch.zeros(len(weight), stop - start)
        for column in range(start, stop):
            gone = torch.where(mask[:, column - start], 0.0, weight[:, column])
            errors[:, column - start] = gone / root[column, column]
            weight[:, column:stop] -= errors[:, column - start, None] * root[column, column:stop]
        weight[:, stop:] -= errors @ root[start:stop, stop:]
        weight[:, start:stop] = torch.where(mask, weight[:, start:stop], 0.0)
    return weight


def _inverse_root(covariance: Tensor) -> Tensor:
    """Upper U with U^T U the inverse of the damped covariance: U^-1 is its Cholesky factor taken from the end."""
    ridge = DAMPING * float(covariance.diagonal().mean()) + 1e-8
    damped = covariance + ridge * torch.eye(len(covariance))
    backwards = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(backwards, torch.eye(len(covariance)), upper=True)


def _by_tap(features: int, taps: int) -> Tensor:
    """Feature numbers tap by tap, the channels of each in order."""
    return torch.arange(features).view(-1, taps).T.flatten()
