"""Random search over policies that are predicted to hold the budget: the baseline to beat.

Li and Talwalkar 2019, "Random Search and Reproducibility for Neural Architecture Search" (1902.07638): compared at equal
evaluations, a random search over the feasible part of the space is close to most controllers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from automc.policy import Policy
from automc.pricing import Pricing, ray
from automc.protocols import Problem
from automc.space import Codes
from automc.trial import Trial

from .frontier import Frontier
from .ledger import Ledger

__all__ = ["Random"]

_STRENGTHS = np.linspace(0.0, 1.0, 41)
_ON_BUDGET = 0.75
_PATIENCE = 20


class Random:
    """Draws random paths from dense to fully compressed and proposes points of them inside the budget.

    Of each path three times in four it takes the first point inside, which lies just below the budget where good policies
    are, else any point inside; so it is a stronger baseline than uniform draws, which mostly compress far more than asked.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._pricing = Pricing(problem)
        self._ledger = Ledger(problem.space)
        self._rng = np.random.default_rng(seed)
        self._frontier = Frontier(self._pricing, self._ledger, self._rng)

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new random policies inside the budget, then what is left next to them; the smallest where there are none."""
        return self._ledger.fill(count, self._new)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Note what needs no proposing again; nothing is learned."""
        self._ledger.record(trials)

    def _new(self) -> Codes | None:
        drawn = (self._draw() for _ in range(_PATIENCE))
        fresh = self._ledger.first_new(drawn)
        return self._frontier.next() if fresh is None else fresh

    def _draw(self) -> Codes:
        path = ray(self._pricing.space.cardinalities, _STRENGTHS, self._rng)
        inside = path[self._pricing.holds(path)]
        if not len(inside):
            return self._pricing.smallest
        at = 0 if self._rng.random() < _ON_BUDGET else int(self._rng.integers(len(inside)))
        row: Codes = inside[at]
        return row
