"""`automc compare`: two or more runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from automc import wording
from automc.cli.complete import run_names
from automc.cli.report import print_json, stdout
from automc.errors import InputError
from automc.policy import Policy
from automc.result import Finalist, Summary
from automc.rundir import RunDir

__all__ = ["compare"]

_EPILOG = """\b
Examples:
  automc compare digits-50ms digits-30ms
  automc compare digits-50ms digits-30ms --json
"""


@click.command(epilog=_EPILOG, short_help="Print runs side by side.")
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN ...", shell_complete=run_names)
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the tables.")
def compare(names: tuple[str, ...], folder: str, as_json: bool) -> None:
    """Print the results of runs side by side, and the layers that their winners compress differently."""
    if len(names) < 2:
        raise InputError("There is one run to compare.", remedy="Name another; `automc runs` lists them.")
    summaries = [RunDir.open(Path(folder), name).summary() for name in names]
    if as_json:
        print_json({"runs": [summary.to_json() for summary in summaries], "differences": _differences(summaries)})
        return
    console = stdout()
    console.print(_result_table(summaries))
    if len({(s.model, s.device, s.batch_size) for s in summaries}) > 1:
        console.print("These runs differ in model, device or batch size: their latencies are not of one scale.")
    differences = _differences(summaries)
    console.print(_policy_table(summaries, differences) if differences else "Their policies are the same.")


def _chosen(summary: Summary) -> Finalist:
    return summary.best or summary.smallest or summary.dense


def _result_table(summaries: Sequence[Summary]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for summary in summaries:
        table.add_column(summary.name, justify="right")
    for label, cell in _ROWS:
        table.add_row(label, *map(cell, summaries))
    return table


def _score(split: str) -> Callable[[Summary], str]:
    return lambda s: wording.score(s.score_name, getattr(_chosen(s), split))


def _lost(summary: Summary) -> str:
    return wording.score_change(summary.score_name, summary.dense.validation, _chosen(summary).validation)


def _speedup(summary: Summary) -> str:
    dense, chosen = summary.dense.cost.latency_s, _chosen(summary).cost.latency_s
    return f"{dense / chosen:.2f}" if dense and chosen else wording.NOTHING


_ROWS: tuple[tuple[str, Callable[[Summary], str]], ...] = (
    ("model", lambda s: s.model),
    ("device", lambda s: s.device),
    ("agent", lambda s: s.agent),
    ("budget", lambda s: " and ".join(s.budget)),
    ("budget held", lambda s: "yes" if s.best else "no"),
    ("score, test", _score("test")),
    ("score, validation", _score("validation")),
    ("  against dense", _lost),
    ("latency", lambda s: wording.known(_chosen(s).cost, "latency_s")),
    ("  95 % interval", lambda s: wording.interval(_chosen(s).cost)),
    ("  times as fast as dense", _speedup),
    ("energy", lambda s: wording.known(_chosen(s).cost, "energy_j")),
    ("size", lambda s: wording.quantity("size_bytes", _chosen(s).cost.size_bytes)),
    ("MACs", lambda s: wording.quantity("macs", _chosen(s).cost.macs)),
    ("predictor's error", lambda s: wording.error(s.predictor)),
    ("trials", lambda s: str(s.trials)),
    ("time in all", lambda s: wording.duration(sum(s.seconds.values()))),
)


def _differences(summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """Target -> what each run does to it, where they do not all do the same."""
    policies = [_chosen(summary).policy for summary in summaries]
    targets = dict.fromkeys(target for policy in policies for target, _ in policy)
    labels = {target: [_label(policy, target) for policy in policies] for target in targets}
    return {target: found for target, found in labels.items() if len(set(found)) > 1}


def _label(policy: Policy, target: str) -> str:
    return ", ".join(spec.label for name, spec in policy if name == target) or "dense"


def _policy_table(summaries: Sequence[Summary], differences: dict[str, Any]) -> Table:
    table = Table(title="Where the policies differ", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer or channel group")
    for summary in summaries:
        table.add_column(summary.name)
    for target, labels in differences.items():
        table.add_row(target, *labels)
    return table
