"""One run with its record: load what the job names, drive the engine, write the run directory, tell the tracker."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from automc import __version__, registry
from automc.budget import Budget
from automc.certify import Certified
from automc.engine import Engine, Settings
from automc.errors import AutomcError, InputError
from automc.evaluate.data import Data
from automc.evaluate.faults import check_inputs, raise_faults
from automc.evaluate.models import load_model, model_digest
from automc.evaluate.task import Score, as_data, load_data, load_score
from automc.export.torch_export import build_pt2
from automc.prepare import Clock, Prepared, prepare
from automc.protocols import Observer
from automc.result import Summary
from automc.rundir import RunDir
from automc.track.mlflow import MLflowTracker
from automc.track.null import NullTracker
from automc.trial import Trial
from automc.units import parse_duration

if TYPE_CHECKING:
    from automc.job import Job

__all__ = ["Run", "Task"]

EVALUATION_BATCH = 64
_LIBRARIES = ("torch", "onnxruntime", "onnx", "torch-pruning", "numpy", "scipy", "scikit-learn", "mlflow")


@dataclass(frozen=True)
class Task:
    """The loaded objects of a job."""

    model: nn.Module
    data: Data
    score: Score
    batch_size: int
    settings: Settings

    @classmethod
    def of(cls, job: Job, model: nn.Module | None = None, data: Any = None, score: Any = None) -> Task:
        from automc.demo.model import BATCH_SIZE

        demo = model is None and job.model is None
        batch_size = job.batch_size or (BATCH_SIZE if demo else 1)
        settings = _settings(job, batch_size)
        _duration(job.profile, "profile")
        loaded = model if model is not None else load_model(job.model, Path(job.weights) if job.weights else None)
        size = max(EVALUATION_BATCH, batch_size)
        chosen = as_data(data, size, job.seed) if data is not None else load_data(job.data, size, job.seed)
        scored = load_score(job.evaluate) if score is None else Score(getattr(score, "__name__", "score"), score)
        raise_faults(check_inputs(loaded, chosen, scored))
        return cls(loaded, chosen, scored, batch_size, settings)


def _settings(job: Job, batch_size: int) -> Settings:
    return Settings(
        budget=Budget.parse(*job.budget),
        agent=job.agent,
        trials=job.trials,
        timeout_s=None if job.timeout is None else _duration(job.timeout, "timeout"),
        seed=job.seed,
        recover_s=_duration(job.recover, "recover"),
        batch_size=batch_size,
    )


def _duration(text: str, option: str) -> float:
    try:
        return parse_duration(text)
    except ValueError:
        raise InputError(f"{option} {text!r} is not a duration.", remedy="Write 90s, 10m or 1h; 0 is off.") from None


class Run:
    """One run with its record. `trials()` is used up once; then `summary` and `best` tell how it ended."""

    def __init__(self, job: Job, task: Task, observer: Observer) -> None:
        self.job, self.task, self.observer = job, task, observer
        self.model_name = _model_name(job, task)
        self.name = job.name or _run_name(self.model_name, job.budget)
        self.summary: Summary | None = None
        self.best: Certified | None = None
        self.device = registry.load("device", job.device)(threads=job.threads)
        registry.load("agent", job.agent)
        registry.load("space", job.space)

    def trials(self) -> Iterator[Trial]:
        folder = RunDir.create(Path(self.job.runs) / self.name, self._config())
        tracker = self._tracker(folder)
        try:
            yield from self._search(folder, tracker)
        except BaseException as error:
            interrupted = isinstance(error, (KeyboardInterrupt, GeneratorExit))
            tracker.finish(None, folder.path, "KILLED" if interrupted else "FAILED")
            raise
        finally:
            tracker.close()
            folder.close()

    def _search(self, folder: RunDir, tracker: MLflowTracker | NullTracker) -> Iterator[Trial]:
        clock = Clock()
        prepared = prepare(
            self.task.model, self.task.data, self.task.score, self.device, batch_size=self.task.batch_size,
            space=self.job.space, seed=self.job.seed, profile_s=_duration(self.job.profile, "profile"), observer=self.observer, clock=clock,
        )  # fmt: skip
        known = folder.trials()
        engine = Engine(prepared, self.task.settings, self.observer, clock, known=known)
        limits = {limit.metric: limit.value for limit in engine.limits}
        tracker.set_reference(engine.dense.cost, engine.dense.validation, limits)
        for trial in known:
            tracker.log(trial)

        def record(trial: Trial) -> None:
            folder.append(trial)
            tracker.log(trial)

        engine.record = record
        try:
            yield from engine.trials()
        finally:
            folder.write_front(folder.trials(), ("latency_s",))
        self.best = engine.best
        self._hand_over(folder, tracker, engine, prepared, clock, limits)

    def _hand_over(
        self,
        folder: RunDir,
        tracker: MLflowTracker | NullTracker,
        engine: Engine,
        prepared: Prepared,
        clock: Clock,
        limits: Mapping[str, float],
    ) -> None:
        """Write the models, the summary and the report, and tell the tracker."""
        clock.start("export")
        self.observer.stage("write the results", None)
        for certified in engine.certified:
            folder.write_model(certified.finalist.policy.digest, certified.onnx)
        if self.best is not None:
            folder.write_best(
                self.best.finalist, self.best.onnx, self.best.certificate,
                model_digest=model_digest(self.task.model), device_digest=self.device.key,
                predicted=prepared.predictor.predict(prepared.space.encode([self.best.finalist.policy]))[0],
                pt2=self._pt2(self.best, prepared),
            )  # fmt: skip
        clock.stop()
        self.summary = self._summary(engine, prepared, clock, limits)
        folder.write_summary(self.summary)
        registry.load("figures", "plotly").write_report(self.summary, folder.trials(), folder.report)
        tracker.finish(self.summary, folder.path, "FINISHED")

    def _pt2(self, best: Certified, prepared: Prepared) -> bytes | None:
        try:
            return build_pt2(best.candidate.model, prepared.example)
        except AutomcError as error:
            self.observer.message(str(error), "warning")
            return None

    def _summary(self, engine: Engine, prepared: Prepared, clock: Clock, limits: Mapping[str, float]) -> Summary:
        smallest = engine.smallest
        return Summary(
            name=self.name,
            model=self.model_name,
            device=self.device.name,
            agent=self.job.agent,
            seed=self.job.seed,
            score_name=self.task.score.name,
            batch_size=self.task.batch_size,
            budget=self.job.budget,
            limits=limits,
            dense=engine.dense,
            best=engine.best.finalist if engine.best else None,
            smallest=smallest.finalist if smallest else None,
            finalists=tuple(c.finalist for c in engine.certified),
            predictor=prepared.predictor.report,
            trials=len(engine.done),
            dense_meets_budget=engine.dense.holds,
            left_alone=tuple((left.name, left.reason) for left in prepared.traced.graph.left_alone),
            seconds=clock.seconds,
            widths=prepared.traced.graph.widths,
        )

    def _tracker(self, folder: RunDir) -> MLflowTracker | NullTracker:
        if self.job.tracking_uri == "":
            return NullTracker()
        tracker = MLflowTracker(
            self.model_name, self.name, self.job.tracking_uri, run_dir=folder.path,
            on_warning=lambda text: self.observer.message(text, "warning"),
        )  # fmt: skip
        tracker.start(self._config(), {"device": self.job.device, "agent": self.job.agent})
        return tracker

    def _config(self) -> dict[str, Any]:
        """What config.yaml holds: the job, what it found, and the versions it ran with."""
        facts = {
            **dataclasses.asdict(self.job),
            "name": self.name,
            "batch_size": self.task.batch_size,
            "model_digest": model_digest(self.task.model),
            "data_digest": self.task.data.digest,
            "device_key": self.device.key,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": {
                "automc": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in _LIBRARIES},
            },
        }
        facts["tracking"] = facts.pop("tracking_uri")
        return facts


def _model_name(job: Job, task: Task) -> str:
    spec = job.model or (type(task.model).__name__ if task.data.name != "digits" else "demo")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", os.path.basename(spec).rpartition(":")[2] or spec)


def _run_name(model: str, budget: Sequence[str]) -> str:
    limits = "-".join(re.sub(r"[^A-Za-z0-9.]+", "pct", text) for text in budget)
    return f"{model}-{limits}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}"
