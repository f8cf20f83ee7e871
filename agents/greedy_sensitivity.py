"""Greedy on sensitivities: the move that takes most off the usage per loss added, again and again, until the budget holds.

Layer-wise sensitivity analysis is how pruning ratios are set by hand (Li et al. 2017, "Pruning Filters for Efficient ConvNets", 1608.08710,
section 3.2); the rule is the greedy one of the multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, section 11.2). A baseline: it
learns nothing from the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from automc.policy import Policy
from automc.pricing import Pricing
from automc.protocols import Problem
from automc.space import Codes
from automc.trial import Trial

from .frontier import Frontier
from .knapsack import Knapsack
from .ledger import Ledger
from .sensitivities import single_losses

__all__ = ["GreedySensitivity"]

_LEAST_LOSS = 1e-9


class GreedySensitivity:
    """Walks from dense into the budget, proposes where it arrives and every step beyond, then what lies next to those.

    Deterministic on its walk; `seed` orders what lies next to it.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._pricing = Pricing(problem)
        self._ledger = Ledger(problem.space)
        self._frontier = Frontier(self._pricing, self._ledger, np.random.default_rng(seed))
        self._knapsack = Knapsack(problem.space.cardinalities)
        self._loss = single_losses(problem, "greedy-sensitivity")
        self._walk = self._inside()

    def ask(self, count: int) -> Sequence[Policy]:
        """The next `count` policies of the walk that hold the budget, then those one change away from any of them."""
        return self._ledger.fill(count, self._new)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Note what needs no proposing again; nothing is learned."""
        self._ledger.record(trials)

    def _new(self) -> Codes | None:
        fresh = self._ledger.first_new(self._walk)
        return self._frontier.next() if fresh is None else fresh

    def _inside(self) -> Iterator[Codes]:
        """The rows of the walk that hold the budget, the least compressed first; the smallest policy closes it."""
        row: Codes | None = self._pricing.space.dense
        while row is not None:
            if self._pricing.holds(row[None])[0]:
                yield row
            row = self._step(row)
        yield self._pricing.smallest

    def _step(self, row: Codes) -> Codes | None:
        """The best of the single changes that take something off the usage; None where none does."""
        moves, used, usage = self._pricing.priced_around(row)
        if not len(moves):
            return None
        saved = usage[int(usage.argmax())] - used[:, int(usage.argmax())]
        added = self._knapsack.at(self._loss, moves).sum(axis=1) - self._knapsack.at(self._loss, row).sum()
        worth = np.where(saved > 0.0, saved / np.maximum(added, _LEAST_LOSS), 0.0)
        best = int(np.argmax(worth))
        return moves[best] if worth[best] > 0.0 else None
