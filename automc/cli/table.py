"""The result of a search as a table: dense, best, and what changed."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from automc import wording
from automc.result import Finalist, Summary, has_interval, measured_under
from automc.units import format_quantity

__all__ = ["budget_lines", "heading", "result_table"]

Row = tuple[str, str, str, str]


def heading(summary: Summary) -> str:
    """What was searched, in a line."""
    return f"{summary.model} on {summary.device}, batch size {summary.batch_size}"


def result_table(summary: Summary) -> Table:
    """dense | best | change; the smallest finalist stands in for the best where nothing held the budget."""
    chosen = summary.best or summary.smallest or summary.dense
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("dense", _heading(summary), "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in (*_score_rows(summary, chosen), *_cost_rows(summary, chosen)):
        table.add_row(*row)
    return table


def budget_lines(summary: Summary) -> list[str]:
    """Sentences on the budget: whether it was held, how sure that is, what to do when it was not; then the notes on the data."""
    lines = []
    limits = " and ".join(format_quantity(metric, value) for metric, value in summary.limits.items())
    if summary.dense_meets_budget:
        lines.append(f"The dense model already holds the budget of {limits}; the front was searched all the same.")
    if summary.best is None:
        lines += [*_unreachable(summary, limits)]
    else:
        promise = summary.promise(summary.best, " by the upper end of its 95 % interval")
        lines.append(f"The best model holds the budget of {promise}.")
    chosen = summary.best or summary.smallest
    if not summary.measured:
        source = summary.dense.source()
        return [*lines, f"Latency and energy are {source}: nothing was measured on {summary.device}.", *summary.notes]
    if chosen is not None:
        lines += measured_under(chosen.noisy, chosen.notes)
    report = summary.predictor
    lines.append(f"Predicted latencies are {wording.errors(report)}.")
    return [*lines, *wording.coverage(report), *summary.notes]


def _heading(summary: Summary) -> str:
    return "best" if summary.best else "smallest found"


def _score_rows(summary: Summary, chosen: Finalist) -> Iterator[Row]:
    name, dense = summary.score_name, summary.dense
    before = chosen.before_recovery or (None, None)
    for split, reference, value, value_before in (
        ("validation", dense.validation, chosen.validation, before[0]),
        ("test", dense.test, chosen.test, before[1]),
    ):
        if value is not None or reference is not None:
            yield _score_row(name, f"{name}, {split}", reference, value)
        if value_before is not None:
            yield _score_row(name, "  before recovery", reference, value_before)


def _score_row(name: str, label: str, dense: float | None, value: float | None) -> Row:
    return label, wording.score(name, dense), wording.score(name, value), wording.score_change(name, dense, value)


def _cost_rows(summary: Summary, chosen: Finalist) -> Iterator[Row]:
    dense, source = summary.dense, chosen.source()
    yield _cost_row(f"latency, {source}", "latency_s", dense.cost.latency_s, chosen.cost.latency_s)
    if has_interval(chosen):
        yield "  95 % interval", wording.interval(dense.cost), wording.interval(chosen.cost), ""
    if source == "measured":
        yield _cost_row("latency, predicted", "latency_s", dense.predicted_latency_s, chosen.predicted_latency_s)
    for metric, label in (
        ("size_bytes", "size"),
        ("macs", "MACs per sample"),
        ("energy_j", f"energy, {chosen.source('energy_j')}"),
    ):
        before, after = dense.cost.get(metric), chosen.cost.get(metric)
        if before is not None or after is not None:
            yield _cost_row(label, metric, before, after)


def _cost_row(label: str, metric: str, before: float | None, after: float | None) -> Row:
    return label, wording.quantity(metric, before), wording.quantity(metric, after), wording.relative(before, after)


def _unreachable(summary: Summary, limits: str) -> Iterator[str]:
    nearest = summary.smallest or summary.dense
    yield f"Nothing that was {nearest.source()} holds the budget of {summary.promise(nearest) or limits}."
    if summary.smallest is None:
        return
    yield f"The nearest takes {summary.exceeded}." if summary.exceeded else "The nearest was not certified."
    yield "Relax the budget to that, allow more --trials, or choose a wider --space."
