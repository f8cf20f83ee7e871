"""Nested runs: the measured models, the front or every trial, so that MLflow's own compare and scatter views have rows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from automc.pareto import front
from automc.policy import Policy
from automc.recipe import RecordedTrials
from automc.result import Summary
from automc.track.record import cost_metrics, finalist_metrics, policy_params
from automc.trial import Trial

__all__ = ["Child", "children", "write_child", "write_training"]


@dataclass(frozen=True)
class Child:
    """One nested run; `name` is unique within its parent."""

    name: str
    tags: Mapping[str, str]
    policy: Policy
    metrics: Mapping[str, float]


def children(summary: Summary, trials: Sequence[Trial], which: RecordedTrials) -> Iterator[Child]:
    """The measured models, then the trials of the front, or all trials that were not measured."""
    for finalist in summary.finalists:
        name = f"{finalist.stage} {finalist.policy.digest[:8]}"
        tags = {"stage": finalist.stage, "winner": str(finalist == summary.best).lower()}
        yield Child(name, tags, finalist.policy, finalist_metrics(finalist))
    searched = [trial for trial in trials if trial.stage == "search"]
    metrics = tuple(summary.limits) or ("latency_s",)
    for trial in searched if which == "all" else front(searched, metrics):
        scored = {} if trial.score is None else {"validation_score": trial.score}
        tags = {"stage": "search", "state": trial.state, "winner": "false"}
        yield Child(f"trial {trial.number}", tags, trial.policy, {**cost_metrics(trial.cost), **scored})


def write_child(mlflow: Any, client: Any, experiment_id: str, parent_id: str, child: Child, known: str | None) -> None:
    """Write a nested run, or write the one called `known` anew; in few requests, for there may be thousands."""
    tags = {"mlflow.parentRunId": parent_id, "digest": child.policy.digest, **child.tags}
    run_id = known or client.create_run(experiment_id, tags=tags, run_name=child.name).info.run_id
    entities, now = mlflow.entities, int(1000 * time.time())
    old = client.get_run(run_id).data.params if known else {}
    params = [entities.Param(k, v[:6000]) for k, v in policy_params(child.policy).items() if k not in old]
    metrics = [entities.Metric(k, v, now, 0) for k, v in child.metrics.items() if math.isfinite(v)]
    client.log_batch(run_id, metrics=metrics, params=params[:100], tags=[entities.RunTag(*pair) for pair in tags.items()])  # fmt: skip
    for start in range(100, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    if child.tags["stage"] != "search":  # of the others, the table of trials has the policy
        client.log_dict(run_id, child.policy.to_json(), "policy.json")
    client.set_terminated(run_id)


def write_training(
    mlflow: Any, client: Any, experiment_id: str, parent_id: str, name: str, training: Mapping[str, Any]
) -> None:
    """Write a nested run of one fine-tuning: its choices, and a curve of each figure with a step a round."""
    tags = {"mlflow.parentRunId": parent_id, "stage": "training", "winner": "false", "digest": training["policy"]}
    entities, now = mlflow.entities, int(1000 * time.time())
    params = [entities.Param(key, str(value)) for key, value in training["choices"].items()]
    metrics = [
        entities.Metric(key, value, now, int(row["round"]))
        for row in training["history"]
        for key, value in row.items()
        if key != "round" and math.isfinite(value)
    ]
    run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    client.log_batch(run_id, params=params)
    for start in range(0, len(metrics), 500):
        client.log_batch(run_id, metrics=metrics[start : start + 500])
    client.set_terminated(run_id)
