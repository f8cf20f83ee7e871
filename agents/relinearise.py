"""Sequential linear programming for a knapsack whose costs interact.

A layer's latency depends on both its channel groups, its bits and its rank, so no single linear cost is true everywhere. Each
round prices every single change from the incumbent, solves the knapsack with those marginal costs inside a trust region
(at most `radius` domains changed), repairs the answer to the true predicted cost, and keeps it if its loss is lower; else the
region shrinks. (Fletcher and Sainz de la Maza 1989, "Nonlinear programming and nonsmooth optimization by successive linear programming".)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from automc.pricing import Pricing
from automc.space import Codes

from .exchange import Exchange
from .knapsack import Knapsack
from .lagrange import relaxed

__all__ = ["Solver"]

Array = NDArray[np.float64]
_GAIN = 1e-9
_APPROACH = 4
_SHARPNESS = 8
"""Several limits are weighed by this power of their usage: the one that binds counts."""
_LEAST = 1e-12


class Solver:
    """Finds codes of least summed loss whose predicted usage is at most a target."""

    def __init__(self, pricing: Pricing) -> None:
        self.knapsack = Knapsack(pricing.space.cardinalities)
        self._pricing = pricing
        self._exchange = Exchange(pricing, self.knapsack)

    def solve(self, loss: Array, target: float, starts: Sequence[Codes], *, rounds: int, exact: bool) -> Codes | None:
        """(domains,) the best codes found from `starts`, or None where every one gets stuck outside the target.

        Args:
            loss: (choices,) loss of each choice of each domain.
            rounds: linear programmes per start at most; `exact` adds an integer one around the best.
        """
        near = [self._approached(start, loss, target) for start in starts]
        distinct = {row.tobytes(): row for row in near}.values()
        found = [row for start in distinct if (row := self._descend(start, loss, target, rounds)) is not None]
        if not found:
            return None
        best = min(found, key=lambda row: self.loss(loss, row))
        if not exact or not len(best):
            return best
        polished = self._linearised(best, loss, target, len(best), exact=True)
        return best if polished is None else min((best, polished), key=lambda row: self.loss(loss, row))

    def loss(self, loss: Array, row: Codes) -> float:
        """The summed loss of (domains,) codes."""
        return float(self.knapsack.at(loss, row).sum())

    def _approached(self, start: Codes, loss: Array, target: float) -> Codes:
        """Where a few relaxed programmes lead from `start`, each around the one before; `start` itself where they lead nowhere.

        They take few prices to come near the target, where greedy steps take hundreds.
        """
        row = start
        for _ in range(_APPROACH if len(start) else 0):
            usage, marginal = self.knapsack.marginal(self._pricing, row)
            weights = usage**_SHARPNESS / np.maximum(usage**_SHARPNESS, _LEAST).sum()
            room = np.array([target - float(usage @ weights)])
            other = relaxed(self.knapsack, loss[None], (marginal @ weights)[None], room)[0]
            if (other == row).all():
                break
            row = other
        return row

    def _descend(self, start: Codes, loss: Array, target: float, rounds: int) -> Codes | None:
        row = self._exchange.improve(start, loss, target)
        radius = len(start)
        for _ in range(rounds if row is not None else 0):
            assert row is not None
            other = self._linearised(row, loss, target, radius, exact=False)
            if other is not None and self.loss(loss, other) < self.loss(loss, row) - _GAIN:
                row = other
                continue
            radius //= 3
            if radius < 2:
                break
        return row

    def _linearised(self, row: Codes, loss: Array, target: float, radius: int, *, exact: bool) -> Codes | None:
        usage, marginal = self.knapsack.marginal(self._pricing, row)
        solved = self.knapsack.solve(loss, marginal, target - usage, row, radius, exact=exact)
        return None if solved is None else self._exchange.improve(solved, loss, target)
