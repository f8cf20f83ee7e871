"""Fine-tuning a model of a finished run: `automc.finetune("my-run", epochs=10)` does what `automc finetune` does.

What comes out is certified against the run's budget, in the same rounds as what was there, and kept where it scores better.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import Any

from torch import nn

from automc.certify import Candidate, Certified, Certifier, Failed
from automc.compression.carriers import set_between
from automc.errors import AutomcError, InputError
from automc.evaluate.models import model_digest
from automc.export.run import chosen
from automc.job import Silent
from automc.keeping import keep
from automc.policy import Policy
from automc.prepare import Prepared
from automc.protocols import Observer
from automc.recovery.planning import Effort, fine_tuned
from automc.recovery.training import curves
from automc.reopening import Reopened, reopened
from automc.result import Finalist, Summary
from automc.rundir import RunDir
from automc.track.mlflow import MARKER, upload
from automc.units import parse_duration, seconds_as_text
from automc.weights import unpack

__all__ = ["Tuned", "finetune"]


@dataclass(frozen=True)
class Tuned:
    """How a fine-tuning ended.

    Attributes:
        summary: of the run, as it is now.
        before, after: the model as it was and as it is, measured in the same rounds; equal where training found nothing better.
        is_kept: `after` stands in the run now.
        reason: why it does not, "" where it does.
    """

    summary: Summary
    before: Finalist
    after: Finalist
    is_kept: bool
    reason: str = ""


def finetune(
    name: str,
    *,
    point: str = "best",
    epochs: int | None = None,
    time: str | float | None = None,
    runs: str = "runs",
    model: nn.Module | None = None,
    data: Any = None,
    evaluate: Any = None,
    observer: Observer | None = None,
    **options: Any,
) -> Tuned:
    """Fine-tune a model of the run `name`, certify it, and keep it in the run where it is better.

    A call that was interrupted is gone on with by the same call.

    Args:
        point: "best", "knee", or the number of a trial.
        epochs: of the longest training; 10 where no `time` is given either.
        time: for all trainings together, such as "10m", or seconds.
        model, data, evaluate: what the run was made with, where that was given in Python.
        options: the other fields of Effort: trainings, workers, address, frozen, hints, attention.

    Raises:
        InputError: no such run or point, or the model or data are not those of the run; nothing was written.
        AutomcError: nothing could be trained or certified.
    """
    observer = observer or Silent()
    effort = _effort(epochs, time, options)
    folder = RunDir.open(runs, name)
    summary = _summary(folder)
    policy, known = _point(folder, summary, point)
    remedy = (
        f"Restore it, or give it again where it was given in Python: automc.finetune({name!r}, model=..., data=...)."
    )
    opened = reopened(folder, model, data, evaluate, remedy=remedy)
    folder.lock()
    try:
        return _Session(folder, summary, opened, observer, effort).run(policy, known)
    finally:
        folder.close()


@dataclass
class _Session:
    folder: RunDir
    summary: Summary
    opened: Reopened
    observer: Observer
    effort: Effort

    def run(self, policy: Policy, known: Finalist | None) -> Tuned:
        prepared = self.opened.prepared(self.observer)
        start = self._start(prepared, policy, known)
        checkpoints = self.folder.checkpoints / self._key(policy, start)
        outcome = fine_tuned(
            start, prepared, dataclasses.replace(self.effort, seed=self.opened.job.seed), checkpoints, self.observer
        )
        tuned = self._certified(prepared, policy, known, start, outcome.model)
        self.folder.add_trainings(curves(self.folder.checkpoints))
        shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        self._tell_mlflow()
        return tuned

    def _tell_mlflow(self) -> None:
        """Bring the record in MLflow up to date, where the run has one."""
        if (self.folder.path / MARKER).is_file():
            self.observer.stage("record in MLflow", None)
            upload(self.folder, on_warning=lambda text: self.observer.message(text, "warning"))

    def _start(self, prepared: Prepared, policy: Policy, known: Finalist | None) -> nn.Module:
        """The model as the run has it; stitched anew where the run has no tensors of it."""
        model = prepared.stitcher.finished(policy)
        path = None if known is None else self.folder.weights_path(known)
        if path is not None and path.is_file():
            model = unpack(model, path.read_bytes())
            set_between(model, prepared.ranges)
        return model

    def _key(self, policy: Policy, model: nn.Module) -> str:
        """Names what is trained and how, so that only the same call goes on with what it left."""
        effort = {**dataclasses.asdict(self.effort), "workers": None, "address": None}
        text = json.dumps([policy.digest, model_digest(model), effort], sort_keys=True)
        return f"{policy.digest}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _certified(
        self, prepared: Prepared, policy: Policy, known: Finalist | None, start: nn.Module, model: nn.Module
    ) -> Tuned:
        """Measure the model before and after in the same rounds, and keep the better one."""
        self.observer.stage("measure the fine-tuned model", None)
        task = self.opened.task
        certifier = Certifier(prepared, task.settings.budget, task.batch_size, task.settings.seed)
        found = certifier.certify(
            [Candidate(policy, start, stage="finalist"), Candidate(policy, model, stage="recovered")]
        )
        measured = {one.candidate.stage: one for one in found if isinstance(one, Certified)}
        if len(measured) < 2:
            failed = next(one for one in found if isinstance(one, Failed))
            raise AutomcError(f"The fine-tuned model could not be measured: {failed.reason}.")
        old, new = measured["finalist"], measured["recovered"]
        reason = _refusal(old.finalist, new.finalist)
        if reason:
            return Tuned(self.summary, old.finalist, new.finalist, False, reason)
        scores = (old.finalist.validation, old.finalist.test)
        before = known.before_recovery if known is not None and known.before_recovery is not None else scores
        predicted = None if known is None else known.predicted_latency_s
        kept = dataclasses.replace(new.finalist, before_recovery=before, predicted_latency_s=predicted)
        new = dataclasses.replace(new, finalist=kept)
        summary = keep(self.folder, self.summary, new, prepared, self.observer, metrics=task.settings.metrics)
        return Tuned(summary, old.finalist, kept, True)


def _refusal(old: Finalist, new: Finalist) -> str:
    """Why the fine-tuned model does not take the place of the old one, "" where it does."""
    if new.merit <= old.merit:
        return "Fine-tuning found nothing that is clearly better on held-out samples."
    if old.holds and not new.holds:
        return "The fine-tuned model scores better, but was measured outside the budget."
    return ""


def _effort(epochs: int | None, time: str | float | None, options: dict[str, Any]) -> Effort:
    known = {field.name for field in dataclasses.fields(Effort)} - {"epochs", "seconds", "seed"}
    for option in options:
        if option not in known:
            raise InputError(f"There is no option {option!r}.", remedy=f"Options: {', '.join(sorted(known))}.")
    for option, value in {
        "epochs": epochs,
        "trainings": options.get("trainings"),
        "workers": options.get("workers"),
    }.items():
        if value is not None and value < 1:
            raise InputError(f"--{option} is {value}.", remedy="Give 1 or more.")
    try:
        seconds = None if time is None else parse_duration(str(seconds_as_text(time)))
    except ValueError:
        raise InputError(f"--time {time!r} is not a duration.", remedy="Write 90s, 10m or 1h.") from None
    if seconds is not None and seconds <= 0:
        raise InputError("There is no time to fine-tune in.", remedy="Write 90s, 10m or 1h.")
    return Effort(10 if epochs is None and seconds is None else epochs, seconds, **options)


def _summary(folder: RunDir) -> Summary:
    if not (folder.path / "summary.json").is_file():
        raise InputError(
            f"The search {folder.name!r} has not ended, so it has no model to fine-tune.",
            remedy=f"`{folder.again}` goes on with it.",
        )
    return folder.summary()


def _point(folder: RunDir, summary: Summary, point: str) -> tuple[Policy, Finalist | None]:
    """The policy of a point, and the measured model where the run has one: of several, the best."""
    if point in ("best", "knee"):
        finalist = chosen(summary, None, point == "knee")
        return finalist.policy, finalist
    trials = {trial.number: trial for trial in folder.trials()}
    if not point.isdecimal() or int(point) not in trials:
        raise InputError(
            f"The run {folder.name!r} has no point {point!r}.",
            remedy=f"Give best, knee, or the number of a trial from {min(trials)} to {max(trials)}." if trials else "",
        )
    policy = trials[int(point)].policy
    measured = [finalist for finalist in summary.finalists if finalist.policy == policy]
    return policy, max(measured, key=lambda finalist: finalist.merit, default=None)
