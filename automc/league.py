"""Agents compared at equal evaluations and equal seeds: what each reached, how fast, and at what price of its own.

Hypervolume after Zitzler and Thiele 1999; "evaluations to 99 % of the best" counts until the best score inside the budget is
within a hundredth of the best that any agent won with.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from automc.budget import Budget
from automc.pareto import dominated_share
from automc.trial import Trial
from automc.units import format_quantity
from automc.wording import NOTHING, is_share

__all__ = ["Course", "League", "Recovered", "Row"]

_NEAR = 0.01


@dataclass(frozen=True)
class Course:
    """One search of one agent: its trials in the order of evaluation, and the CPU seconds that it took itself.

    `reason` says why it ended before its evaluations were used up, "" where it did not.
    """

    agent: str
    seed: int
    trials: tuple[Trial, ...]
    agent_s: float
    reason: str = ""


@dataclass(frozen=True)
class Recovered:
    """A winner on samples that served neither search nor calibration, before and after fine-tuning; None without it.

    Attributes:
        before, after: scores.
        away, away_after: divergence from the dense model, which tells models apart that a few hundred samples score the same.
    """

    before: float
    after: float | None = None
    away: float | None = None
    away_after: float | None = None

    def to_json(self) -> dict[str, float]:
        """What is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Row:
    """An agent's line in the table. Scores are of the policy inside the budget that is worth most, over the seeds.

    Attributes:
        mean, std, best: None where no seed found a policy inside the budget.
        worth: mean worth of the winners, which is what they are the best in; their mean score where that is all there is.
        hypervolume: mean share of the box between nothing and the dense model that the front dominates.
        evaluations_to_near: median over the seeds that got within a hundredth of the best of all; None where none did.
        near: how many seeds did.
        inside: mean share of the trials inside the budget.
        agent_s: its own CPU seconds per evaluated policy.
        recovered_before, recovered_after: mean scores of the winners on held-out samples; None where they were not recovered.
        away_before, away_after: mean divergence from the dense model there.
    """

    agent: str
    seeds: int
    evaluations: float
    worth: float | None
    mean: float | None
    std: float | None
    best: float | None
    hypervolume: float
    evaluations_to_near: float | None
    near: int
    inside: float
    agent_s: float
    recovered_before: float | None = None
    recovered_after: float | None = None
    away_before: float | None = None
    away_after: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class League:
    """All courses of a comparison.

    Attributes:
        budget: resolved; costs are compared by their expected value, as agents see them.
        dense: (cost in the first limited metric, score) of the dense model.
        recovered: policy digest -> scores of the winners that were fine-tuned.
    """

    courses: Sequence[Course]
    budget: Budget
    dense: tuple[float, float]
    recovered: Mapping[str, Recovered]

    def rows(self) -> list[Row]:
        """One per agent, those first whose winners are worth most."""
        agents = dict.fromkeys(course.agent for course in self.courses)
        rows = [self._row(agent, [c for c in self.courses if c.agent == agent]) for agent in agents]
        return sorted(rows, key=lambda row: (row.worth is None, -(row.worth or 0.0), -row.hypervolume))

    def winner(self, course: Course) -> Trial | None:
        """What is worth most inside the budget; the first of equals."""
        return max((t for t in course.trials if self.holds(t)), key=lambda t: t.merit, default=None)

    def holds(self, trial: Trial) -> bool:
        """Whether a scored trial is expected to hold the budget."""
        return trial.score is not None and self.budget.holds(replace(trial.cost, latency_interval_s=None))

    def progress(self, agent: str) -> list[tuple[float, float]]:
        """(evaluations, best score inside the budget so far, mean over the seeds), from where every seed has one."""
        runs = [self._best_so_far(course) for course in self.courses if course.agent == agent]
        length = min(map(len, runs), default=0)
        columns = [[run[i] for run in runs] for i in range(length)]
        return [(i + 1.0, statistics.fmean(c)) for i, column in enumerate(columns) if (c := _known(column)) is not None]

    def markdown(self, score_name: str) -> str:
        """The table as people read it."""
        rows, percent = self.rows(), is_share(score_name)
        cells = [_cells(row, percent=percent) for row in rows]
        held = any(row.recovered_before is not None for row in rows)
        tuned = any(row.recovered_after is not None for row in rows)
        heads = _HEADS[: len(_HEADS) - 4 + 2 * held + 2 * tuned]
        lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
        return "\n".join([*lines, *(f"| {' | '.join(row[: len(heads)])} |" for row in cells)]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Rows, and what each course reached."""
        courses = [
            {"agent": c.agent, "seed": c.seed, "evaluations": len(c.trials), "reason": c.reason, "agent_s": c.agent_s}
            | {"winner": w.policy.digest if (w := self.winner(c)) else None, "score": w.score if w else None}
            for c in self.courses
        ]
        limits = {limit.metric: limit.value for limit in self.budget}
        return {"limits": limits, "rows": [asdict(row) for row in self.rows()], "courses": courses}

    def _row(self, agent: str, courses: Sequence[Course]) -> Row:
        winners = [w for c in courses if (w := self.winner(c)) is not None]
        scores = [w.score or 0.0 for w in winners]
        near = [count for c in courses if (count := self._evaluations_to(c, self._good)) is not None]
        trials = [t for c in courses for t in c.trials]
        recovered = [self.recovered[w.policy.digest] for w in winners if w.policy.digest in self.recovered]
        return Row(
            agent=agent,
            seeds=len(courses),
            evaluations=statistics.fmean(len(c.trials) for c in courses),
            worth=statistics.fmean(w.merit for w in winners) if winners else None,
            mean=statistics.fmean(scores) if scores else None,
            std=statistics.stdev(scores) if len(scores) > 1 else 0.0 if scores else None,
            best=max(scores, default=None),
            hypervolume=statistics.fmean(
                dominated_share(c.trials, self.budget.metrics[0], self.dense) for c in courses
            ),
            evaluations_to_near=statistics.median(near) if near else None,
            near=len(near),
            inside=sum(map(self.holds, trials)) / max(1, len(trials)),
            agent_s=sum(c.agent_s for c in courses) / max(1, len(trials)),
            recovered_before=_mean([r.before for r in recovered]),
            recovered_after=_mean([r.after for r in recovered]),
            away_before=_mean([r.away for r in recovered]),
            away_after=_mean([r.away_after for r in recovered]),
            reason="; ".join(dict.fromkeys(c.reason for c in courses if c.reason)),
        )

    @cached_property
    def _good(self) -> float:
        """A hundredth below the best score of the winners; infinite where there is none."""
        best = max((w.score or 0.0 for c in self.courses if (w := self.winner(c))), default=None)
        return float("inf") if best is None else best - _NEAR * abs(best)

    def _evaluations_to(self, course: Course, score: float) -> int | None:
        return next((i for i, t in enumerate(course.trials, 1) if self.holds(t) and (t.score or 0.0) >= score), None)

    def _best_so_far(self, course: Course) -> list[float | None]:
        best: float | None = None
        steps = []
        for trial in course.trials:
            if self.holds(trial) and (best is None or (trial.score or 0.0) > best):
                best = trial.score
            steps.append(best)
        return steps


_HEADS = (
    "agent", "worth", "mean", "std", "best", "hypervolume", "evaluations to 99 % of the best", "inside the budget", "evaluations",
    "own time per policy", "held out, before recovery", "divergence from dense", "after recovery", "divergence from dense",
)  # fmt: skip


def _known(values: Sequence[float | None]) -> list[float] | None:
    found = [value for value in values if value is not None]
    return found if len(found) == len(values) else None


def _cells(row: Row, *, percent: bool) -> list[str]:
    near = NOTHING if row.evaluations_to_near is None else f"{row.evaluations_to_near:.0f}"
    return [
        row.agent + (f" ({row.reason})" if row.reason else ""),
        _score(row.worth, percent=percent),
        _score(row.mean, percent=percent),
        _score(row.std, percent=percent),
        _score(row.best, percent=percent),
        f"{row.hypervolume:.3f}",
        near if row.near in (0, row.seeds) else f"{near} ({row.near} of {row.seeds})",
        f"{100 * row.inside:.0f} %",
        f"{row.evaluations:.0f}",
        format_quantity("latency_s", row.agent_s),
        _score(row.recovered_before, percent=percent),
        _score(row.away_before, percent=False),
        _score(row.recovered_after, percent=percent),
        _score(row.away_after, percent=False),
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None where there is none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _score(value: float | None, *, percent: bool) -> str:
    if value is None:
        return NOTHING
    return f"{100 * value:.2f}" if percent else f"{value:.4g}"
