"""Variations: many candidates around a few good policies, all priced at once.

Around each parent the costs are linearised; programmes under many losses are answered by their Lagrangian relaxation, taken over
in part (only some of the changed domains) and joined by random single and double changes. What the linearisation got wrong is
found by pricing every candidate truly, in one call, because a predictor takes hundreds of rows in the time of a few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from automc.pricing import Pricing
from automc.space import Codes

from .knapsack import Knapsack
from .lagrange import relaxed

__all__ = ["Variation"]

Array = NDArray[np.float64]
_SLACK = (-0.03, 0.05)
"""How far from the target the relaxations aim, as a share of it: the linearisation errs both ways."""
_TRADES = 300
_USED, _ERRING = 0.95, 1.01
"""Shares of the budget between which a trade is looked at, by the sum of what its changes use."""


class Variation:
    """Makes candidates near parents."""

    def __init__(self, pricing: Pricing, knapsack: Knapsack, rng: np.random.Generator) -> None:
        self._pricing = pricing
        self._knapsack = knapsack
        self._rng = rng

    def around(self, parents: Sequence[Codes], losses: Array, target: float) -> tuple[Codes, Array]:
        """(rows, domains) different candidates around `parents`, and their (rows,) largest usage.

        Args:
            losses: (count, choices) losses under which the programmes are answered, all for every parent.
        """
        rows = np.unique(np.concatenate([self._of(parent, losses, target) for parent in parents]), axis=0)
        return rows, self._pricing.usage(rows).max(axis=1)

    def traded(self, parent: Codes, loss: Array) -> Codes:
        """(rows, domains) the budget that one domain frees given to another: pairs of changes, the least harmful by their summed losses.

        What a pair uses is taken for the sum of its changes at first; all rows hold the budget.

        Args:
            loss: (choices,) of single choices.
        """
        moves, priced, own = self._pricing.priced_around(parent)
        ceiling, spent = self._pricing.ceiling, priced.max(axis=1) - own.max()
        harm = self._knapsack.at(loss, moves).sum(axis=1)
        domain = (moves != parent).argmax(axis=1)
        eased, pressed = np.flatnonzero(spent > 0.0), np.flatnonzero(spent <= 0.0)
        usage = own.max() + spent[eased][:, None] + spent[pressed]
        fits = (usage > _USED * ceiling) & (usage <= _ERRING * ceiling)
        first, second = np.nonzero(fits & (domain[eased][:, None] != domain[pressed]))
        least = np.argsort(harm[eased[first]] + harm[pressed[second]], kind="stable")[:_TRADES]
        rows, other = moves[eased[first[least]]], pressed[second[least]]
        rows[np.arange(len(rows)), domain[other]] = moves[other, domain[other]]
        return rows[self._pricing.holds(rows)] if len(rows) else rows

    def _of(self, parent: Codes, losses: Array, target: float) -> Codes:
        answers = self._answers(parent, losses, target)
        share = self._rng.random((len(answers), 1))
        taken = self._rng.random(answers.shape) < share
        return np.concatenate([answers, np.where(taken, answers, parent), self._mutants(parent, len(answers))])

    def _answers(self, parent: Codes, losses: Array, target: float) -> Codes:
        """(count, domains) relaxed answers as if costs added, the limits weighed at random where there are several."""
        usage, marginal = self._knapsack.marginal(self._pricing, parent)
        weights = self._rng.dirichlet(np.ones(len(usage)), size=len(losses))
        aim = target * (1.0 + self._rng.uniform(*_SLACK, size=len(losses)))
        return relaxed(self._knapsack, losses, weights @ marginal.T, aim - weights @ usage)

    def _mutants(self, parent: Codes, count: int) -> Codes:
        """(count, domains) rows with one to three random domains set to random choices."""
        domains = len(parent)
        rows = np.repeat(parent[None], count, axis=0)
        for _ in range(3):
            moved = self._rng.integers(0, max(domains, 1), size=count) if domains else np.zeros(0, dtype=np.int64)
            at = np.arange(len(moved))
            keep = self._rng.random(len(moved)) < 0.5
            drawn = self._rng.integers(0, self._knapsack.cardinalities[moved])
            rows[at, moved] = np.where(keep, rows[at, moved], drawn)
        return rows
