"""Pricing: what codes use of the budget, their neighbours, and the smallest policy there is."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from automc.protocols import Problem
from automc.space import Codes

__all__ = ["Pricing", "neighbours", "ray"]

Array = NDArray[np.float64]
_ROUNDS = 60
_ROOM = 0.05
_REMEMBERED = 1 << 14
_STRETCH = 16


class Pricing:
    """Prices codes as usage: cost over limit, one column per limit of the budget; 1 is exactly the budget.

    Where nothing holds the budget, `ceiling` rises to just above the smallest usage found: predictors err by a few percent, so
    which policy is the smallest is known only when some of those near it were measured. The latest rows are remembered, because
    searches come back to where they were and a predictor takes about as long for one row as for a hundred.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.space = problem.space
        self._known: dict[bytes, Array] = {}

    def usage(self, codes: Codes) -> Array:
        """(count, limits) usage of (count, domains) codes, latency by the upper end of its interval."""
        if len(self._known) > _REMEMBERED:
            self._known = {}
        keys = [row.tobytes() for row in codes]
        fresh = {key: at for at, key in enumerate(keys) if key not in self._known}
        if fresh or not keys:
            priced = self._priced(codes[list(fresh.values())])
            if len(fresh) == len(keys):
                self._known.update(zip(keys, priced, strict=True))
                return priced
            self._known.update(zip(fresh, priced, strict=True))
        return np.array([self._known[key] for key in keys])

    def _priced(self, codes: Codes) -> Array:
        costs = self._problem.predictor.predict(codes)
        return np.stack([costs.array(limit.metric) / limit.value for limit in self._problem.budget], axis=1)

    def holds(self, codes: Codes) -> NDArray[np.bool_]:
        """(count,) whether codes are predicted inside the budget, or inside `ceiling` where nothing is."""
        return self.usage(codes).max(axis=1) <= self.ceiling

    @cached_property
    def reachable(self) -> bool:
        """Whether the smallest policy holds the budget as predicted."""
        return bool(self.usage(self.smallest[None]).max() <= 1.0)

    @cached_property
    def ceiling(self) -> float:
        """The usage that counts as inside: 1, or just above that of the smallest policy where the budget cannot be reached."""
        return 1.0 if self.reachable else (1.0 + _ROOM) * float(self.usage(self.smallest[None]).max())

    @cached_property
    def smallest(self) -> Codes:
        """(domains,) the least usage found, by coordinate descent from the best of the even and the fully compressed."""
        levels = np.linspace(0.0, 1.0, 17)[:, None]
        starts = np.floor(levels * (self.space.cardinalities - 1)).astype(np.int64)
        row = starts[np.argmin(_rank(self.usage(starts)))]
        for _ in range(_ROUNDS):
            around = np.concatenate([row[None], neighbours(self.space.cardinalities, row)])
            best = int(np.argmin(_rank(self.usage(around))))
            if best == 0:
                break
            row = around[best]
        return row

    def around(self, row: Codes) -> Codes:
        """(moves, domains) every row that differs from `row` in exactly one domain."""
        return neighbours(self.space.cardinalities, row)

    def priced_around(self, row: Codes) -> tuple[Codes, Array, Array]:
        """The (moves, domains) rows `around` a row, their (moves, limits) usage, and the (limits,) usage of the row itself."""
        moves = self.around(row)
        used = self.usage(np.concatenate([row[None], moves]))
        return moves, used[1:], used[0]

    def shrink(self, row: Codes, rng: np.random.Generator) -> Codes:
        """`row` taken step by step, in random order, towards the smallest policy until it is inside the ceiling."""
        steps = np.repeat(np.arange(len(row)), np.abs(self.smallest - row))
        order = rng.permutation(steps)
        signs = np.sign(self.smallest - row)
        path = row + np.cumsum(np.eye(len(row), dtype=np.int64)[order] * signs[order][:, None], axis=0)
        path = np.concatenate([row[None], path])
        # Most rows are at the budget already: the rest of the path is priced only where it is needed.
        start, length = 0, 1
        while start < len(path):
            holds = self.holds(path[start : start + length])
            if holds.any():
                return np.asarray(path[start + int(np.argmax(holds))])
            start, length = start + length, _STRETCH * length
        return np.asarray(path[0])


def neighbours(cardinalities: Codes, row: Codes) -> Codes:
    """(moves, domains) every row that differs from (domains,) `row` in exactly one domain."""
    domain = np.repeat(np.arange(len(row)), cardinalities)
    choice = np.arange(len(domain)) - (np.cumsum(cardinalities) - cardinalities)[domain]
    moved = choice != row[domain]
    rows = np.repeat(row[None], int(moved.sum()), axis=0)
    rows[np.arange(len(rows)), domain[moved]] = choice[moved]
    return rows


def ray(cardinalities: Codes, strengths: Array, rng: np.random.Generator) -> Codes:
    """(strengths, domains) codes along one random path from dense (strength 0) to fully compressed (strength 1).

    Each domain draws u in (0, 1) once and takes code floor(n u^((1 - s) / s)): at s = 1/2 the codes are uniform over the
    space, and every code grows with s.
    """
    u = rng.random(len(cardinalities))
    exponent = (1.0 - strengths) / np.maximum(strengths, 1e-9)
    return np.minimum(np.floor(cardinalities * u ** exponent[:, None]), cardinalities - 1).astype(np.int64)


def _rank(usage: Array) -> Array:
    """(count,) a key that orders usage by its largest column and, between equals, by the sum of the columns."""
    return usage.max(axis=1) + 1e-6 * usage.sum(axis=1)
