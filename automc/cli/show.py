"""`automc show`: one run's front and policy, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from automc import wording
from automc.cli.complete import run_names
from automc.cli.report import print_json, stdout
from automc.cli.table import budget_lines, heading, result_table
from automc.pareto import front, knee
from automc.policy import Policy, Prune, Sparsify
from automc.result import Summary
from automc.rundir import RunDir
from automc.tables import Tables
from automc.trial import Cost
from automc.units import METRIC_NAMES

__all__ = ["show"]

_HEADS = {"prune": "channels", "low_rank": "rank", "sparsify": "zeros", "quantize": "bits"}
_KNOBS = tuple(_HEADS)
_EPILOG = """\b
Examples:
  automc show digits-50ms
  automc show digits-50ms --json
"""


@click.command(epilog=_EPILOG, short_help="Print a run's front and policy.")
@click.argument("run", shell_complete=run_names)
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option(
    "--metric",
    "names",
    multiple=True,
    type=click.Choice(list(METRIC_NAMES)),
    help="Draw the front in this metric instead of the limited ones; several times for several.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the tables.")
def show(run: str, folder: str, names: tuple[str, ...], as_json: bool) -> None:
    """Print the result, the Pareto front and the winning policy of a run."""
    found = RunDir.open(Path(folder), run)
    summary = _summary(found)
    metrics = tuple(METRIC_NAMES[name] for name in names)
    points = found.front(metrics) if metrics or (found.path / "front.json").is_file() else []
    bend = _knee(found, metrics or tuple(summary.limits if summary else ("latency_s",)))
    tables = found.tables()
    if as_json:
        layers = _layers_record(summary, tables) if summary else {}
        record = {"run": found.name, "summary": summary.to_json() if summary else None, "front": points}
        print_json({**record, "knee": bend, "layers": layers})
        return
    console = stdout()
    if summary is None:
        console.print(_unfinished(found))
    else:
        _print_result(console, summary)
    if points:
        console.print(_front_table(points, summary, bend))
    if summary is not None and (summary.best or summary.smallest) is not None:
        console.print(_policy_table(summary, tables))
    if summary is not None and summary.left_alone:
        console.print(_left_alone_table(summary))


def _summary(run: RunDir) -> Summary | None:
    return run.summary() if (run.path / "summary.json").is_file() else None


def _unfinished(run: RunDir) -> str:
    progress, count = run.progress(), len(run.trials())
    if progress is None or not progress.running:
        again = f"`{run.again}` goes on with it."
        return f"The search {run.name!r} has not ended; it has {count} trials. {again}"
    left = f", {wording.duration(progress.left_s)} left" if progress.left_s is not None else ""
    return f"The search {run.name!r} is running: {progress.stage}{left}; {count} trials so far."


def _print_result(console: Console, summary: Summary) -> None:
    console.print(heading(summary))
    console.print(result_table(summary))
    for line in budget_lines(summary):
        console.print(line)


def _knee(run: RunDir, metrics: Sequence[str]) -> int | None:
    """The number of the trial where more cost stops buying score; None where there is no front."""
    points = front(run.trials(), metrics)
    return knee(points, *metrics).number if points else None


def _front_table(points: list[dict[str, Any]], summary: Summary | None, bend: int | None) -> Table:
    name = summary.score_name if summary else "score"
    best = summary.best.policy.digest if summary and summary.best else ""
    table = Table(title="Pareto front, cheapest first", title_justify="left", box=box.SIMPLE_HEAD)
    has_energy = any("energy_j" in point["cost"] for point in points)
    columns = ("trial", name, "latency", "known by", "size", "MACs", *(("energy",) if has_energy else ()), "policy")
    for column in columns:
        table.add_column(column, justify="left" if column in ("known by", "policy") else "right")
    for point in points:
        cost = Cost.from_json({**point["cost"], "source": point["source"]})
        table.add_row(
            str(point["number"]),
            wording.score(name, point["score"]),
            wording.latency(cost),
            cost.source.get("latency_s", ""),
            wording.quantity("size_bytes", cost.size_bytes),
            wording.quantity("macs", cost.macs),
            *([wording.quantity("energy_j", cost.energy_j)] if has_energy else []),
            point["digest"]
            + (" ← best" if point["digest"] == best else "")
            + (" ← knee" if point["number"] == bend else ""),
        )
    return table


def _policy_table(summary: Summary, tables: Tables | None) -> Table:
    """One row per layer, one column per knob, and where the time goes; what has no entry stays as it was."""
    chosen = summary.best or summary.smallest or summary.dense
    policy = chosen.policy
    changed = dict.fromkeys(target for target, _ in policy)
    layers = tables.layers if tables else ()
    rows = [*(name for name in changed if name not in layers), *layers]
    knobs = [knob for knob in _KNOBS if knob != Sparsify.knob or any(spec.knob == knob for _, spec in policy)]
    title = f"Policy {policy.digest}, layer by layer"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer or channel group")
    for knob in knobs:
        table.add_column(_HEADS[knob])
    times = _times(policy, tables)
    for head in ("dense, predicted", "now, predicted", "share of now") if times else ():
        table.add_column(head, justify="right")
    for name in rows:
        labels = [_label(policy, name, knob, summary.widths.get(name)) for knob in knobs]
        table.add_row(name, *labels, *(times.get(name, ("", "", "")) if times else ()))
    return table


def _label(policy: Policy, target: str, knob: str, width: int | None) -> str:
    spec = next((spec for name, spec in policy if name == target and spec.knob == knob), None)
    if spec is None:
        return ""
    return f"{spec.label} of {width}" if isinstance(spec, Prune) and width else spec.label


def _times(policy: Policy, tables: Tables | None) -> dict[str, tuple[str, str, str]]:
    """Layer -> (dense, now, share of now); empty where the run did not record them."""
    now = tables.layers_s.get(policy.digest) if tables else None
    dense = tables.layers_s.get(Policy().digest) if tables else None
    if tables is None or now is None or dense is None:
        return {}
    shares = tables.shares(policy)
    return {
        name: (
            wording.quantity("latency_s", before),
            wording.quantity("latency_s", after),
            f"{100 * shares[name]:.1f} %",
        )
        for name, before, after in zip(tables.layers, dense, now, strict=True)
    }


def _layers_record(summary: Summary, tables: Tables | None) -> dict[str, Any]:
    """Layer -> {"dense_s", "best_s", "share"}, predicted; empty where the run did not record them."""
    chosen = summary.best or summary.smallest or summary.dense
    now = tables.layers_s.get(chosen.policy.digest) if tables else None
    dense = tables.layers_s.get(Policy().digest) if tables else None
    if tables is None or now is None or dense is None:
        return {}
    shares = tables.shares(chosen.policy)
    rows = zip(tables.layers, dense, now, strict=True)
    return {name: {"dense_s": before, "best_s": after, "share": shares[name]} for name, before, after in rows}


def _left_alone_table(summary: Summary) -> Table:
    table = Table(title="Left alone", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer")
    table.add_column("why")
    for layer, reason in summary.left_alone:
        table.add_row(layer, reason)
    return table
