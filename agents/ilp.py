"""Integer programming on layer sensitivities and predicted costs, after HAWQ-V3 (2011.10680), refined by the scores.

The first policy asked is the knapsack's answer for the budget itself; then come tightened budgets, which draw the front and
guard against a predictor that is a few percent off; then, for as long as asked, answers under coefficients sampled from what the
scores so far say about the sensitivities (coefficient search: SPDY, 2201.13096).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from automc.policy import Policy
from automc.pricing import Pricing
from automc.protocols import Agent, Problem
from automc.space import Codes
from automc.trial import Trial

from .belief import Belief
from .frontier import Frontier
from .ledger import Ledger
from .relinearise import Solver
from .sensitivities import single_losses
from .swept import sweeping
from .variation import Variation

__all__ = ["ILP", "ilp"]

Array = NDArray[np.float64]
_TIGHTER = (0.97, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6)
_RELAXED = (1.05, 1.15, 1.3)
_OFF_BUDGET = 0.2
"""Share of the later proposals that aim at another rung than the budget itself, for the front."""
_SAMPLES = 24
_NEAR = 4
"""Domains in which a row near the best may differ from it."""
_ELITE = 6
_TIE = 1e-3
_FIRST_ROUNDS, _LATER_ROUNDS = 8, 2


def ilp(problem: Problem, seed: int) -> Agent:
    """`ILP`, swept along the objectives."""
    return sweeping(ILP, problem, seed)


class ILP:
    """Proposes solutions of the multiple-choice knapsack for the budget and around it.

    Attributes:
        pricing: shared with whoever asks this agent besides others, so that nothing is priced twice.

    Raises:
        InputError: the problem carries no sensitivities.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._problem = problem
        self.pricing = Pricing(problem)
        self._solver = Solver(self.pricing)
        self._ledger = Ledger(problem.space)
        self._belief = Belief([domain.knob for domain in problem.space.domains])
        self._rng = np.random.default_rng(seed)
        self._variation = Variation(self.pricing, self._solver.knapsack, self._rng)
        self._frontier = Frontier(self.pricing, self._ledger, self._rng)
        self._codes = np.concatenate([np.arange(n) for n in problem.space.cardinalities] or [np.zeros(0)])
        self._alone = single_losses(problem, "ilp")
        self._rungs: deque[float] | None = None
        self._targets = [1.0]
        self._last: Codes | None = None
        self._elite: list[Codes] = []
        self._varied: deque[Codes] = deque()
        self._stale = False

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new policies; fewer only when the budget holds no more of them."""
        self._learn()
        asked: list[Policy] = []
        while len(asked) < count and (row := self._next(count - len(asked))) is not None:
            asked.append(self._ledger.propose(row))
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Note the scores."""
        for _, trial in self._ledger.record(trials):
            self._stale |= trial.score is not None

    def _next(self, count: int) -> Codes | None:
        """The next new row; `count` of them will be wanted in all."""
        while self.pricing.reachable and (self._rungs is None or self._rungs):
            row = self._open() if self._rungs is None else self._climb(self._rungs.popleft())
            if row is not None and self._ledger.is_new(row):
                return row
        if not self._varied and self.pricing.reachable:
            self._varied = self._vary(count)
        while self._varied:
            row = self._varied.popleft()
            if self._ledger.is_new(row):
                return row
        return self._frontier.next()

    def _climb(self, rung: float) -> Codes | None:
        return self._solve(rung, self._belief.mean(), [self._start()], exact=False)

    def _vary(self, count: int) -> deque[Codes]:
        """`count` different rows, each the best under a loss sampled from what the scores say; every second one near the best.

        The first is the best under the likeliest loss. Thompson sampling over one pool of candidates.
        """
        parents = self._parents()
        sampled = [self._belief.mean(), *(self._belief.sample(self._rng) for _ in range(max(_SAMPLES, count) - 1))]
        losses = self._tied() * np.array(sampled)[:, self._solver.knapsack.domain]
        rows, used = self._variation.around(parents, losses, self._targets[0])
        free = np.array([self._ledger.is_new(row) for row in rows])
        near = (rows != parents[0]).sum(axis=1) <= _NEAR
        picked: deque[Codes] = deque()
        for i in range(count):
            aside = self._rng.random() < _OFF_BUDGET
            target = float(self._rng.choice(self._targets)) if aside else self._targets[0]
            fits = free & (used <= target)
            fits = fits & near if i % 2 and (fits & near).any() else fits
            if not fits.any():
                continue
            loss = self._solver.knapsack.at(losses[i], rows).sum(axis=1)
            best = int(np.argmin(np.where(fits, loss, np.inf)))
            free[best] = False
            picked.append(rows[best])
        return picked

    def _parents(self) -> list[Codes]:
        """The best scored row inside the budget and another good one; the last answer where nothing has a score."""
        if not self._elite:
            return [self._start()]
        return [self._elite[0], self._elite[int(self._rng.integers(len(self._elite)))]]

    def _tied(self) -> Array:
        """(choices,) the losses, with a little random preference where they do not tell choices apart."""
        scale = _TIE * max(float(self._alone.mean()), _TIE)
        return self._alone + scale * self._rng.random(len(self._alone)) * (self._codes > 0)

    def _open(self) -> Codes | None:
        """The answer for the budget itself, from the dense, the all-integer, the smallest and the best known policy."""
        dense = self._problem.space.dense
        self._rungs = deque(self._ladder(float(self.pricing.usage(dense[None]).max())))
        starts = [dense, self._all_integer(), self.pricing.smallest, self._start()]
        return self._solve(1.0, self._belief.mean(), starts, exact=True)

    def _ladder(self, dense: float) -> list[float]:
        """The rungs after the budget itself; where the dense model holds it, they run down from the dense model's usage."""
        top = min(dense, 1.0)
        lowest = float(self.pricing.usage(self.pricing.smallest[None]).max())
        tighter = [top * share for share in _TIGHTER if top * share > lowest]
        if dense <= 1.0:
            self._targets = tighter or [1.0]
            return tighter
        few = max(2, self._problem.n_trials // 5)
        tighter = tighter[:few]
        self._targets += tighter[:3]
        return tighter + [share for share in _RELAXED if share < dense][: max(0, few - len(tighter))]

    def _solve(self, target: float, coefficients: Array, starts: Sequence[Codes], *, exact: bool) -> Codes | None:
        loss = self._alone * coefficients[self._solver.knapsack.domain]
        rounds = _FIRST_ROUNDS if exact else _LATER_ROUNDS
        self._last = self._solver.solve(loss, target, starts, rounds=rounds, exact=exact)
        return self._last

    def _start(self) -> Codes:
        """Where the next programme starts: the best scored policy inside the budget, or the last answer."""
        if self._elite:
            return self._elite[0]
        return self._problem.space.dense if self._last is None else self._last

    def _all_integer(self) -> Codes:
        row = self._problem.space.dense
        columns = self._problem.space.columns("quantize")
        row[columns] = self._problem.space.cardinalities[columns] - 1
        return row

    def _learn(self) -> None:
        if not self._stale:
            return
        rows = np.array([row for row, _ in self._ledger.scored])
        scores = np.array([trial.merit for _, trial in self._ledger.scored], dtype=float)
        losses = self._solver.knapsack.at(self._alone, rows)
        inside = np.flatnonzero(self.pricing.holds(rows))
        order = inside[np.lexsort((losses[inside].sum(axis=1), -scores[inside]))]
        self._elite = list(rows[order[:_ELITE]])
        self._varied.clear()
        self._belief.fit(losses, self._problem.dense_score - scores)
        self._stale = False
