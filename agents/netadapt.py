"""NetAdapt (Yang et al. 2018, 1804.03230): reduce the resource step by step, each step by the one change that scores best.

A step takes `reduction` (decaying) off the usage. For every domain the mildest choice that achieves it alone is a proposal
(algorithm 1, lines 4 to 7); the best scored proposal is where the next step starts (line 8). Three things differ from the
paper, because a search has a hundred evaluations and not thousands: only the few most promising proposals of a step are scored,
between two scored steps a few are chosen by the sensitivities, so that steps stay small, and so are those far outside the budget. The first policy asked is the whole
descent without scores, so that there is an answer inside the budget from the start.
"""

from __future__ import annotations

from collections import deque
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

__all__ = ["NetAdapt"]

Array = NDArray[np.float64]
_PROPOSALS = 4
_BLIND = 3
"""Steps chosen without scores after each scored one."""
_DECAY = 0.99
_PASSES = 6
_FINEST = 1e-3
"""A step that takes less than this share of the budget off ends a pass."""


_NEAR = 1.5
"""Steps are scored from this many times the budget on: far outside it the first changes hurt so little that scores tell nothing."""


class NetAdapt:
    """Walks from near the budget to it and on below it, then again with half the step, until its passes are used up."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._problem = problem
        self._pricing = Pricing(problem)
        self._ledger = Ledger(problem.space)
        self._rng = np.random.default_rng(seed)
        self._frontier = Frontier(self._pricing, self._ledger, self._rng)
        self._row = self._near = problem.space.dense
        self._proposals: list[Codes] = []
        self._queue: deque[Codes] = deque()
        self._scores: dict[bytes, float] = {}
        self._passes = self._steps = 0
        self._first: float | None = None

    def ask(self, count: int) -> Sequence[Policy]:
        """Up to `count` proposals of the current step; once the passes are used up, what lies next to the proposals so far."""
        if self._first is None:
            self._open()
        asked: list[Policy] = []
        while len(asked) < count and (self._queue or self._passes < _PASSES):
            if self._queue:
                row = self._queue.popleft()
                if self._ledger.is_new(row):
                    asked.append(self._ledger.propose(row))
            elif asked:
                break
            else:
                self._advance()
        return asked or self._ledger.fill(1, self._frontier.next)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Note the scores that the step is chosen by."""
        for row, trial in self._ledger.record(trials):
            if trial.score is not None:
                self._scores[row.tobytes()] = trial.merit

    def _open(self) -> None:
        """Queue the descent without scores, go near the budget by it, and set the reduction of the steps from there.

        About two thirds of the trials then reach the budget.
        """
        usage = self._usage(self._row)
        goal = min(1.0, usage) if usage > 1.0 else self._usage(self._pricing.smallest)
        steps = max(4.0, self._problem.n_trials / _PROPOSALS * 2 / 3) * (1 + _BLIND)
        share = (1 - _DECAY) / (1 - _DECAY**steps)
        self._first = (usage - goal) * share
        self._queue.append(self._pricing.shrink(self._stepped(self._row, self._pricing.ceiling), self._rng))
        self._row = self._near = self._stepped(self._row, _NEAR * self._pricing.ceiling)
        self._first = (self._usage(self._row) - goal) * share
        if not self._pricing.reachable:
            self._passes = _PASSES

    def _advance(self) -> None:
        """Take the best proposal of the last step and make those of the next; start over where there are none."""
        if self._proposals:
            self._row = self._walk(self._choose(self._proposals))
        self._proposals = self._propose(self._row, self._reduction())
        self._queue.extend(self._proposals)
        if not self._proposals:
            self._row, self._steps = self._near, 0
            self._passes += 1

    def _reduction(self) -> float:
        """The usage that the next step takes off; counts the step."""
        assert self._first is not None
        self._steps += 1
        return self._first * 0.5**self._passes * _DECAY ** (self._steps - 1)

    def _walk(self, row: Codes) -> Codes:
        """`row` after the steps that nobody scores, short of crossing the budget."""
        for _ in range(_BLIND):
            rows = self._propose(row, self._reduction())
            if not rows or self._usage(rows[0]) <= self._pricing.ceiling < self._usage(row):
                break
            row = rows[0]
        return row

    def _propose(self, row: Codes, reduction: float) -> list[Codes]:
        """The rows that take `reduction` off by one domain, least harmful first; half of it, and so on, where few do."""
        moves, priced, own = self._pricing.priced_around(row)
        if not len(moves):
            return []
        usage, used = float(own.max()), priced.max(axis=1)
        domain = (moves != row).argmax(axis=1)
        stronger = moves[np.arange(len(moves)), domain] > row[domain]
        ceiling = self._pricing.ceiling
        lowest = ceiling if usage > ceiling else 0.0
        while reduction > _FINEST * ceiling:
            achieving = np.flatnonzero(stronger & (used <= max(usage - reduction, lowest)))
            mildest = achieving[np.unique(domain[achieving], return_index=True)[1]]
            if len(mildest) >= min(_PROPOSALS, len(row)):
                return [moves[i] for i in mildest[np.argsort(self._harm(moves[mildest]), kind="stable")][:_PROPOSALS]]
            reduction /= 2.0
        return []

    def _choose(self, rows: Sequence[Codes]) -> Codes:
        """The best scored of `rows`; the least harmful as far as the sensitivities tell where none has a score."""
        scores = [self._scores.get(row.tobytes(), -np.inf) for row in rows]
        if max(scores) > -np.inf:
            return rows[int(np.argmax(scores))]
        return rows[int(np.argmin(self._harm(np.array(rows))))]

    def _stepped(self, row: Codes, usage: float) -> Codes:
        """`row` stepped down to `usage` or less without scores, or to where no step is left."""
        assert self._first is not None
        while self._usage(row) > usage:
            rows = self._propose(row, self._first)
            if not rows:
                break
            row = rows[0]
        return row

    def _harm(self, rows: Codes) -> Array:
        """(count,) summed sensitivities, or the share of compression where none are known."""
        tables = self._problem.sensitivity
        if tables is None:
            shares: Array = (rows / np.maximum(self._problem.space.cardinalities - 1, 1)).sum(axis=1)
            return shares
        return np.sum([table[rows[:, d]] for d, table in enumerate(tables)], axis=0)

    def _usage(self, row: Codes) -> float:
        return float(self._pricing.usage(row[None]).max())
