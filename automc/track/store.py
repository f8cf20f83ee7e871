"""What MLflow is told of a search, in steps that may be tried again after a failure. Runs in the helper process."""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from automc import registry
from automc.devices.device import device_path
from automc.result import Summary
from automc.rundir import RunDir
from automc.tables import Tables
from automc.track.children import children, write_child, write_training
from automc.track.models import log_models
from automc.track.record import StepMetrics, summary_metrics, trial_table
from automc.trial import Cost, Trial

__all__ = ["Store", "now_ms"]

_FILES = ("config.yaml", "front.json", "report.html", "summary.json", "tables.json", "trainings.json", "trials.jsonl")
_MOST_CHILDREN = 50_000


class Store:
    """What MLflow should hold of one search, and how much of it MLflow holds. Each step may be tried again.

    Args:
        mlflow: the module mlflow, which only mlflow.py imports.
        opened: {"uri", "experiment", "run_name", "run_id", "trials", "register"}; a run_id to go on with, or None; which trials
            get nested runs; the name to register the best models under, or None.
        emit: told of the MLflow run once it is known.
    """

    def __init__(self, mlflow: Any, opened: Mapping[str, Any], emit: Callable[[Mapping[str, Any]], None]) -> None:
        self._mlflow = mlflow
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=opened["uri"])
        self._opened = opened
        self._emit = emit
        self._begun: Mapping[str, Any] = {}
        self._begun_logged = False
        self._steps: StepMetrics | None = None
        self._trials: dict[int, tuple[Trial, int]] = {}
        self._logged: set[int] = set()
        self._finish: Mapping[str, Any] | None = None
        self._children: set[str] = set()

    def add(self, message: Mapping[str, Any]) -> None:
        """Take one message of the parent's."""
        kind = message["kind"]
        if kind == "start":
            self._begun, self._begun_logged = message, False
        elif kind == "reference":
            self._steps = StepMetrics(Cost.from_json(message["cost"]), message["score"], message["limits"])
        elif kind == "trial":
            trial = Trial.from_json(message["trial"])
            self._trials.setdefault(trial.number, (trial, message["time_ms"]))
        elif kind == "finish":
            self._finish = message

    @cached_property
    def _experiment_id(self) -> str:
        name = self._opened["experiment"]
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    @cached_property
    def _run_id(self) -> str:
        run_id = self._opened["run_id"]
        if run_id is not None and self._is_active(run_id):
            self._client.update_run(run_id, status="RUNNING")
        else:
            run = self._client.create_run(self._experiment_id, run_name=self._opened["run_name"])
            run_id = run.info.run_id
        server = self._opened["uri"].rstrip("/")
        page = f"{server}/#/experiments/{self._experiment_id}/runs/{run_id}" if server.startswith("http") else None
        self._emit({"event": "run", "run_id": run_id, "url": page})
        return str(run_id)

    def _is_active(self, run_id: str) -> bool:
        """Whether the store still has that run of the experiment: a person may have deleted it."""
        found = self._client.search_runs([self._experiment_id], f"attributes.run_id = '{run_id}'")
        return len(found) == 1

    def sync(self) -> None:
        """Tell MLflow what it does not hold yet."""
        run_id = self._run_id
        if self._begun and not self._begun_logged:
            self._log_params(run_id, self._begun["params"])
            self._log_tags(run_id, {**_commit(), **self._begun["tags"]})
            self._begun_logged = True
        self._log_trials(run_id)

    def finish(self) -> None:
        """Record the outcome, or that the search was killed when none came."""
        self.sync()
        message = self._finish or {"summary": None, "run_dir": None, "status": "KILLED"}
        folder = Path(message["run_dir"]) if message["run_dir"] else None
        summary = Summary.from_json(message["summary"]) if message["summary"] else None
        if summary is not None:
            self._log_metrics(self._run_id, summary_metrics(summary))
            tables = RunDir(folder).tables() if folder is not None else None
            self._log_tags(self._run_id, _summary_tags(summary, tables, self._run_id))
            self._log_children(summary, RunDir(folder).trainings() if folder else [])
        if folder is not None:
            self._log_files(folder, summary)
        if folder is not None and summary is not None:
            register = self._opened["register"]
            log_models(self._mlflow, self._client, self._run_id, self._opened["uri"], summary, folder, register)
        self._client.set_terminated(self._run_id, message["status"])

    def _log_trials(self, run_id: str) -> None:
        new = [number for number in self._trials if number not in self._logged]
        if self._steps is None or not new:
            return
        metrics = []
        for number in new:
            trial, time_ms = self._trials[number]
            metrics += [
                self._entities.Metric(k, v, time_ms, number)
                for k, v in self._steps.add(trial).items()
                if math.isfinite(v)
            ]
        for chunk in _chunks(metrics, 500):
            self._client.log_batch(run_id, metrics=chunk)
        self._logged.update(new)

    def _log_metrics(self, run_id: str, values: Mapping[str, float]) -> None:
        now = now_ms()
        self._client.log_batch(
            run_id, metrics=[self._entities.Metric(k, v, now, 0) for k, v in values.items() if math.isfinite(v)]
        )

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Parameters that the run has already stay as they are: MLflow refuses to change one."""
        known = self._client.get_run(run_id).data.params
        new = [self._entities.Param(name, value[:6000]) for name, value in params.items() if name not in known]
        for chunk in _chunks(new, 100):
            self._client.log_batch(run_id, params=chunk)

    def _log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._client.log_batch(run_id, tags=[self._entities.RunTag(name, value[:5000]) for name, value in tags.items()])

    def _log_children(self, summary: Summary, trainings: Sequence[Mapping[str, Any]]) -> None:
        parent = f"tags.`mlflow.parentRunId` = '{self._run_id}'"
        found = self._client.search_runs([self._experiment_id], parent, max_results=_MOST_CHILDREN)
        known = {child.info.run_name: child.info.run_id for child in found}
        for child in children(summary, self._all_trials(), self._opened["trials"]):
            name = child.name
            if name not in known or name not in self._children:
                write_child(self._mlflow, self._client, self._experiment_id, self._run_id, child, known.get(name))
                self._children.add(name)
        for number, training in enumerate(trainings):
            if (name := f"training {number}") not in known:
                write_training(self._mlflow, self._client, self._experiment_id, self._run_id, name, training)

    def _all_trials(self) -> list[Trial]:
        return [trial for trial, _ in sorted(self._trials.values(), key=lambda pair: pair[0].number)]

    def _log_files(self, folder: Path, summary: Summary | None) -> None:
        trials = self._all_trials()
        self._log_table(trials)
        for name in _FILES:
            if (folder / name).exists():
                self._client.log_artifact(self._run_id, str(folder / name))
        for name in ("best", "models"):
            if (folder / name).is_dir():
                self._client.log_artifacts(self._run_id, str(folder / name), name)
        profile = device_path(str(RunDir(folder).config().get("device_key")))
        if profile.is_file():
            self._client.log_artifact(self._run_id, str(profile), "device")
        if summary is not None:
            self._log_figures(summary, trials)

    def _log_table(self, trials: list[Trial]) -> None:
        columns = trial_table(trials)
        if any(file.path == "trials.json" for file in self._client.list_artifacts(self._run_id)):
            rows = list(zip(*columns.values(), strict=True))  # log_table would append to the table of the run resumed
            self._client.log_dict(self._run_id, {"columns": list(columns), "data": rows}, "trials.json")
        else:
            self._client.log_table(self._run_id, columns, "trials.json")

    def _log_figures(self, summary: Summary, trials: list[Trial]) -> None:
        figures = registry.load("figures", "plotly")
        page = figures.pareto(summary, trials).to_html(include_plotlyjs=True, full_html=True)
        self._client.log_text(self._run_id, page, "front.html")
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder, "front.png")
            picture.write_bytes(figures.pareto_png(summary, trials))
            self._client.log_artifact(self._run_id, str(picture))


def _summary_tags(summary: Summary, tables: Tables | None, run_id: str) -> dict[str, str]:
    tags = {
        "model": summary.model,
        "device": summary.device,
        "agent": summary.agent,
        "budget": " and ".join(summary.budget),
    }
    if summary.best is not None:
        tags["best_policy"] = summary.best.policy.digest
    note = registry.load("figures", "plotly").note(summary, tables, run_id)
    tags["mlflow.note.content"] = note  # the description on the run's page
    return {**tags, "budget_held": str(summary.best is not None).lower()}


def _commit() -> dict[str, str]:
    """The git commit that the search was started in, under MLflow's own name for it; nothing outside of a repository."""
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"mlflow.source.git.commit": asked.stdout.strip()} if asked.returncode == 0 else {}


def _chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return int(1000 * time.time())
