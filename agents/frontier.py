"""Frontier: what lies one change away from what was proposed; where an agent turns when its own ideas run out.

Breadth-first over the policies inside the budget, in the order in which they were first seen. Every policy inside that single
changes connect with a seen one is reached, so an agent that falls back on it ends only when the space is exhausted.
"""

from __future__ import annotations

import numpy as np

from automc.pricing import Pricing
from automc.space import Codes

from .ledger import Ledger

__all__ = ["Frontier"]


class Frontier:
    """New rows inside the budget next to the rows of a ledger; the smallest policy is where it begins."""

    def __init__(self, pricing: Pricing, ledger: Ledger, rng: np.random.Generator) -> None:
        self._pricing = pricing
        self._ledger = ledger
        self._rng = rng
        self._opened = 0
        self._queue: list[Codes] = []

    def next(self) -> Codes | None:
        """(domains,) a row neither proposed nor told, or None when the budget holds no more."""
        smallest = self._pricing.smallest
        if self._ledger.is_new(smallest):
            return smallest
        while True:
            while self._queue:
                row = self._queue.pop()
                if self._ledger.is_new(row):
                    return row
            if self._opened == len(self._ledger.rows):
                return None
            self._open(self._ledger.rows[self._opened])
            self._opened += 1

    def _open(self, row: Codes) -> None:
        moves = self._rng.permutation(self._pricing.around(row))
        if len(moves):
            self._queue.extend(moves[self._pricing.holds(moves)])
