"""`automc runs`: what was searched before."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from automc import wording
from automc.cli.report import print_json, stdout
from automc.errors import InputError
from automc.result import Summary
from automc.rundir import RunDir, runs_in

__all__ = ["runs"]

_EPILOG = """\b
Examples:
  automc runs
  automc runs --runs /data/runs --json
"""


@click.command(epilog=_EPILOG, short_help="List the recorded runs.")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the table.")
def runs(folder: str, as_json: bool) -> None:
    """List the recorded runs, the latest first."""
    found = [(run, _summary(run)) for run in runs_in(Path(folder))]
    if as_json:
        print_json({"runs": [_record(run, summary) for run, summary in found]})
        return
    console = stdout()
    if not found:
        console.print(f"There are no runs in {folder}. `automc search --budget 50ms` makes one.")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("run", "when", "model", "budget", "score, test", "latency"):
        table.add_column(heading)
    for run, summary in found:
        table.add_row(run.name, _when(run), *(_cells(summary) if summary else ("", "", "", _state(run))))
    console.print(table)


def _summary(run: RunDir) -> Summary | None:
    """The summary, or None while the search has not ended; a damaged one is listed as unfinished too."""
    try:
        return run.summary()
    except InputError:
        return None


def _state(run: RunDir) -> str:
    """What an unfinished search is doing."""
    try:
        progress = run.progress()
    except InputError:
        progress = None
    return f"running: {progress.stage}" if progress is not None and progress.running else "not finished"


def _cells(summary: Summary) -> tuple[str, str, str, str]:
    best = summary.best
    if best is None:
        return summary.model, " and ".join(summary.budget), "", "budget not reached"
    score = wording.score(summary.score_name, best.test if best.test is not None else best.validation)
    return summary.model, " and ".join(summary.budget), score, f"{wording.latency(best.cost)} {best.source()}"


def _record(run: RunDir, summary: Summary | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": run.name,
        "path": str(run.path),
        "when": _when(run),
        "finished": summary is not None,
        "state": "finished" if summary is not None else _state(run),
    }
    if summary is not None:
        record |= {"model": summary.model, "device": summary.device, "budget": list(summary.budget)}
        record["best"] = summary.best.to_json() if summary.best else None
    return record


def _when(run: RunDir) -> str:
    changed = (run.path / "config.yaml").stat().st_mtime
    return datetime.datetime.fromtimestamp(changed).isoformat(sep=" ", timespec="minutes")
