"""Putting one more measured model into the record of a finished run: its files, summary, front and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from automc import registry
from automc.certify import Certified
from automc.errors import AutomcError
from automc.export.torch_export import build_pt2
from automc.prepare import Prepared
from automc.protocols import Observer
from automc.result import Finalist, Summary
from automc.rundir import RunDir
from automc.trial import Cost, Trial
from automc.weights import pack

__all__ = ["keep"]


def keep(
    folder: RunDir,
    summary: Summary,
    new: Certified,
    prepared: Prepared,
    observer: Observer,
    *,
    metrics: Sequence[str],
) -> Summary:
    """The summary with the model in it, as it was written; what is better of the same policy takes the other's place.

    Args:
        metrics: those of the front.

    Raises:
        DiskError: a file cannot be written.
        InputError: the tables of the run are of another version.
    """
    trials = folder.trials()
    finalist = new.finalist
    trial = finalist.trial(1 + max((trial.number for trial in trials), default=-1))
    folder.write_model(finalist, new.onnx, pack(new.candidate.model))
    folder.append(trial)
    others = [f for f in summary.finalists if (f.policy, f.stage) != (finalist.policy, finalist.stage)]
    summary = replace(summary, finalists=(*others, finalist))
    if _wins(finalist, summary.best):
        summary = replace(summary, best=finalist, limits=new.certificate.limits)
        _write_best(folder, new, prepared, observer)
    folder.write_summary(summary)
    points = _points(folder, [*trials, trial])
    folder.write_front([*points, trial], metrics)
    registry.load("figures", "plotly").write_report(summary, folder.trials(), folder.report, folder.tables())
    return summary


def _wins(new: Finalist, best: Finalist | None) -> bool:
    """Whether it holds the budget and is worth more; than a model of an earlier version of this program, scores better."""
    if best is None or best.worth is None:
        return new.holds and (best is None or new.validation > best.validation)
    return new.holds and new.merit > best.merit


def _write_best(folder: RunDir, new: Certified, prepared: Prepared, observer: Observer) -> None:
    config = folder.config()
    pt2 = None
    try:
        pt2 = build_pt2(new.candidate.model, prepared.example)
    except AutomcError as error:
        observer.message(str(error), "warning")
    folder.best.write(
        new.finalist, new.onnx, new.certificate, model_digest=config["model_digest"],
        device_digest=prepared.device.key, predicted=new.candidate.predicted, pt2=pt2,
    )  # fmt: skip


def _points(folder: RunDir, trials: list[Trial]) -> list[Trial]:
    """The points of the front, at the cost that it states: searches price their trials anew as they learn."""
    known = {trial.number: trial for trial in trials}
    return [
        replace(known[p["number"]], score=p["score"], cost=Cost.from_json({**p["cost"], "source": p["source"]}))
        for p in folder.front()
        if p["number"] in known
    ]
