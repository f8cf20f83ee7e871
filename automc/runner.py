"""One run with its record: load what the job names, drive the engine, write the run directory, tell the tracker."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from automc import __version__, registry
from automc.budget import Budget
from automc.certify import Candidate, Certified
from automc.clock import Clock
from automc.engine import Engine
from automc.errors import AutomcError, InputError
from automc.evaluate.models import model_digest
from automc.evaluate.score import guess_warning
from automc.execute.parallel import Executors
from automc.export.torch_export import build_pt2
from automc.joules import predicted_by
from automc.locating import located, remembered
from automc.noting import Noting
from automc.pareto import front
from automc.policy import Policy
from automc.predict.targets import open_device
from automc.prepare import Prepared
from automc.progress import Reference
from automc.protocols import Observer, Tracker
from automc.recipe import Job
from automc.recovery.training import curves
from automc.result import Summary
from automc.rundir import RunDir
from automc.tables import Tables
from automc.tabulate import tabulate
from automc.task import Task, prepare_job
from automc.track.mlflow import MLflowTracker
from automc.track.null import NullTracker
from automc.trial import Trial
from automc.warm import nearest, read_start
from automc.weights import pack, unpack

__all__ = ["Run"]

_LIBRARIES = ("torch", "onnxruntime", "onnx", "torch-pruning", "numpy", "scipy", "scikit-learn", "mlflow")


_TRAINED = 3
"""Models of earlier attempts that are measured again."""


class Run:
    """One run with its record. `trials()` is used up once; then `summary` and `best` tell how it ended."""

    def __init__(self, job: Job, task: Task, observer: Observer) -> None:
        self.job, self.task, self.observer = job, task, observer
        self.model_name = _model_name(job, task)
        self.name = job.name or _run_name(self.model_name, job.budget, Path(job.runs))
        self.model_digest = model_digest(task.model)
        self.summary: Summary | None = None
        self.best: Certified | None = None
        self._kept = 0
        self._written: Certified | None = None
        self._replaces = True
        self.device = open_device(job.device, job.threads)
        registry.load("agent", job.agent)
        registry.load("space", job.space)

    def trials(self) -> Iterator[Trial]:
        executors = Executors(self.task.parallel)
        try:
            yield from self._recorded(executors)
        finally:
            executors.close()

    def _recorded(self, executors: Executors) -> Iterator[Trial]:
        path = Path(self.job.runs) / self.name
        is_new, unusable = not path.exists(), False
        folder = RunDir.create(path, self._config())
        self._replaces = not folder.is_finished  # what an earlier search handed over stays until this one has ended
        self.observer = noting = Noting(self.observer, folder)
        tracker = self._tracker(folder)
        try:
            yield from self._search(folder, tracker, noting, executors)
        except BaseException as error:
            interrupted = isinstance(error, (KeyboardInterrupt, GeneratorExit))
            unusable = isinstance(error, InputError)
            tracker.finish(None, folder.path, "KILLED" if interrupted else "FAILED")
            raise
        finally:
            tracker.close()
            noting.end()
            folder.close()
            if unusable and is_new and not folder.trials():
                shutil.rmtree(path)  # a folder without a search would only bar its name

    def _search(self, folder: RunDir, tracker: Tracker, noting: Noting, executors: Executors) -> Iterator[Trial]:
        clock, tables = Clock(), self._tables(folder)
        prepared = prepare_job(
            self.job, self.task, self.device, self.observer, clock, quiet=executors.wait, tables=tables
        )
        if self.job.trial_timeout is not None and self.task.parallel is None:
            self.observer.message(
                "--trial-timeout has no effect on evaluations in this process: give --workers 2 or more.", "warning"
            )
        known = folder.trials()
        if known:
            self.observer.message(f"Going on with {len(known)} known trials; finalists are measured anew.")
        starts = self._starts(prepared)
        options: dict[str, object] = {"storage": str(folder.path / "optuna.log")}
        engine = Engine(
            prepared, self.task.settings, self.observer, clock, known=known, starts=starts, options=options,
            execute=executors.make, release=executors.close, checkpoints=folder.checkpoints,
            trained=self._trained(folder, prepared, known),
        )  # fmt: skip
        limits = {limit.metric: limit.value for limit in engine.standing.limits}
        self._doubt(prepared, engine.dense.validation)
        tracker.set_reference(engine.dense.cost, engine.dense.validation, limits)
        noting.reference(Reference(engine.dense, limits, self.task.score.name))
        if self._replaces or tables is None:
            folder.write_tables(tabulate(prepared, prepared.predictor, [Policy()]))
        for trial in known:
            tracker.log(trial)
            noting.trial(trial)

        def record(trial: Trial) -> None:
            folder.append(trial)
            tracker.log(trial)
            noting.trial(trial)

        engine.record, engine.keep = record, lambda: self._keep(folder, engine)
        try:
            yield from engine.trials()
            self._replaces = True
        finally:
            if self._replaces:
                folder.write_front(engine.standing.front, self.task.settings.metrics)
        folder.add_trainings(curves(folder.checkpoints))
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        self._hand_over(folder, tracker, engine, prepared, clock)

    def _doubt(self, prepared: Prepared, validation: float) -> None:
        """Warn, before anything is searched, of a dense model that is no better than guessing."""
        with torch.inference_mode():
            returned = prepared.traced.model(*prepared.example)
        if warning := guess_warning(self.task.score, validation, returned):
            self.observer.message(warning, "warning")

    def _tables(self, folder: RunDir) -> Tables | None:
        """What an earlier attempt knew: agents start from the same losses, or a resumed search would end elsewhere."""
        try:
            return folder.tables()
        except InputError as error:
            self.observer.message(f"{error} Losses are measured anew.")
            return None

    def _trained(self, folder: RunDir, prepared: Prepared, known: Sequence[Trial]) -> list[Candidate]:
        """The models that earlier attempts or `automc finetune` trained, the best policies first."""
        best = sorted(
            (t for t in known if t.stage == "recovered" and t.score is not None), key=lambda t: -(t.score or 0)
        )
        found: list[Candidate] = []
        for policy in dict.fromkeys(trial.policy for trial in best):
            path = folder.trained_path(policy)
            if len(found) < _TRAINED and path.is_file():
                model = prepared.stitcher.finished(policy)
                scores = _before_recovery(known, policy)
                try:
                    found.append(Candidate(policy, unpack(model, path.read_bytes()), None, "recovered", scores))
                except InputError as error:
                    self.observer.message(f"A model trained before is left out: {error}", "warning")
        return found

    def _starts(self, prepared: Prepared) -> list[Policy]:
        """What --warm-start names, as policies of this search's space."""
        if self.job.warm_start is None:
            return []
        graph = prepared.traced.graph
        start = read_start(located(dataclasses.asdict(self.job))["warm_start"], self.job.runs, graph)
        moved = (nearest(prepared.space, policy, graph.widths, start.widths) for policy in start.policies)
        starts = [policy for policy in dict.fromkeys(moved) if len(policy)]
        level = "info" if starts else "warning"
        self.observer.message(f"{len(starts)} policies of {self.job.warm_start} are tried first.", level)
        return starts

    def _keep(self, folder: RunDir, engine: Engine, pt2: bytes | None = None) -> None:
        """Put every measured model on disk, and the best so far where people look for it, unless an earlier search's is there."""
        for certified in engine.standing.certified[self._kept :]:
            folder.write_model(certified.finalist, certified.onnx, pack(certified.candidate.model))
        self._kept = len(engine.standing.certified)
        self.best = best = engine.standing.best
        if not self._replaces:
            return
        if best is None:
            folder.best.clear()
        elif best is not self._written or pt2 is not None:
            folder.best.write(
                best.finalist, best.onnx, best.certificate, model_digest=self.model_digest, device_digest=self.device.key,
                predicted=best.candidate.predicted, pt2=pt2,
            )  # fmt: skip
        self._written = best

    def _hand_over(self, folder: RunDir, tracker: Tracker, engine: Engine, prepared: Prepared, clock: Clock) -> None:
        """Write the models, the summary and the report, and tell the tracker."""
        clock.start("export")
        self.observer.stage("write the results", None)
        prepared.stitcher.database.save()
        self._keep(folder, engine, self._pt2(engine.standing.best, prepared))
        clock.stop()
        self.summary = self._summary(engine, prepared, clock)
        folder.write_summary(self.summary)
        metrics = self.task.settings.metrics
        shown = [
            *(t.policy for t in front(engine.standing.front, metrics)),
            *(f.policy for f in self.summary.finalists),
        ]
        chosen = self.summary.best or self.summary.smallest or self.summary.dense
        shown = [*(policy for policy in shown if policy != chosen.policy), chosen.policy]  # the ends are always kept
        tables = tabulate(prepared, engine.standing.predictor, shown).slowed(engine.standing.pace(self.summary.dense))
        folder.write_tables(tables)
        registry.load("figures", "plotly").write_report(self.summary, folder.trials(), folder.report, tables)
        tracker.finish(self.summary, folder.path, "FINISHED")

    def _pt2(self, best: Certified | None, prepared: Prepared) -> bytes | None:
        if best is None:
            return None
        try:
            return build_pt2(best.candidate.model, prepared.example)
        except AutomcError as error:
            self.observer.message(str(error), "warning")
            return None

    def _summary(self, engine: Engine, prepared: Prepared, clock: Clock) -> Summary:
        """Where there is a winner, the dense latency and the limits are those of the rounds that it was measured in."""
        smallest, best, dense = engine.standing.smallest, engine.standing.best, engine.dense
        shown = best or smallest
        measured = [c.finalist for c in engine.standing.certified]
        limits: Mapping[str, float] = {limit.metric: limit.value for limit in engine.standing.limits}
        if shown is not None:
            latency = shown.certificate.dense_latency_s, shown.certificate.dense_latency_interval_s
            if shown.certificate.source == "measured":
                cost = dense.cost.with_measured_latency(*latency)
                joules, source = shown.certificate.dense_energy_j, dense.cost.source.get("energy_j")
                dense = dataclasses.replace(
                    dense, cost=cost if not joules or not source else cost.with_energy(joules, source)
                )
            limits = shown.certificate.limits
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
            dense=dense,
            best=best.finalist if best else None,
            smallest=smallest.finalist if smallest else None,
            finalists=tuple({(f.policy, f.stage): f for f in measured}.values()),
            predictor=prepared.predictor.report,
            trials=len(engine.standing.done),
            dense_meets_budget=engine.dense.holds,
            left_alone=tuple((left.name, left.reason) for left in prepared.traced.graph.left_alone),
            seconds=clock.seconds,
            widths=prepared.traced.graph.widths,
            notes=(*self.task.data.notes, *((engine.limiting,) if engine.limiting else ())),
        )

    def _tracker(self, folder: RunDir) -> Tracker:
        if self.job.tracking_uri == "":
            return NullTracker()
        tracker = MLflowTracker(
            self.model_name, self.name, self.job.tracking_uri, run_dir=folder.path, trials=self.job.mlflow_trials,
            register=self.job.register,
            on_warning=lambda text: self.observer.message(text, "warning"),
        )  # fmt: skip
        config = self._config()
        digests = {name: str(config[name]) for name in ("model_digest", "data_digest", "device_key")}
        tracker.start(config, {"device": self.job.device, "agent": self.job.agent, **digests})
        return tracker

    def _config(self) -> dict[str, Any]:
        """What config.yaml holds: the job, what it found, and the versions it ran with."""
        facts = {
            **remembered(dataclasses.asdict(self.job)),
            "name": self.name,
            "batch_size": self.task.batch_size,
            "model_digest": self.model_digest,
            "data_digest": self.task.data.digest,
            "device_key": self.device.key,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": {
                "automc": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in _LIBRARIES},
            },
        }
        if Budget.parse(*self.job.budget).limit("energy_j") or "energy" in self.job.objective:
            facts["watts"] = predicted_by(self.device)
        facts["tracking"] = facts.pop("tracking_uri")
        return facts


def _before_recovery(known: Sequence[Trial], policy: Policy) -> tuple[float, float | None] | None:
    """The scores of a policy before it was trained; of a record by an earlier version the validation score alone."""
    noted = [t.before_recovery for t in known if t.policy == policy and t.before_recovery is not None]
    if noted:
        return noted[-1]
    measured = [t.score for t in known if t.policy == policy and t.stage == "finalist" and t.score is not None]
    return (measured[-1], None) if measured else None


def _model_name(job: Job, task: Task) -> str:
    spec = job.model or ("demo" if task.is_demo else type(task.model).__name__)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", os.path.basename(spec).rpartition(":")[2] or spec)


def _run_name(model: str, budget: Sequence[str], runs: Path) -> str:
    """A name that no run in the folder has yet."""
    limits = "-".join(re.sub(r"[^A-Za-z0-9.]+", "", text.replace("%", "pct")) for text in budget)
    name = f"{model}-{limits}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}"
    taken = (runs / name).exists()
    return next(f"{name}-{i}" for i in range(2, 1000) if not (runs / f"{name}-{i}").exists()) if taken else name
