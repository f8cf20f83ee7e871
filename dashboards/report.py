"""report.html: one file that says what won, how sure that is and how to take it home. Opens offline, on a phone too."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from automc import wording
from automc.disk import write_atomic
from automc.pareto import front
from automc.result import Finalist, Summary, has_interval, measured_under
from automc.tables import Tables
from automc.trial import Trial
from automc.units import METRIC_TITLES, METRICS

from . import figures, page, png, words
from .note import note
from .report_layers import layer_sections

__all__ = ["PLOTLY", "Plotly", "write_report"]

_HELD, _MISSED = figures.GREEN, figures.VERMILLION
_ONNX = """import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("{path}/best/model.onnx", providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
print(given.name, given.shape)  # feed it your own batch of that shape
scores = session.run(None, {{given.name: np.zeros(given.shape, dtype=np.float32)}})[0]"""


def write_report(
    summary: Summary, trials: Sequence[Trial], path: str | os.PathLike[str], tables: Tables | None = None
) -> Path:
    """Write the report to `path`; without `tables` it says nothing about single layers.

    Raises:
        DiskError: it cannot be written.
    """
    return write_atomic(path, render(summary, trials, Path(path).parent, tables))


def render(summary: Summary, trials: Sequence[Trial], folder: Path, tables: Tables | None = None) -> str:
    """The report as HTML; `folder` is the run's, named in the commands it shows."""
    template = Template(files(__package__ or "automc.dashboards").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=page.escape(f"{summary.model} within {' and '.join(summary.budget)}"),
        subtitle=page.escape(
            f"Run {summary.name} on {summary.device}, batch size {summary.batch_size}: agent {summary.agent}, "
            f"{summary.trials} trials, seed {summary.seed}."
        ),
        verdict=page.escape(words.verdict(summary)),
        color=_HELD if summary.best else _MISSED,
        plotly_js=get_plotlyjs(),
        sections="\n".join(_sections(summary, trials, folder, tables)),
    )


def _sections(summary: Summary, trials: Sequence[Trial], folder: Path, tables: Tables | None) -> Iterator[str]:
    yield page.section("Before and after", _comparison(summary), *map(page.paragraph, summary.notes))
    yield page.section("How sure the latency is", *_trust(summary))
    if summary.best is not None:
        yield page.section("Take it home", *_export(summary, folder))
    yield page.section("Left alone", _left_alone(summary))
    yield page.section("The front", *_front(summary, trials))
    yield page.section("The policy, layer by layer", *_policy(summary))
    if tables is not None:
        yield from layer_sections(summary, tables)
    if summary.measured:
        yield page.section("Predicted against measured", *_predictions(summary))
    yield page.section("The search", *_search(summary, trials))
    yield page.section("Where the time went", page.table(("stage", "time"), _times(summary)))


def _comparison(summary: Summary) -> str:
    chosen = summary.best or summary.smallest
    if chosen is None:
        return page.paragraph("No compressed model was certified.")
    name = "winner" if summary.best else "nearest"
    return page.table(
        ("", "dense", name, "change"), fit=True, rows=[*_score_rows(summary, chosen), *_cost_rows(summary, chosen)]
    )


def _score_rows(summary: Summary, chosen: Finalist) -> Iterator[tuple[str, str, str, str]]:
    before = chosen.before_recovery or (None, None)
    scores = (
        ("test", summary.dense.test, chosen.test, before[1]),
        ("validation", summary.dense.validation, chosen.validation, before[0]),
    )
    for split, dense, after, unrecovered in scores:
        if after is not None:
            yield f"{split} {summary.score_name}", *_scores(summary, dense, after)
        if unrecovered is not None:
            yield f"{split}, before recovery", *_scores(summary, dense, unrecovered)


def _scores(summary: Summary, dense: float | None, value: float) -> tuple[str, str, str]:
    return (
        wording.score(summary.score_name, dense),
        wording.score(summary.score_name, value),
        wording.score_change(summary.score_name, dense, value),
    )


def _cost_rows(summary: Summary, chosen: Finalist) -> Iterator[tuple[str, str, str, str]]:
    dense = summary.dense
    for metric in METRICS:
        before, after = dense.cost.get(metric), chosen.cost.get(metric)
        if before is not None or after is not None:
            yield _cost_row(f"{METRIC_TITLES[metric]}, {chosen.source(metric)}", metric, before, after)
        if metric == "latency_s" and has_interval(chosen):
            yield "95 % interval", wording.interval(dense.cost), wording.interval(chosen.cost), ""
        if metric == "latency_s" and summary.measured:
            yield _cost_row("as predicted", metric, dense.predicted_latency_s, chosen.predicted_latency_s)


def _cost_row(label: str, metric: str, before: float | None, after: float | None) -> tuple[str, str, str, str]:
    return label, wording.quantity(metric, before), wording.quantity(metric, after), wording.relative(before, after)


def _trust(summary: Summary) -> Iterator[str]:
    chosen, report = summary.best or summary.smallest, summary.predictor
    if not summary.measured:
        yield page.paragraph(
            f"Latency and energy are {summary.dense.source()}: nothing was measured on {summary.device} by this search."
        )
        if summary.priced == "simulated":
            return
    elif chosen is not None:
        yield page.paragraph(
            f"The latency of the {'winner' if summary.best else 'nearest model'} was measured on the device, in random turns "
            f"with the dense model: {wording.quantity('latency_s', chosen.cost.latency_s)}, and with 95 % confidence its median "
            f"lies within {wording.interval(chosen.cost)}. The upper end of that interval decides whether a budget is held."
        )
        yield from map(page.paragraph, measured_under(chosen.noisy, chosen.notes))
    single = "" if report.kernel_mape is None else f", and by {100 * report.kernel_mape:.1f} % on single kernels ({report.kernels} in all)"  # fmt: skip
    off = "an unknown share, as no model could be held out" if report.mape is None else f"{100 * report.mape:.1f} % on average on models that it had not seen ({report.models} in all)"  # fmt: skip
    yield page.paragraph(
        f"The measurements repeat to {100 * report.noise_floor:.1f} %. The predictor that led the search was off by "
        f"{off}{single}; {100 * report.coverage:.0f} % of the dense latency is in kernels that it learned."
    )


def _front(summary: Summary, trials: Sequence[Trial]) -> Iterator[str]:
    yield page.paragraph(
        "Each point is a way to compress the model; up and to the left is better. Hover or tap for its costs. "
        "Double-click to see the points below the range."
    )
    yield page.figure(figures.pareto(summary, trials), "front")
    models = [summary.dense, *summary.finalists]
    best = models.index(summary.best) if summary.best in models else None
    yield page.table(_model_heads(summary), [_model_row(summary, model) for model in models], best=best)
    metric = next(iter(summary.limits), "latency_s")
    points = front([t for t in trials if t.stage == "search"], (metric,))
    yield page.details(
        f"The front as {summary.priced}, {len(points)} points",
        page.table(_point_heads(summary), _points(summary, points)),
    )


def _model_heads(summary: Summary) -> tuple[str, ...]:
    latency = f"latency, {summary.dense.source()}"
    return ("model", "validation", "test", latency, "95 % interval", "size", "MACs", "in budget", "policy")


def _point_heads(summary: Summary) -> tuple[str, ...]:
    return ("trial", "validation", f"latency, {summary.priced}", "95 % interval", "size", "MACs", "policy")


def _model_row(summary: Summary, model: Finalist) -> tuple[str, ...]:
    return (
        "winner" if model == summary.best else model.stage,
        wording.score(summary.score_name, model.validation),
        wording.score(summary.score_name, model.test),
        wording.quantity("latency_s", model.cost.latency_s),
        wording.interval(model.cost),
        wording.quantity("size_bytes", model.cost.size_bytes),
        wording.quantity("macs", model.cost.macs),
        "yes" if model.holds else "no",
        model.policy.digest if len(model.policy) else wording.NOTHING,
    )


def _points(summary: Summary, points: Sequence[Trial]) -> Iterator[tuple[str, ...]]:
    for trial in points:
        yield (
            str(trial.number),
            wording.score(summary.score_name, trial.score),
            wording.quantity("latency_s", trial.cost.latency_s),
            wording.interval(trial.cost),
            wording.quantity("size_bytes", trial.cost.size_bytes),
            wording.quantity("macs", trial.cost.macs),
            trial.policy.digest,
        )


def _policy(summary: Summary) -> Iterator[str]:
    chosen = summary.best or summary.smallest
    if chosen is None:
        yield page.paragraph("No compressed model was certified.")
        return
    yield page.paragraph("What is not listed stays as it was. The darker a cell, the more it compresses.")
    yield page.figure(figures.policy_map(summary), "policy")
    rows = words.knob_rows(chosen.policy, summary.widths)
    heads = ("layer or channel group", "channels kept", "rank", "bits")
    yield page.details(f"The same as a table, {len(rows)} rows", page.table(heads, rows))
    yield page.details("The same as JSON", page.code(json.dumps(chosen.policy.to_json(), indent=1)))


def _predictions(summary: Summary) -> Iterator[str]:
    yield page.figure(figures.predicted_vs_measured(summary), "predictions")
    rows = [
        (
            model.stage,
            wording.quantity("latency_s", model.predicted_latency_s),
            wording.quantity("latency_s", model.cost.latency_s),
            wording.relative(model.cost.latency_s, model.predicted_latency_s),
            model.policy.digest if len(model.policy) else wording.NOTHING,
        )
        for model in (summary.dense, *summary.finalists)
    ]
    yield page.details("The same as a table", page.table(("model", "predicted", "measured", "error", "policy"), rows))


def _search(summary: Summary, trials: Sequence[Trial]) -> Iterator[str]:
    states = [trial.state for trial in trials]
    yield page.paragraph(
        f"{states.count('complete')} trials were scored, {states.count('failed')} failed. The lower curve is the share of the "
        "plane between no cost and the dense model that the front dominates."
    )
    yield page.figure(figures.hypervolume(summary, trials), "search")
    rows = [
        (str(number), wording.score(summary.score_name, best), f"{share:.3f}")
        for number, best, share in figures.progress(summary, trials)
    ]
    heads = ("after trial", "best within the budget", "share dominated")
    yield page.details(f"The same as a table, {len(rows)} rows", page.table(heads, rows))
    lost = [(str(t.number), t.state, t.reason) for t in trials if t.state != "complete"]
    if lost:
        yield page.details(
            f"Trials without a score, {len(lost)} rows", page.table(("trial", "state", "reason"), lost, words=(2,))
        )


def _left_alone(summary: Summary) -> str:
    if not summary.left_alone:
        return page.paragraph("Every layer with weights could be compressed.")
    content = page.table(("layer", "why no policy touches it"), summary.left_alone, words=(1,))
    many = len(summary.left_alone) > 8
    return page.details(f"{len(summary.left_alone)} layers or knobs, and why", content) if many else content


def _times(summary: Summary) -> list[tuple[str, str]]:
    rows = [*summary.seconds.items(), ("in all", sum(summary.seconds.values()))]
    return [(stage, f"{seconds:.1f} s") for stage, seconds in rows]


def _export(summary: Summary, folder: Path) -> Iterator[str]:
    runs = [] if folder.parent == Path("runs") else ["--runs", str(folder.parent)]
    export = shlex.join(["automc", "export", "--run", summary.name, *runs])
    yield page.paragraph(
        "The model as deployed is best/model.onnx in the run's folder. To copy it, or another point of the front:"
    )
    yield page.code(f"{export} --format onnx --out deploy\n{export} --knee --format onnx --out deploy")
    yield page.details("Run it from Python", page.code(_ONNX.format(path=folder)))


class Plotly:
    """What the registry offers as figures "plotly": the report, a run's description, and the front to look into or as a picture."""

    write_report = staticmethod(write_report)
    note = staticmethod(note)
    pareto = staticmethod(figures.pareto)
    pareto_png = staticmethod(png.pareto_png)


PLOTLY = Plotly()
