"""What a tracker is told of a search, as flat names and numbers in human units. No tracker's library is needed here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from automc.budget import Budget, Limit
from automc.pareto import dominated_share, front
from automc.policy import Policy
from automc.result import Finalist, Summary
from automc.trial import Cost, Trial
from automc.units import METRICS

__all__ = ["StepMetrics", "cost_metrics", "finalist_metrics", "policy_params", "summary_metrics", "trial_table"]

_SCALE = {"latency_s": ("latency_ms", 1e3), "energy_j": ("energy_mj", 1e3)}


@dataclass
class StepMetrics:
    """How far a search has come after each trial: the best score within the budget, the size of the front, and the pace.

    Attributes:
        limits: the resolved budget, metric -> limit in SI units; the front is that of its first metric.
    """

    dense: Cost
    dense_score: float
    limits: Mapping[str, float]
    best: float | None = None
    _front: list[Trial] = field(default_factory=list)
    _evaluated: int = 0
    _seconds: float = 0.0
    _until: float = 0.0
    _predicted_s: dict[str, float] = field(default_factory=dict)

    def add(self, trial: Trial) -> dict[str, float]:
        """The step metrics of one more trial."""
        metric = next(iter(self.limits), "latency_s")
        self._front = front([*self._front, trial], (metric,))
        metrics = cost_metrics(trial.cost)
        if trial.stage == "search" and trial.seconds > 0:
            metrics["evaluations_per_second"] = self._pace(trial)
        error = self._error(trial)
        if error is not None:
            metrics["predictor_error"] = error
        if trial.score is not None:
            metrics["score"] = trial.score
            if trial.worth is not None:
                metrics["worth"] = trial.worth
            if self.budget.holds(trial.cost):
                self.best = trial.score if self.best is None else max(self.best, trial.score)
        if self.best is not None:
            metrics["best_score_in_budget"] = self.best
        dense_cost = self.dense.get(metric)
        if dense_cost:
            metrics["hypervolume"] = dominated_share(self._front, metric, (dense_cost, self.dense_score))
        return metrics

    def _error(self, trial: Trial) -> float | None:
        """How far the latency of a measured policy was from what its trial was priced at, as a fraction; None of others."""
        digest, latency_s = trial.policy.digest, trial.cost.latency_s
        if latency_s and trial.cost.source.get("latency_s") != "measured":
            self._predicted_s[digest] = latency_s
            return None
        predicted_s = self._predicted_s.get(digest)
        return abs(predicted_s / latency_s - 1.0) if predicted_s and latency_s else None

    def _pace(self, trial: Trial) -> float:
        """Evaluations per second of the time in which at least one worker evaluated: breaks of a resumed search do not count."""
        self._evaluated += 1
        ended = self._until + trial.seconds if trial.ended is None else trial.ended
        self._seconds += max(0.0, ended - max(self._until, ended - trial.seconds))
        self._until = max(self._until, ended)
        return self._evaluated / self._seconds

    @property
    def budget(self) -> Budget:
        """The limits as a budget; latency where the search has none."""
        limits = self.limits or {"latency_s": float("inf")}
        return Budget(tuple(Limit(metric, value) for metric, value in limits.items()))


def cost_metrics(cost: Cost, prefix: str = "") -> dict[str, float]:
    """{"latency_ms": .., "size_bytes": .., "macs": .., "energy_mj": ..}, unknown figures left out."""
    metrics = {}
    for metric in METRICS:
        value = cost.get(metric)
        if value is not None:
            name, scale = _SCALE.get(metric, (metric, 1.0))
            metrics[prefix + name] = value * scale
    return metrics


def finalist_metrics(finalist: Finalist, prefix: str = "") -> dict[str, float]:
    """A measured model: its cost, the interval of its latency, the prediction, and its scores before and after recovery."""
    low, high = finalist.cost.latency_interval_s or (None, None)
    before = finalist.before_recovery or (None, None)
    figures = {
        "latency_low_ms": _ms(low),
        "latency_high_ms": _ms(high),
        "predicted_latency_ms": _ms(finalist.predicted_latency_s),
        "validation_score": finalist.validation,
        "test_score": finalist.test,
        "validation_score_before_recovery": before[0],
        "test_score_before_recovery": before[1],
        "holds_budget": float(finalist.holds),
    }
    known = {prefix + name: value for name, value in figures.items() if value is not None}
    return {**cost_metrics(finalist.cost, prefix), **known}


def summary_metrics(summary: Summary) -> dict[str, float]:
    """The outcome of a search: the dense model, the winner, the predictor's errors and where the time went."""
    metrics = finalist_metrics(summary.dense, "dense/")
    if summary.best is not None:
        metrics |= finalist_metrics(summary.best, "best/")
    if summary.best is not None and summary.best.cost.latency_s and summary.dense.cost.latency_s:
        metrics["speedup"] = summary.dense.cost.latency_s / summary.best.cost.latency_s
    predictor = summary.predictor
    metrics |= {
        "predictor/noise_floor": predictor.noise_floor,
        "predictor/coverage": predictor.coverage,
        "trials": float(summary.trials),
        "seconds/in_all": sum(summary.seconds.values()),
    }
    if predictor.mape is not None:
        metrics["predictor/mape"] = predictor.mape
    if predictor.kernel_mape is not None:
        metrics["predictor/kernel_mape"] = predictor.kernel_mape
    return metrics | {f"seconds/{stage}": seconds for stage, seconds in summary.seconds.items()}


def policy_params(policy: Policy) -> dict[str, str]:
    """{"layer1.0.conv1/prune": "keep 8", ..}: one entry per choice, in characters that every tracker takes."""
    return {re.sub(r"[^\w\-. :/]", "_", f"{target}/{spec.knob}"): spec.label for target, spec in policy}


def trial_table(trials: Iterable[Trial]) -> dict[str, list[Any]]:
    """Columns of equal length, one entry per trial."""
    rows = list(trials)
    columns: dict[str, list[Any]] = {
        "number": [t.number for t in rows],
        "stage": [t.stage for t in rows],
        "state": [t.state for t in rows],
        "score": [t.score for t in rows],
    }
    costs = [cost_metrics(t.cost) for t in rows]
    for name in dict.fromkeys(name for cost in costs for name in cost):
        columns[name] = [cost.get(name) for cost in costs]
    columns["reason"] = [t.reason for t in rows]
    columns["digest"] = [t.policy.digest for t in rows]
    columns["policy"] = [json.dumps(t.policy.to_json()["choices"]) for t in rows]
    return columns


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
