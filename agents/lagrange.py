"""Many knapsacks at once: the Lagrangian relaxation of the multiple-choice knapsack, bisected on its multiplier.

Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers": for a multiplier m every domain takes the
choice of least loss + m x usage by itself, so thousands of programmes are one array operation. Rougher than branch and bound,
and the way to many different good answers in milliseconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automc.space import Codes

from .knapsack import Knapsack

__all__ = ["relaxed"]

Array = NDArray[np.float64]
_STEPS = 16
_SPAN = 30.0
"""The multiplier is sought within e^+-15 of the typical loss per usage."""


def relaxed(knapsack: Knapsack, loss: Array, usage: Array, room: Array) -> Codes:
    """(count, domains) codes, each of least loss among those whose summed usage is about `room` or less.

    Args:
        loss: (count, choices) loss of each choice in each programme.
        usage: (count, choices) change in usage that each choice makes.
        room: (count,) what those changes may sum to.
    """
    losses, usages = _padded(knapsack, loss, np.inf), _padded(knapsack, usage, 0.0)
    typical = np.abs(loss).mean(axis=1) / np.maximum(np.abs(usage).mean(axis=1), 1e-12)
    middle = np.log(np.maximum(typical, 1e-12))
    low, high = middle - _SPAN / 2, middle + _SPAN / 2
    for _ in range(_STEPS):
        half = (low + high) / 2
        fits = _used(usages, _chosen(losses, usages, half)) <= room
        low, high = np.where(fits, low, half), np.where(fits, half, high)
    return _chosen(losses, usages, high)


def _padded(knapsack: Knapsack, flat: Array, fill: float) -> Array:
    """(count, domains, most choices) from (count, choices)."""
    shape = (len(flat), len(knapsack.cardinalities), int(max(knapsack.cardinalities, default=0)))
    padded = np.full(shape, fill)
    padded[:, knapsack.domain, np.arange(flat.shape[1]) - knapsack.first[knapsack.domain]] = flat
    return padded


def _chosen(losses: Array, usages: Array, multiplier: Array) -> Codes:
    return (losses + np.exp(multiplier)[:, None, None] * usages).argmin(axis=2)


def _used(usages: Array, codes: Codes) -> Array:
    """(count,) summed usage of (count, domains) codes."""
    used: Array = np.take_along_axis(usages, codes[:, :, None], axis=2)[:, :, 0].sum(axis=1)
    return used
