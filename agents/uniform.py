"""The same share of compression in every domain: what people do by hand, and the second baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from automc.policy import Policy
from automc.pricing import Pricing
from automc.protocols import Problem
from automc.space import Codes
from automc.trial import Trial

from .frontier import Frontier
from .ledger import Ledger

__all__ = ["Uniform", "even"]

_LEVELS = 64


class Uniform:
    """Sets every domain of the chosen knobs to the same relative level, for every combination of knobs, mildest first.

    Deterministic until the even policies are used up; `seed` orders what lies next to them.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._ledger = Ledger(problem.space)
        self._pricing = Pricing(problem)
        self._frontier = Frontier(self._pricing, self._ledger, np.random.default_rng(seed))
        self._rows: Iterator[Codes] | None = None

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` even policies inside the budget, least compressed first; once all were proposed, those one change away."""
        return self._ledger.fill(count, self._new)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Note what needs no proposing again; nothing is learned."""
        self._ledger.record(trials)

    def _new(self) -> Codes | None:
        if self._rows is None:
            self._rows = iter(even(self._pricing))
        fresh = self._ledger.first_new(self._rows)
        return self._frontier.next() if fresh is None else fresh


def even(pricing: Pricing) -> Codes:
    """(count, domains) the even policies inside the budget, largest usage first; the smallest policy if there are none."""
    space = pricing.space
    knobs = sorted({domain.knob for domain in space.domains})
    levels = np.linspace(0.0, 1.0, _LEVELS + 1)[:, None]
    rows = [np.zeros((1, len(space)), dtype=np.int64)]
    for mask in range(1, 2 ** len(knobs)):
        chosen = np.array([mask >> knobs.index(domain.knob) & 1 for domain in space.domains])
        rows.append(np.ceil(levels * (space.cardinalities - 1)).astype(np.int64) * chosen)
    codes = np.unique(np.concatenate(rows), axis=0)
    inside = codes[pricing.holds(codes)]
    if not len(inside):
        return pricing.smallest[None]
    order = np.argsort(-pricing.usage(inside).max(axis=1), kind="stable")
    return inside[order]
