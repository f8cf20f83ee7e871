"""Greedy exchange: single moves and swaps of two, judged by the true predicted cost, until no move lowers the loss.

The repair and polish after a knapsack whose costs were linearised (Kellerer, Pferschy and Pisinger 2004, section 11.6).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automc.pricing import Pricing
from automc.space import Codes

from .knapsack import Knapsack

__all__ = ["Exchange"]

Array = NDArray[np.float64]
_ROUNDS = 80
_SWAPS = 128
_GAIN = 1e-9
_SLACK = 0.01
"""How far outside, as if costs added, a swap may be and still be priced."""


class Exchange:
    """Improves codes under a (choices,) loss and a target usage."""

    def __init__(self, pricing: Pricing, knapsack: Knapsack) -> None:
        self._pricing = pricing
        self._knapsack = knapsack

    def improve(self, row: Codes, loss: Array, target: float) -> Codes | None:
        """(domains,) codes whose every usage is at most `target`, none better by one move or a promising swap.

        None where repair gets stuck outside the target.
        """
        for _ in range(_ROUNDS):
            step = self._step(row, loss, target)
            if step is None:
                break
            row = step
        return row if self._pricing.priced_around(row)[2].max() <= target else None

    def _step(self, row: Codes, loss: Array, target: float) -> Codes | None:
        moves, used, usage = self._pricing.priced_around(row)
        if not len(moves):
            return None
        change = self._knapsack.at(loss, moves).sum(axis=1) - self._knapsack.at(loss, row).sum()
        if usage.max() > target:
            return _repair(moves, used, change, usage, target)
        single = np.where(used.max(axis=1) <= target, change, np.inf)
        best = int(np.argmin(single))
        if single[best] < -_GAIN:
            step: Codes = moves[best]
            return step
        return self._swap(row, usage, moves, used - usage, change, target)

    def _swap(self, row: Codes, usage: Array, moves: Codes, delta: Array, change: Array, target: float) -> Codes | None:
        """The best pair of moves, shortlisted as if their costs added and then priced together."""
        gains, pays = np.flatnonzero(change < -_GAIN), np.flatnonzero((delta < 0.0).any(axis=1))
        total = change[gains][:, None] + change[pays][None]
        fits = (usage + delta[gains][:, None] + delta[pays][None] <= target + _SLACK).all(axis=2)
        value = np.where(fits, total, np.inf).ravel()
        short = np.argsort(value, kind="stable")[:_SWAPS]
        short = short[value[short] < -_GAIN]
        first, second = gains[short // max(len(pays), 1)], pays[short % max(len(pays), 1)]
        pairs = moves[first] + moves[second] - row
        apart = (moves[first] != row).argmax(axis=1) != (moves[second] != row).argmax(axis=1)
        pairs = pairs[apart]
        if not len(pairs):
            return None
        used = self._pricing.usage(pairs)
        inside = pairs[used.max(axis=1) <= target]
        return inside[0] if len(inside) else None


def _repair(moves: Codes, used: Array, change: Array, usage: Array, target: float) -> Codes | None:
    """The move that takes most excess off per loss added; None where none takes any off."""
    excess = np.maximum(usage - target, 0.0).sum()
    relief = excess - np.maximum(used - target, 0.0).sum(axis=1)
    worth = np.where(relief > 1e-12, relief / np.maximum(change, 1e-9), -np.inf)
    best = int(np.argmax(worth))
    return moves[best] if np.isfinite(worth[best]) else None
