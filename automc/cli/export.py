"""`automc export`: take a model of a run home."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from automc.cli.complete import run_names
from automc.cli.report import print_json, stdout
from automc.errors import InputError
from automc.rundir import RunDir

__all__ = ["export"]

_EPILOG = """\b
Examples:
  automc export --run digits-50ms --format onnx --out deploy
  automc export --mlflow-run 0123456789abcdef0123456789abcdef --knee --out deploy
"""


@click.command(epilog=_EPILOG, short_help="Write a model of a run to a folder.")
@click.option("--run", "name", help="Name of the run, as `automc runs` lists it.", shell_complete=run_names)
@click.option("--mlflow-run", metavar="ID", help="The MLflow run of the search, instead of a folder on this machine.")
@click.option("--tracking-uri", metavar="URI", help="MLflow server or store that --mlflow-run is of.")
@click.option("--budget", metavar="LIMIT", help="The best model within this budget, instead of the run's own.")
@click.option("--knee", is_flag=True, help="The model beyond which more cost buys little score.")
@click.option(
    "--format",
    type=click.Choice(["onnx", "pt2", "policy", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="ONNX, torch.export, the policy alone, or ONNX for TensorRT with the script that builds its engine.",
)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
def export(
    name: str | None,
    mlflow_run: str | None,
    tracking_uri: str | None,
    folder: str,
    as_json: bool,
    **choice: Any,
) -> None:
    """Write a model of a run to a folder, checked numerically against the torch model."""
    if choice["knee"] and choice["budget"]:
        raise InputError("--budget and --knee choose different models.", remedy="Give one of the two.")
    if (name is None) == (mlflow_run is None):
        raise InputError("Either --run or --mlflow-run says which run.", remedy="`automc runs` lists the runs here.")
    if name is not None:
        written = _written(RunDir.open(Path(folder), name), choice)
    else:
        from automc.track.mlflow import download

        with tempfile.TemporaryDirectory() as fetched:
            written = _written(download(mlflow_run or "", Path(fetched), tracking_uri), choice)
    if as_json:
        print_json({"run": name or mlflow_run, "format": choice["format"], "path": str(written)})
    else:
        stdout().print(f"Wrote {written}", soft_wrap=True)


def _written(run: RunDir, choice: dict[str, Any]) -> Path:
    from automc.export.run import export_run  # after a wrong name was told

    return export_run(run.path, **choice)
