"""The tracker that records a search in MLflow: one run per search, nested ones for its front and finalists, its best models.

    mlflow ui --backend-store-uri sqlite:///mlflow.db

MLflow lives in a helper process (see worker.py): importing it takes 3 s and a new database 5 s more, which pass while the
device is being profiled. Nothing that goes wrong there stops a search. The run's folder holds all that MLflow is told,
with mlflow.json saying whether MLflow has it; `automc track --run NAME` makes good what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from automc.disk import write_atomic
from automc.errors import DiskError, InputError, MissingError
from automc.protocols import Status
from automc.recipe import RecordedTrials
from automc.result import Summary
from automc.rundir import RunDir
from automc.track.store import Store, now_ms
from automc.track.worker import Message, Parent, Worker
from automc.trial import Cost, Trial

__all__ = [
    "MARKER",
    "MLflowTracker",
    "download",
    "recorded_as",
    "track_command",
    "tracking_uri",
    "ui_command",
    "upload",
]

MARKER = "mlflow.json"
_RETRY_S = 15.0
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def tracking_uri(uri: str | None = None) -> str:
    """Where to record: what is given, else MLFLOW_TRACKING_URI, else mlflow.db in the current folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def ui_command(uri: str) -> str:
    """What a person does to look at the record: a command, or the address of a server that already runs."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def track_command(run_dir: Path) -> str:
    """What uploads a run that MLflow lacks."""
    runs = [] if run_dir.parent == Path("runs") else ["--runs", str(run_dir.parent)]
    return shlex.join(["automc", "track", "--run", run_dir.name, *runs])


class MLflowTracker:
    """Records one search. Every method but `close` returns at once.

    Args:
        experiment: the MLflow experiment; the model's name.
        run_name: the parent run's name; that of the run folder.
        uri: see `tracking_uri`.
        run_dir: the run folder; a rerun in it goes on with the same MLflow run.
        trials: which trials get a nested run besides the finalists: those of the "front", or "all".
        register: name in MLflow's model registry for the best models, with the aliases `best` and `knee`; None registers none.
        on_warning: told, once, when MLflow cannot be written, and at the end if it lacks something. Called from another thread.
    """

    def __init__(
        self,
        experiment: str,
        run_name: str,
        uri: str | None = None,
        *,
        run_dir: Path | None = None,
        trials: RecordedTrials = "front",
        register: str | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        self.uri = tracking_uri(uri)
        self.run_id: str | None = None
        self.run_url: str | None = None
        self._run_dir = run_dir
        self._warn = on_warning or logging.getLogger("automc").warning
        asked = {"trials": trials, "register": register}
        self._begun: dict[str, Any] = {"experiment": experiment, "params": {}, "tags": {}, **asked}
        self._recorded = False
        self._worker = Worker("automc.track.mlflow", self._on_event, _ENVIRONMENT)
        known = _marker(run_dir) if run_dir else {}
        run_id = known.get("run_id") if known.get("uri") == _absolute(self.uri) else None
        self._worker.send(
            {"kind": "open", "uri": self.uri, "experiment": experiment, "run_name": run_name, "run_id": run_id, **asked}
        )

    def start(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """The search begins: its settings, and what to find it by."""
        self._begun |= {"params": {name: _text(value) for name, value in params.items()}, "tags": dict(tags)}
        self._worker.send({"kind": "start", **self._begun})

    def set_reference(self, cost: Cost, score: float, limits: Mapping[str, float]) -> None:
        """The dense model's cost and score, and the resolved budget (metric -> limit, SI units)."""
        self._worker.send({"kind": "reference", "cost": cost.to_json(), "score": score, "limits": dict(limits)})

    def log(self, trial: Trial) -> None:
        """A trial ended. A trial whose number was logged before is left out."""
        self._worker.send({"kind": "trial", "trial": trial.to_json(), "time_ms": now_ms()})

    def finish(self, summary: Summary | None, run_dir: Path, status: Status = "FINISHED") -> None:
        """The search ended: record the outcome and what it wrote to `run_dir`. `summary` is None when it got not that far."""
        self._run_dir = run_dir
        outcome = summary.to_json() if summary else None
        self._worker.send({"kind": "finish", "summary": outcome, "run_dir": str(run_dir.absolute()), "status": status})

    def close(self, timeout_s: float = 60.0) -> bool:
        """Wait until everything is recorded, for at most `timeout_s`; whether it is. A run without `finish` ends as killed."""
        ended = self._worker.close(timeout_s)
        self._recorded = self._recorded and ended
        self._mark()
        if not self._recorded and self._run_dir:
            self._warn(
                f"MLflow at {self.uri} lacks part of this search; {self._run_dir} has all of it. "
                f"`{track_command(self._run_dir)}` uploads it."
            )
        return self._recorded

    def _on_event(self, event: Message) -> None:
        if event["event"] == "run":
            self.run_id, self.run_url = event["run_id"], event["url"]
            self._mark()
        elif event["event"] == "recorded":
            self._recorded = True
        else:
            self._warn(f"MLflow at {self.uri} cannot be written ({event['text']}). The search goes on without it.")

    def _mark(self) -> None:
        if self._run_dir is None or not self._run_dir.is_dir():
            return
        marker = {"uri": _absolute(self.uri), "run_id": self.run_id, "complete": self._recorded, **self._begun}
        try:
            write_atomic(self._run_dir / MARKER, json.dumps(marker, indent=1) + "\n")
        except DiskError as error:
            self._warn(str(error))


def upload(
    run: RunDir,
    uri: str | None = None,
    *,
    trials: RecordedTrials | None = None,
    register: str | None = None,
    on_warning: Callable[[str], None] | None = None,
    timeout_s: float = 300.0,
) -> bool:
    """Record in MLflow a search that is on disk, or the part of it that MLflow lacks. Whether it is all there now.

    `trials` and `register` are as of `MLflowTracker`; None takes what the search was asked for.

    Raises:
        InputError: the run is damaged.
    """
    marker = _marker(run.path)
    target = uri or marker.get("uri") or tracking_uri()
    summary = run.summary() if (run.path / "summary.json").exists() else None
    experiment = marker.get("experiment") or (summary.model if summary else "automc")
    tracker = MLflowTracker(
        experiment, run.name, target, run_dir=run.path, trials=trials or marker.get("trials") or "front",
        register=register or marker.get("register"), on_warning=on_warning,
    )  # fmt: skip
    tracker.start(marker.get("params") or run.config(), marker.get("tags") or {})
    if summary is not None:
        tracker.set_reference(summary.dense.cost, summary.dense.validation, summary.limits)
    for trial in run.trials():
        tracker.log(trial)
    tracker.finish(summary, run.path, "FINISHED" if summary else "KILLED")
    return tracker.close(timeout_s)


def recorded_as(run: RunDir) -> tuple[str, str]:
    """(MLflow run id, store) of a run that was recorded.

    Raises:
        InputError: it was not recorded in MLflow.
    """
    marker = _marker(run.path)
    if not marker.get("run_id"):
        raise InputError(f"The run {run.name!r} was not recorded in MLflow.", remedy=f"`{track_command(run.path)}`.")
    return marker["run_id"], marker["uri"]


def download(run_id: str, folder: Path, uri: str | None = None) -> RunDir:
    """Fetch the record of a search from MLflow into `folder`, as the search left it on disk.

    Raises:
        InputError: there is no such run, or it holds no finished search.
        MissingError: the server does not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    target = tracking_uri(uri)
    try:
        client = mlflow.MlflowClient(tracking_uri=target)
        found = client.get_run(run_id)
        held = {file.path for file in client.list_artifacts(run_id)}
        for name in sorted(held & _RECORD):
            mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=name, dst_path=str(folder), tracking_uri=target
            )
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise InputError(
                f"MLflow at {target} has no run {run_id!r}.", remedy="Copy the id from its page."
            ) from error
        raise MissingError(f"MLflow at {target} cannot be read: {_first_line(error)}.", remedy="Start it.") from error
    if "summary.json" not in held:
        name = found.info.run_name
        raise InputError(
            f"The MLflow run {name!r} holds no finished search.", remedy="Choose the parent run of a search."
        )
    return RunDir(folder)


_RECORD = {"best", "config.yaml", "front.json", "models", "summary.json", "tables.json", "trials.jsonl"}


def _absolute(uri: str) -> str:
    """The same store, wherever one stands: a relative sqlite path is taken from the current folder."""
    scheme, separator, path = uri.partition(":///")
    return f"{scheme}{separator}{Path(path).absolute()}" if scheme == "sqlite" and separator else uri


def _marker(folder: Path) -> dict[str, Any]:
    path = folder / MARKER
    try:
        data = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}).", remedy="Delete it; MLflow then gets a new run.") from error
    return dict(data)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


class _Attempts:
    """Runs steps that may fail: tells the first failure, and leaves the store alone for a while after each."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._told = False
        self._not_before = 0.0

    def run(self, step: Callable[[], None], *, now: bool = False) -> bool:
        """Whether `step` was run and succeeded; it is not run soon after a failure unless `now`."""
        if time.monotonic() < self._not_before and not now:
            return False
        try:
            step()
        except Exception as error:  # whatever it is, the search goes on
            logging.getLogger("automc").exception("MLflow")
            self._not_before = time.monotonic() + _RETRY_S
            if not self._told:
                self._parent.emit({"event": "warning", "text": _first_line(error)})
            self._told = True
            return False
        return True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _serve() -> None:
    """The helper process: takes what the parent sends, tells MLflow, and once the parent is done tries what failed again."""
    parent = Parent()
    import mlflow

    attempts = _Attempts(parent)
    store: Store | None = None
    recorded = False
    for batch in parent.incoming():
        for message in batch:
            if message["kind"] == "open":
                store = Store(mlflow, message, parent.emit)
            elif store is not None:
                store.add(message)
        if store is not None:
            ended = any(message["kind"] == "finish" for message in batch)
            recorded = attempts.run(store.finish, now=True) if ended else attempts.run(store.sync) and False
    if store is not None and (recorded or attempts.run(store.finish, now=True)):
        parent.emit({"event": "recorded"})


if __name__ == "__main__":
    _serve()
