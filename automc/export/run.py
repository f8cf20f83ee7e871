"""Taking a policy home: the winner of a run, or another point of its front, as a file."""

from __future__ import annotations

import json
from pathlib import Path

from automc.budget import Budget
from automc.disk import write_atomic
from automc.errors import InputError
from automc.pareto import knee
from automc.result import Finalist, Summary
from automc.rundir import RunDir
from automc.trial import Trial
from automc.units import format_quantity

__all__ = ["FORMATS", "chosen", "export_run"]

FORMATS = ("onnx", "pt2", "policy", "tensorrt")


def export_run(run_dir: Path, *, budget: str | None, knee: bool, format: str, out: Path) -> Path:
    """Copy a measured model of a finished run, or its policy, into the folder `out`; returns the file written.

    Args:
        budget: the finalist that holds this budget as measured and is worth most, or, where the dense model holds it, the fastest of
            those that lose little; instead of the run's own.
        knee: the finalist where more of what the run limits stops buying score, instead of the winner.
        format: one of FORMATS. A pt2 file exists for the winner only; for TensorRT an ONNX file is written and, beside it, the script
            that builds the engine, which is returned.

    Raises:
        InputError: the run has no such model; says which ones there are.
        DiskError: `out` cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"There is no format {format!r}.", remedy=f"Formats: {', '.join(FORMATS)}.")
    run = RunDir(run_dir)
    summary = run.summary()
    finalist = chosen(summary, budget, knee)
    stem = f"{summary.name}-{finalist.policy.digest[:8]}"
    if format == "policy":
        data = {**finalist.policy.to_json(), "measured": finalist.cost.to_json(), "validation": finalist.validation}
        return write_atomic(out / f"{stem}.policy.json", json.dumps(data, indent=1) + "\n")
    kind = "onnx" if format == "tensorrt" else format
    if format == "pt2" and finalist != summary.best:
        raise InputError("A pt2 file was kept for the winner only.", remedy="Export this one with --format onnx.")
    source = run.model_path(finalist).with_suffix(f".{kind}")
    if finalist == summary.best and run.best.is_of(finalist):
        source = run.best.folder / f"model.{kind}"
    if not source.is_file():
        raise InputError(f"The run {run.name!r} kept no {kind} file of this model.", remedy="Run the search again.")
    if format == "tensorrt":
        return _for_tensorrt(source, out, stem)
    return write_atomic(out / f"{stem}.{format}", source.read_bytes())


def _for_tensorrt(source: Path, out: Path, stem: str) -> Path:
    from automc.export.tensorrt import engine_script, for_tensorrt, layer_precisions

    proto = for_tensorrt(source.read_bytes())
    model = write_atomic(out / f"{stem}.tensorrt.onnx", proto.SerializeToString())
    return write_atomic(out / f"{stem}.tensorrt.py", engine_script(model.name, layer_precisions(proto)))


def chosen(summary: Summary, budget: str | None, at_knee: bool) -> Finalist:
    """The winner of a run, its best measured model within another budget, or the knee of its measured models.

    Raises:
        InputError: there is no such model; says which there are.
    """
    if budget is None and not at_knee:
        if summary.best is None:
            raise InputError("Nothing held this run's budget, so it has no winner.", remedy="Use --budget or --knee.")
        return summary.best
    measured = summary.finalists
    if not measured:
        raise InputError("This run measured no finalists.", remedy="Run the search again.")
    if at_knee:
        points = [Trial(i, f.policy, f.cost, f.validation) for i, f in enumerate(measured)]
        return measured[knee(points, *summary.limits).number]
    limits = Budget.parse(budget or "").resolve(summary.dense.cost)
    best = summary.within(limits)
    if best is None:
        known = ", ".join(format_quantity("latency_s", f.cost.latency_s or 0.0) for f in measured)
        raise InputError(
            f"No measured model of this run holds {budget} (they take {known}).",
            remedy=f"Search again with --budget {budget}.",
        )
    return best
