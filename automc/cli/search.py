"""`automc search`: find the best policy within the budget, certify it, record it."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from automc.cli.options import job_options, settings
from automc.cli.report import print_json, stdout
from automc.cli.screen import screen
from automc.cli.table import budget_lines, heading, result_table
from automc.errors import BudgetUnreachableError
from automc.result import Summary

if TYPE_CHECKING:
    from automc.job import Job

__all__ = ["search"]

_FILES = {
    "model": "best/model.onnx",
    "torch": "best/model.pt2",
    "policy": "best/policy.json",
    "certificate": "best/certificate.json",
    "report": "report.html",
    "front": "front.json",
    "trials": "trials.jsonl",
    "config": "config.yaml",
    "summary": "summary.json",
}
_EPILOG = """\b
Examples:
  automc search --budget 50ms
  automc search --model net.py:build --weights w.safetensors --data data.py:loaders --budget 60% --budget 4MB
"""


@click.command(epilog=_EPILOG, short_help="Find the best policy within the budget.")
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the table.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, only the result.")
@click.pass_context
def search(context: click.Context, /, as_json: bool, quiet: bool, **_options: Any) -> int:
    """Find the best compression within the budget, measure it, and keep the record.

    Options may also stand in RECIPE.yaml, under the same names; flags override it.
    """
    fields = settings(context)  # before the slow import: a slip in the recipe is told at once
    with screen(quiet=quiet) as watching, contextlib.redirect_stdout(sys.stderr):
        watching.stage("load libraries", None)
        from automc.job import Job, run

        job = Job(**fields)
        summary = run(job, watching)
    folder = Path(job.runs) / summary.name
    if as_json:
        print_json({**summary.to_json(), "run_dir": str(folder), "paths": _paths(folder)})
    else:
        _show(summary, job, folder)
    return BudgetUnreachableError.exit_code if summary.best is None else 0


def _show(summary: Summary, job: Job, folder: Path) -> None:
    console = stdout()
    console.print()
    console.print(heading(summary))
    console.print(result_table(summary))
    for line in (*budget_lines(summary), *_left_alone(summary, job)):
        console.print(line)
    console.print(f"\nFiles in {folder}:")
    for name, path in _paths(folder).items():
        console.print(f"  {name:13}{path}", soft_wrap=True)
    console.print("\nNext:")
    for command in _next(summary, job):
        console.print(f"  {command}", soft_wrap=True)


def _paths(folder: Path) -> dict[str, str]:
    return {name: str(folder / path) for name, path in _FILES.items() if (folder / path).is_file()}


def _left_alone(summary: Summary, job: Job) -> list[str]:
    if not summary.left_alone:
        return []
    return [
        f"{len(summary.left_alone)} layers or knobs were left alone; `{_show_command(summary, job)}` says which and why."
    ]


def _show_command(summary: Summary, job: Job) -> str:
    return shlex.join(["automc", "show", summary.name, *_runs(job)])


def _runs(job: Job) -> list[str]:
    return [] if job.runs == "runs" else ["--runs", job.runs]


def _next(summary: Summary, job: Job) -> list[str]:
    from automc.track.mlflow import tracking_uri, ui_command

    look = [_show_command(summary, job)]
    if job.tracking_uri != "":  # nothing was recorded there
        look.append(ui_command(tracking_uri(job.tracking_uri)))
    take = shlex.join(["automc", "export", "--run", summary.name, *_runs(job), "--format", "onnx", "--out", "deploy"])
    return [*look, take] if summary.best else look
