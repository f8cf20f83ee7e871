"""What a run already knows about a budget: the best measured model, the best tried policy, the solver's answer, and a whole curve.

Scores of policies that were not tried are read off the trials: the score as a falling function of the summed single-choice losses,
fitted by isotonic regression (Barlow et al. 1972, "Statistical inference under order restrictions").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from automc.budget import Budget, Limit
from automc.errors import InputError
from automc.progress import Reference
from automc.result import Finalist, Summary, winner_of
from automc.rundir import RunDir
from automc.solver import Answer, smallest, solve
from automc.space import summed
from automc.tables import Tables
from automc.trial import Trial
from automc.units import METRICS

__all__ = ["Expectation", "Known", "Point", "as_budget", "expected_score", "limits_of"]

Array = NDArray[np.float64]
_POINTS = 24
_JUST_BELOW = 1.0 - 1e-6


@dataclass(frozen=True)
class Point:
    """The solver's answer at one limit of a curve, and the score expected of it; None where no trial tells."""

    limit: float
    answer: Answer
    score: float | None


@dataclass(frozen=True)
class Known:
    """What a run recorded, enough to answer budgets without its model.

    Attributes:
        reference: the dense model, the run's own limits and the name of its score.
        finalists: what was measured.
        tables: None where the search has not got that far.
        best: the winner within the run's own limits; None where nothing holds them, or the search has not ended.
    """

    reference: Reference
    finalists: Sequence[Finalist]
    trials: Sequence[Trial]
    tables: Tables | None
    best: Finalist | None = None

    @classmethod
    def of(cls, summary: Summary, trials: Sequence[Trial], tables: Tables | None) -> Known:
        """What a finished search, or one described by a summary so far, knows."""
        reference = Reference(summary.dense, summary.limits, summary.score_name)
        return cls(reference, summary.finalists, trials, tables, summary.best)

    @classmethod
    def read(cls, run: RunDir) -> Known:
        """What is on disk of a run, whether its search has ended or not.

        Raises:
            InputError: the search has not got as far as its tables.
        """
        trials, tables, progress = run.trials(), run.tables(), run.progress()
        if tables is None:
            raise InputError(
                f"The run {run.name!r} has no tables.json yet.",
                remedy=f"`{run.again}` goes on with it.",
            )
        if (run.path / "summary.json").is_file():
            return cls.of(run.summary(), trials, tables)
        if progress is None or progress.reference is None:
            raise InputError(f"The run {run.name!r} has not measured its dense model yet.", remedy="Wait for it.")
        return cls(progress.reference, (), trials, tables)

    def measured(self, budget: Budget) -> Finalist | None:
        """The best measured model that holds a resolved budget, see `winner_of`; the dense one counts."""
        if self.best is not None and limits_of(budget) == self.reference.limits:
            return self.best
        dense = self.reference.dense
        holding = [f for f in (*self.finalists, dense) if budget.holds(f.cost)]
        return winner_of(holding, dense, dense_holds=budget.holds(dense.cost))

    def tried(self, budget: Budget) -> Trial | None:
        """The trial that is worth most of those whose predicted cost holds a resolved budget, wherever its interval ends: it is yet to be measured."""
        full = [t for t in self.trials if t.stage == "search" and t.samples is None and t.score is not None]
        inside = (t for t in full if budget.holds(replace(t.cost, latency_interval_s=None)))
        return max(inside, key=lambda t: t.merit, default=None)

    def solved(self, budget: Budget) -> Answer | None:
        """What the solver would try within a resolved budget, else what was measured within it; None where nothing gets there."""
        if self.tables is None:
            return None
        limits = limits_of(budget)
        answer = solve(self.tables, limits)
        if answer is not None and not len(answer.policy) and not budget.holds(self.reference.dense.cost):
            answer = solve(self.tables, self._below_dense(limits))  # estimated within, known to be outside
        measured = self.measured(budget)
        return answer if answer is not None or measured is None else self._answered(measured)

    def nearest(self, budget: Budget) -> Answer | None:
        """The policy that overruns a budget out of reach least, as estimated or measured."""
        if self.tables is None:
            return None
        limits = limits_of(budget)
        estimated = smallest(self.tables, limits)
        found = [estimated and self._expected(estimated), *(self._answered(f) for f in self.finalists)]
        comparable = [a for a in found if a is not None and all(metric in a.costs for metric in limits)]
        return min(comparable, key=lambda answer: answer.overrun(limits), default=None)

    def _expected(self, answer: Answer) -> Answer:
        """An answer with its costs as much higher as the measured model nearest to it took more than the tables estimate of that."""
        assert self.tables is not None
        codes = {f.policy: self.tables.codes(f.policy) for f in self.finalists}
        own = self.tables.codes(answer.policy)
        nearest = min(self.finalists, key=lambda f: int((codes[f.policy] != own).sum()), default=None)
        if nearest is None:
            return answer
        taken, estimated = self._answered(nearest).costs, self.tables.estimate(codes[nearest.policy])
        missed = {m: max(1.0, taken[m] / estimated[m]) for m in answer.costs if m in taken and estimated.get(m)}
        return replace(answer, costs={m: missed.get(m, 1.0) * cost for m, cost in answer.costs.items()})

    def _below_dense(self, limits: Mapping[str, float]) -> dict[str, float]:
        """The limits, those that the dense model exceeds no higher than just below what the tables take it to cost."""
        assert self.tables is not None
        dense = next(
            (anchor.cost for anchor in self.tables.anchors if not any(anchor.codes)), self.reference.dense.cost
        )
        known = self.reference.dense.cost
        over = {m for m, limit in limits.items() if (known.get(m) or 0.0) > limit}
        return {m: min(v, _JUST_BELOW * (dense.get(m) or v)) if m in over else v for m, v in limits.items()}

    def _answered(self, finalist: Finalist) -> Answer:
        """A measured model as an answer."""
        assert self.tables is not None
        loss = float(summed(self.tables.loss, self.tables.codes(finalist.policy)))
        cost = finalist.cost
        costs = {m: v for m in METRICS if (v := cost.upper(m)) is not None}
        return Answer(finalist.policy, costs, loss, 0)

    def curve(self, metric: str, others: Mapping[str, float]) -> list[Point]:
        """The solver's answers from the least cost in `metric` that is known up to the dense model's, each within `others` too."""
        tables = self.tables
        dense = self.reference.dense.cost.get(metric)
        if tables is None or not dense:
            return []
        least = smallest(tables, {metric: 1e-12 * dense})
        low = dense if least is None else max(least.costs[metric], 1e-3 * dense)
        limits = np.geomspace(min(low, dense) * (1.0 + 1e-6), dense, _POINTS)
        scores = expected_score(tables, self.trials, self.reference.dense.validation)
        found: list[Point] = []
        for limit in limits.tolist():
            answer = solve(tables, {**others, metric: limit})
            before = found[-1].answer if found else None
            if before is not None and (answer is None or before.loss < answer.loss):
                answer = before  # what held a lower limit holds this one
            if answer is not None:
                found.append(Point(limit, answer, scores(answer.loss)))
        return found


def expected_score(tables: Tables, trials: Sequence[Trial], dense_score: float) -> Expectation:
    """The score to expect of a summed loss, from the trials whose policies the tables know and from the dense model."""
    known = [t for t in trials if t.stage == "search" and t.samples is None and t.score is not None]
    told = [t for t in known if tables.space.contains(t.policy)]
    losses = np.array([0.0, *summed(tables.loss, tables.space.encode([t.policy for t in told]))])
    scores = np.array([dense_score, *(t.score or 0.0 for t in told)])
    order = np.argsort(losses, kind="stable")
    order = order[np.isfinite(losses[order])]
    return Expectation(losses[order], _falling(scores[order]))


@dataclass(frozen=True)
class Expectation:
    """(count,) rising summed losses, in nats, and the scores fitted to them; between them straight lines."""

    losses: Array
    scores: Array

    def __call__(self, loss: float) -> float | None:
        """The expected score; None beyond the largest loss that was tried."""
        if len(self.losses) < 2 or loss > self.losses[-1]:
            return None
        return float(np.interp(loss, self.losses, self.scores))


def _falling(values: Array) -> Array:
    """The nearest falling sequence in least squares, by pooling adjacent violators."""
    blocks: list[tuple[float, int]] = []
    for value in values.tolist():
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (first, m), (second, n) = blocks[-2:]
            blocks[-2:] = [((m * first + n * second) / (m + n), m + n)]
    return np.repeat([mean for mean, _ in blocks], [count for _, count in blocks])


def limits_of(budget: Budget) -> dict[str, float]:
    """Metric -> limit of a resolved budget."""
    return {limit.metric: limit.value for limit in budget}


def as_budget(limits: Mapping[str, float]) -> Budget:
    """A resolved budget of metric -> limit in SI units."""
    return Budget(tuple(Limit(metric, value) for metric, value in limits.items()))
