"""Evolution on feasible policies: Guo et al. 2020, "Single Path One-Shot" (1904.00420), algorithm 1.

Parents are the k best policies so far; half of the children are crossovers of two of them, half mutants of one, and every child
has to hold the constraint before it is evaluated. Steady state: each child sees all scores told before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from automc.policy import Policy
from automc.pricing import Pricing
from automc.protocols import Problem
from automc.space import Codes
from automc.trial import Trial

from .frontier import Frontier
from .ledger import Ledger
from .opening import opening

__all__ = ["Evolution"]

_PARENTS = 10
_STARTUP_SHARE = 5
_MUTATION = 0.1
"""Probability that a domain mutates (section 4.1 of the paper)."""
_BROOD = 32
"""Children drawn and priced together; one of those inside is asked."""
_PATIENCE = 3


class Evolution:
    """A fifth of the trials are the opening, then come children of the best."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._pricing = Pricing(problem)
        self._ledger = Ledger(problem.space)
        self._rng = np.random.default_rng(seed)
        self._frontier = Frontier(self._pricing, self._ledger, self._rng)
        self._startup = max(4, problem.n_trials // _STARTUP_SHARE)
        self._opening: list[Codes] | None = None
        self._parents: Codes = np.zeros((0, len(problem.space)), dtype=np.int64)

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new policies inside the budget; once broods bring nothing new, what lies next to those known."""
        return self._ledger.fill(count, self._new)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Note the scores and choose the parents: the best of those that hold the budget."""
        self._ledger.record(trials)
        scored = self._ledger.scored
        if scored:
            rows = np.array([row for row, _ in scored])
            scores = np.array([trial.merit for _, trial in scored], dtype=float)
            inside = np.flatnonzero(self._pricing.holds(rows))
            self._parents = rows[inside[np.argsort(-scores[inside], kind="stable")[:_PARENTS]]]

    def _new(self) -> Codes | None:
        for _ in range(_PATIENCE):
            grown = len(self._ledger.rows) >= self._startup and len(self._parents)
            row = self._pick(self._children()) if grown else self._first()
            if row is not None:
                return row
        return self._frontier.next()

    def _pick(self, brood: Codes) -> Codes | None:
        """The first new child that holds the budget; a child outside is shrunk where none does."""
        inside = self._pricing.holds(brood)
        shrunk = [] if inside.any() else [self._pricing.shrink(brood[0], self._rng)]
        return self._ledger.first_new([*brood[inside], *shrunk])

    def _first(self) -> Codes | None:
        """A new row of the opening, None where it is used up."""
        if self._opening is None:
            self._opening = opening(self._pricing, self._startup, self._rng)
        fresh = [row for row in self._opening if self._ledger.is_new(row)]
        self._opening = fresh[1:]
        return fresh[0] if fresh else None

    def _children(self) -> Codes:
        """(brood, domains) crossovers or mutants of the parents, those that use most of the budget first."""
        children = self._crossovers() if self._rng.random() < 0.5 else self._mutants()
        usage = self._pricing.usage(children).max(axis=1)
        return children[np.argsort(-usage, kind="stable")]

    def _crossovers(self) -> Codes:
        """Each domain from either of two parents."""
        first, second = self._drawn(), self._drawn()
        return np.where(self._rng.random(first.shape) < 0.5, first, second)

    def _mutants(self) -> Codes:
        """One parent with some domains, one at least, drawn anew."""
        parents = self._drawn()
        moved: NDArray[np.bool_] = self._rng.random(parents.shape) < _MUTATION
        if parents.shape[1]:
            moved[np.arange(_BROOD), self._rng.integers(parents.shape[1], size=_BROOD)] = True
        return np.where(moved, self._pricing.space.sample(_BROOD, self._rng), parents)

    def _drawn(self) -> Codes:
        drawn: Codes = self._parents[self._rng.integers(len(self._parents), size=_BROOD)]
        return drawn
