"""SPDY (Frantar and Alistarh 2022, 2201.13096): dynamic programming whose layer sensitivities are searched by the true score.

A policy is the answer of a knapsack over discretised costs (equation 2, algorithm 1), its losses weighed by one coefficient per
domain. The coefficients are searched: random ones first, then the best so far with a shrinking number of them drawn anew
(section 3.3). Costs here interact, so the programme is written around the best answer so far and answered once more around its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from automc.policy import Policy
from automc.pricing import Pricing
from automc.protocols import Problem
from automc.space import Codes
from automc.trial import Trial

from .frontier import Frontier
from .knapsack import Knapsack
from .ledger import Ledger
from .sensitivities import single_losses

__all__ = ["SPDY", "cheapest"]

Array = NDArray[np.float64]
_BUCKETS = 500
_RANDOM_SHARE = 0.25
_SHARE = 0.1
"""Share of the coefficients drawn anew at first in the local search (the paper's shrinking neighbourhood)."""
_PATIENCE = 6
_CLOSE = 0.02
"""Share of the budget that an answer may leave unused."""


class SPDY:
    """The programme's answer under the sensitivities as they are, then under random and under searched coefficients."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._problem = problem
        self._pricing = Pricing(problem)
        self._ledger = Ledger(problem.space)
        self._rng = np.random.default_rng(seed)
        self._frontier = Frontier(self._pricing, self._ledger, self._rng)
        self._knapsack = Knapsack(problem.space.cardinalities)
        self._loss = single_losses(problem, "spdy")
        self._asked: dict[bytes, Array] = {}
        self._best: tuple[float, Codes, Array] | None = None

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new policies inside the budget; once coefficients bring nothing new, what lies next to those known."""
        return self._ledger.fill(count, self._new)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Keep the best scored policy inside the budget, and the coefficients that led to it."""
        noted = len(self._ledger.scored)
        self._ledger.record(trials)
        for row, trial in self._ledger.scored[noted:]:
            better = self._best is None or trial.merit > self._best[0]
            if better and self._pricing.holds(row[None])[0]:
                coefficients = self._asked.get(row.tobytes(), np.ones(len(row)))
                self._best = trial.merit, row, coefficients

    def _new(self) -> Codes | None:
        for _ in range(_PATIENCE if self._pricing.reachable else 0):
            coefficients = self._coefficients()
            row = self._answer(coefficients)
            if self._ledger.is_new(row):
                self._asked[row.tobytes()] = coefficients
                return row
        return self._frontier.next()

    def _coefficients(self) -> Array:
        """(domains,) ones, then random ones, then the best with ever fewer of them drawn anew."""
        domains, done = len(self._knapsack.cardinalities), len(self._ledger.rows)
        if not done:
            return np.ones(domains)
        start = _RANDOM_SHARE * self._problem.n_trials
        if self._best is None or done < start:
            return self._rng.random(domains)
        left = max(0.0, 1.0 - (done - start) / max(1.0, self._problem.n_trials - start))
        anew = max(1, round(_SHARE * domains * left)) if domains else 0
        coefficients = self._best[2].copy()
        coefficients[self._rng.permutation(domains)[:anew]] = self._rng.random(anew)
        return coefficients

    def _answer(self, coefficients: Array) -> Codes:
        """The programme's answer around the best known policy; where that is off the budget, once more around itself, and shrunk into it."""
        loss = self._loss * coefficients[self._knapsack.domain]
        row = self._around(self._pricing.space.dense if self._best is None else self._best[1], loss)
        if not self._ledger.is_new(row) or 1.0 - _CLOSE <= self._pricing.priced_around(row)[2].max() <= 1.0:
            return row
        return self._pricing.shrink(self._around(row, loss), self._rng)

    def _around(self, row: Codes, loss: Array) -> Codes:
        usage, marginal = self._knapsack.marginal(self._pricing, row)
        weights = np.maximum(usage, 1e-9) ** 8 / (np.maximum(usage, 1e-9) ** 8).sum()
        return cheapest(self._knapsack, loss, marginal @ weights, float(1.0 - usage @ weights))


def cheapest(knapsack: Knapsack, loss: Array, usage: Array, room: float) -> Codes:
    """(domains,) codes of least summed loss whose (choices,) usage, rounded up to buckets, sums to `room` at most.

    The codes of least usage where nothing fits. D[d, b] is the least loss of the first d domains in b buckets:
    D[d, b] = min over s of D[d - 1, b - t(d, s)] + e(d, s) (equation 2).
    """
    spans = [slice(first, first + n) for first, n in zip(knapsack.first, knapsack.cardinalities, strict=True)]
    least = np.array([usage[span].min() for span in spans])
    bucket = max(room - float(least.sum()), 1e-12) / _BUCKETS
    above = np.ceil((usage - least[knapsack.domain]) / bucket - 1e-9)
    steps = np.minimum(above, _BUCKETS + 1).astype(np.int64)
    table = np.append(np.full(_BUCKETS + 1, np.inf), np.zeros(_BUCKETS + 1))  # what begins below 0 has no answer
    begin = sliding_window_view(table, _BUCKETS + 1)
    taken = []
    for span in spans:
        options = begin[_BUCKETS + 1 - steps[span]] + loss[span][:, None]
        taken.append((steps[span], options))
        options.min(axis=0, out=table[_BUCKETS + 1 :])
    return _traced(taken)


def _traced(taken: Sequence[tuple[Codes, Array]]) -> Codes:
    """The choices along the best path, from the last domain back to the first; per domain (choices,) buckets and (choices, buckets) losses."""
    codes, left = np.zeros(len(taken), dtype=np.int64), _BUCKETS
    for domain in range(len(taken) - 1, -1, -1):
        steps, options = taken[domain]
        codes[domain] = options[:, left].argmin()
        left -= int(steps[codes[domain]])
    return codes
