"""From the integer programme to the true score: knapsack answers first, then expected improvement over their variations.

A quarter of the trials are the integer programme's (HAWQ-V3, 2011.10680). From then on every second proposal is its next one, under
coefficients that the scores inform (SPDY, 2201.13096), and every other one the variation of the best policies of most expected improvement
(Jones et al. 1998, equation 15) under a Gaussian process on what the sum of single-choice losses leaves unexplained. Among the variations are
trades, which give the budget that one domain frees to another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from automc.policy import Policy
from automc.protocols import Agent, Problem
from automc.space import Codes
from automc.trial import Trial

from .evolution import Evolution
from .gp import Posterior, expected_improvement
from .ilp import ILP
from .knapsack import Knapsack
from .ledger import Ledger
from .sensitivities import single_losses
from .swept import sweeping
from .variation import Variation

__all__ = ["Auto", "auto"]

Array = NDArray[np.float64]
_OPENING_SHARE = 0.25
_FEWEST = 6
_PARENTS = 4
_SAMPLES = 8
_SPREAD = 0.5
"""Standard deviation of the log of the coefficients that variations are made under."""
_MOST = 200
_LEFT = 100
"""So many candidates stay for the second proposal of a batch."""
_TRADERS = 3
"""So many of the parents trade, see `Variation.traded`."""


def auto(problem: Problem, seed: int) -> Agent:
    """`Auto`, or evolution where no sensitivities were measured; swept along the objectives."""
    return sweeping(Evolution if problem.sensitivity is None else Auto, problem, seed)


class Auto:
    """Asks the integer programme and the Gaussian process in turn; both are told everything."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._ilp = ILP(problem, seed)
        self._pricing = self._ilp.pricing
        self._ledger = Ledger(problem.space)
        self._rng = np.random.default_rng(seed)
        self._knapsack = Knapsack(problem.space.cardinalities)
        self._variation = Variation(self._pricing, self._knapsack, self._rng)
        self._loss = single_losses(problem, "auto")
        self._levels = np.maximum(problem.space.cardinalities - 1, 1)
        self._opening = max(_FEWEST, round(_OPENING_SHARE * problem.n_trials))
        self._turn = False

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new policies; fewer only when the budget holds no more of them."""
        asked: list[Policy] = []
        if len(self._ledger.scored) >= self._opening and self._pricing.reachable:
            asked = [self._ledger.propose(row) for row in self._improving(self._share(count))]
        tried = 0
        while len(asked) < count and tried < 2 * count:
            more = self._ilp.ask(count - len(asked))
            if not more:
                break
            tried += len(more)
            rows = self._pricing.space.encode(more)
            asked.extend(self._ledger.propose(row) for row in rows if self._ledger.is_new(row))
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell the integer programme, and note the scores."""
        self._ledger.record(trials)
        self._ilp.tell(trials)

    def _share(self, count: int) -> int:
        """Half of `count`, the odd one in every other turn."""
        self._turn = not self._turn
        return (count + self._turn) // 2

    def _improving(self, count: int) -> list[Codes]:
        rows = np.array([row for row, _ in self._ledger.scored[-_MOST:]])
        scores = np.array([trial.merit for _, trial in self._ledger.scored[-_MOST:]], dtype=float)
        inside = self._pricing.holds(rows)
        pool = self._pool(rows[inside][np.argsort(-scores[inside], kind="stable")[:_PARENTS]])
        if not len(pool):
            return []
        line = _line(self._summed(rows), scores)
        posterior = Posterior.fitted(rows / self._levels, scores - line(self._summed(rows)))
        best = float(scores[inside].max())
        found: list[Codes] = []
        while len(found) < count and len(pool):
            residual, deviation = posterior.at(pool / self._levels)
            gain = expected_improvement(line(self._summed(pool)) + residual, deviation, best)
            best_first = np.argsort(-gain, kind="stable")
            chosen = best_first[0]
            found.append(pool[chosen])
            posterior = posterior.believing(pool[chosen] / self._levels, float(residual[chosen]))
            pool = pool[best_first[1 : 1 + _LEFT]]
        return found

    def _summed(self, rows: Codes) -> Array:
        """(count,) summed single-choice losses."""
        summed: Array = self._knapsack.at(self._loss, rows).sum(axis=1)
        return summed

    def _pool(self, parents: Codes) -> Codes:
        """(rows, domains) new variations of the parents that hold the budget."""
        if not len(parents):
            return parents
        coefficients = np.exp(_SPREAD * self._rng.standard_normal((_SAMPLES, len(self._levels))))
        losses = self._loss * coefficients[:, self._knapsack.domain]
        varied, used = self._variation.around(list(parents), losses, 1.0)
        traded = [self._variation.traded(parent, self._loss) for parent in parents[:_TRADERS]]
        rows = np.unique(np.concatenate([varied[used <= self._pricing.ceiling], *traded]), axis=0)
        return rows[[self._ledger.is_new(row) for row in rows]] if len(rows) else rows


def _line(x: Array, y: Array) -> Callable[[Array], Array]:
    """The least-squares line through (count,) x and y; level where x does not vary."""
    centred = x - x.mean()
    slope = float(centred @ y / max(float(centred @ centred), 1e-12))
    return lambda at: y.mean() + slope * (at - x.mean())
