"""`automc export`: take a model of a run home."""

from __future__ import annotations

from pathlib import Path

import click

from automc.cli.complete import run_names
from automc.cli.report import print_json, stdout
from automc.errors import InputError
from automc.rundir import RunDir

__all__ = ["export"]

_EPILOG = """\b
Examples:
  automc export --run digits-50ms --format onnx --out deploy
  automc export --run digits-50ms --budget 30ms --format pt2 --out deploy
"""


@click.command(epilog=_EPILOG, short_help="Write a model of a run to a folder.")
@click.option(
    "--run", "name", required=True, help="Name of the run, as `automc runs` lists it.", shell_complete=run_names
)
@click.option("--budget", metavar="LIMIT", help="The best model within this budget, instead of the run's own.")
@click.option("--knee", is_flag=True, help="The model beyond which more cost buys little score.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["onnx", "pt2", "policy"]),
    default="onnx",
    show_default=True,
    help="ONNX, torch.export, or the policy alone.",
)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
def export(name: str, budget: str | None, knee: bool, file_format: str, out: Path, folder: str, as_json: bool) -> None:
    """Write a model of a run to a folder, checked numerically against the torch model."""
    if knee and budget:
        raise InputError("--budget and --knee choose different models.", remedy="Give one of the two.")
    run = RunDir.open(Path(folder), name)  # a wrong name is told before the slow import
    from automc.export.run import export_run

    written = export_run(run.path, budget=budget, knee=knee, format=file_format, out=out)
    if as_json:
        print_json({"run": name, "format": file_format, "path": str(written)})
    else:
        stdout().print(f"Wrote {written}", soft_wrap=True)
