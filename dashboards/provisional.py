"""A run as the figures want it, whether its search has ended or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from automc.budget import Budget, Limit
from automc.errors import InputError
from automc.progress import Progress, Reference
from automc.result import Finalist, PredictorReport, Summary
from automc.rundir import RunDir
from automc.tables import Tables
from automc.trial import Trial

__all__ = ["Shown", "read"]


@dataclass(frozen=True)
class Shown:
    """What is on disk of a run. `summary` is made up from what is known so far unless `finished`; None before that."""

    run: RunDir
    summary: Summary | None
    trials: list[Trial]
    progress: Progress | None
    tables: Tables | None
    finished: bool

    @property
    def state(self) -> str:
        """A word or two for the list of runs."""
        if self.progress is not None and self.progress.running:
            return "running"
        if not self.finished:
            return "stopped"
        return "finished" if self.summary is not None and self.summary.best else "budget not reached"


def read(run: RunDir) -> Shown:
    """Read a run.

    Raises:
        InputError: its record is damaged.
    """
    trials, progress = run.trials(), run.progress()
    running = progress is not None and progress.running
    finished = (run.path / "summary.json").is_file() and not running
    summary = run.summary() if finished else None
    if summary is None and progress is not None and progress.reference is not None:
        summary = _so_far(run, trials, progress.reference)
    return Shown(run, summary, trials, progress, run.tables(), finished)


def _so_far(run: RunDir, trials: Sequence[Trial], reference: Reference) -> Summary:
    config = run.config()
    budget = Budget(tuple(Limit(metric, value) for metric, value in reference.limits.items()))
    finalists = tuple(_finalist(t, budget) for t in trials if t.stage != "search" and t.state == "complete")
    holding = [finalist for finalist in finalists if finalist.holds]
    return Summary(
        name=run.name,
        model=str(config.get("model") or "demo"),
        device=str(config.get("device", "")),
        agent=str(config.get("agent", "")),
        seed=int(config.get("seed", 0)),
        score_name=reference.score_name,
        batch_size=int(config.get("batch_size") or 1),
        budget=tuple(config.get("budget", ())),
        limits=reference.limits,
        dense=reference.dense,
        best=max(holding, key=lambda f: f.validation, default=None),
        smallest=min(finalists, key=lambda f: budget.violation(f.cost), default=None),
        finalists=finalists,
        predictor=PredictorReport(math.nan, math.nan, math.nan, 0, 0, math.nan),
        trials=len(trials),
        dense_meets_budget=reference.dense.holds,
        left_alone=(),
        seconds={},
    )


def _finalist(trial: Trial, budget: Budget) -> Finalist:
    if trial.score is None:
        raise InputError(f"Trial {trial.number} is complete without a score.", remedy="Choose another run.")
    stage: Literal["finalist", "recovered"] = "recovered" if trial.stage == "recovered" else "finalist"
    return Finalist(trial.policy, trial.cost, None, trial.score, None, budget.holds(trial.cost), stage)
