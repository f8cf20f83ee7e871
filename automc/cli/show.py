"""`automc show`: one run's front and policy, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from automc.cli import text
from automc.cli.report import print_json, stdout
from automc.cli.table import budget_lines, heading, result_table
from automc.policy import Policy, Prune, Sparsify
from automc.result import Summary
from automc.rundir import RunDir
from automc.trial import Cost

__all__ = ["show"]

_KNOBS = ("prune", "low_rank", "sparsify", "quantize")
_EPILOG = """\b
Examples:
  automc show digits-50ms
  automc show digits-50ms --json
"""


@click.command(epilog=_EPILOG, short_help="Print a run's front and policy.")
@click.argument("run")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the tables.")
def show(run: str, folder: str, as_json: bool) -> None:
    """Print the result, the Pareto front and the winning policy of a run."""
    found = RunDir.open(Path(folder), run)
    summary = _summary(found)
    points = found.front() if (found.path / "front.json").is_file() else []
    if as_json:
        print_json({"run": found.name, "summary": summary.to_json() if summary else None, "front": points})
        return
    console = stdout()
    if summary is None:
        console.print(f"The search {run!r} has not ended; it has {len(found.trials())} trials so far.")
    else:
        _print_result(console, summary)
    if points:
        console.print(_front_table(points, summary))
    if summary is not None and summary.best is not None:
        console.print(_policy_table(summary.best.policy, summary.widths))
    if summary is not None and summary.left_alone:
        console.print(_left_alone_table(summary))


def _summary(run: RunDir) -> Summary | None:
    return run.summary() if (run.path / "summary.json").is_file() else None


def _print_result(console: Console, summary: Summary) -> None:
    console.print(heading(summary))
    console.print(result_table(summary))
    for line in budget_lines(summary):
        console.print(line)


def _front_table(points: list[dict[str, Any]], summary: Summary | None) -> Table:
    name = summary.score_name if summary else "score"
    best = summary.best.policy.digest if summary and summary.best else ""
    table = Table(title="Pareto front, cheapest first", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("trial", name, "latency", "known by", "size", "MACs", "policy"):
        table.add_column(column, justify="left" if column in ("known by", "policy") else "right")
    for point in points:
        cost = Cost.from_json({**point["cost"], "source": point["source"]})
        table.add_row(
            str(point["number"]),
            text.score(name, point["score"]),
            text.latency(cost),
            cost.source.get("latency_s", ""),
            text.quantity("size_bytes", cost.size_bytes),
            text.quantity("macs", cost.macs),
            point["digest"] + (" ← best" if point["digest"] == best else ""),
        )
    return table


def _policy_table(policy: Policy, widths: Mapping[str, int]) -> Table:
    """One row per target, one column per knob; what is not listed stays as it was."""
    labels: dict[str, dict[str, str]] = {}
    for target, spec in policy:
        whole = f" of {widths[target]}" if isinstance(spec, Prune) and target in widths else ""
        labels.setdefault(target, {})[spec.knob] = spec.label + whole
    table = Table(
        title=f"Policy {policy.digest}: what changed, layer by layer", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("layer or channel group")
    chosen = [knob for knob in _KNOBS if knob != Sparsify.knob or any(knob in knobs for knobs in labels.values())]
    for knob in chosen:
        table.add_column(knob.replace("_", " "))
    for target, knobs in labels.items():
        table.add_row(target, *(knobs.get(knob, "") for knob in chosen))
    return table


def _left_alone_table(summary: Summary) -> Table:
    table = Table(title="Left alone", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer")
    table.add_column("why")
    for layer, reason in summary.left_alone:
        table.add_row(layer, reason)
    return table
