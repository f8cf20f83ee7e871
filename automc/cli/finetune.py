"""`automc finetune`: train a model of a finished run further, and certify it again."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table

from automc import wording
from automc.cli.complete import run_names
from automc.cli.options import duration
from automc.cli.report import print_json, stdout
from automc.cli.screen import screen
from automc.rundir import RunDir

if TYPE_CHECKING:
    from automc.finetuning import Tuned

__all__ = ["finetune"]

_EPILOG = """\b
Examples:
  automc finetune --run digits-50ms --epochs 10
  automc finetune --run digits-50ms --point knee --time 10m --workers 2
"""


@click.command(epilog=_EPILOG, short_help="Fine-tune a model of a run.")
@click.option(
    "--run", "name", required=True, help="Name of the run, as `automc runs` lists it.", shell_complete=run_names
)
@click.option(
    "--point", default="best", show_default=True, metavar="best|knee|TRIAL", help="Which model; a number is of a trial."
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of the longest training. Default: 10, or what --time allows.",
)
@click.option("--time", "seconds", type=duration, metavar="DURATION", help="For all trainings together, such as 10m.")
@click.option(
    "--trainings",
    type=click.IntRange(min=1),
    help="How many, of which the promising go on. Default: 6, or as many as leave the longest its --epochs, or 60, in --time.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="CPUs: trainings at a time; a single one takes them all.",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="Ray cluster to train on, whose nodes have automc and see the folder of the runs. Default: this machine.",
)
@click.option(
    "--frozen/--unfrozen",
    default=None,
    help="Keep batch-norm statistics as they are. Default: where the model is near the dense one.",
)
@click.option("--hints", is_flag=True, help="Try to teach features of the dense model as well (FitNets).")
@click.option("--attention", is_flag=True, help="Try to teach attention maps of the dense model as well.")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the table.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, only the result.")
def finetune(
    name: str,
    point: str,
    epochs: int | None,
    seconds: str | None,
    trainings: int | None,
    workers: int,
    ray_address: str | None,
    frozen: bool | None,
    hints: bool,
    attention: bool,
    folder: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fine-tune a model of a finished run, certify it against the run's budget, and keep it where it is better.

    The dense model teaches; labels are used where there are any. The same command goes on with one that was interrupted.
    """  # fmt: skip
    RunDir.open(Path(folder), name)  # a wrong name is told before the slow import
    with screen(quiet=quiet) as watching, contextlib.redirect_stdout(sys.stderr):
        watching.stage("load libraries", None)
        from automc.finetuning import finetune as run

        tuned = run(
            name, point=point, epochs=epochs, time=seconds, runs=folder, observer=watching, trainings=trainings,
            workers=workers, address=ray_address, frozen=frozen, hints=hints, attention=attention,
        )  # fmt: skip
    if as_json:
        print_json(
            {
                "run": name,
                "kept": tuned.is_kept,
                "reason": tuned.reason,
                "before": tuned.before.to_json(),
                "after": tuned.after.to_json(),
            }
        )
    else:
        _show(tuned, Path(folder) / name)


def _show(tuned: Tuned, path: Path) -> None:
    console = stdout()
    console.print(_table(tuned))
    console.print(tuned.reason or f"Kept in {path}; best/ and report.html hold what is best now.", soft_wrap=True)


def _table(tuned: Tuned) -> Table:
    summary, name = tuned.summary, tuned.summary.score_name
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("dense", "before", "fine-tuned", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for split in ("validation", "test"):
        dense, before, after = (getattr(f, split) for f in (summary.dense, tuned.before, tuned.after))
        if after is not None:
            scores = (wording.score(name, value) for value in (dense, before, after))
            table.add_row(f"{name}, {split}", *scores, wording.score_change(name, before, after))
    table.add_row("latency", *(wording.latency(f.cost) for f in (summary.dense, tuned.before, tuned.after)), "")
    return table
