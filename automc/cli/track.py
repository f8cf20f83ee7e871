"""`automc track`: record in MLflow what a search could not, because the server was away."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from automc.cli.complete import run_names
from automc.cli.report import print_json, stderr, stdout
from automc.errors import MissingError
from automc.recipe import RecordedTrials
from automc.rundir import RunDir

__all__ = ["track"]

_EPILOG = """\b
Examples:
  automc track --run digits-50ms
  automc track --run digits-50ms --tracking-uri http://server:5000 --register digits
"""


@click.command(epilog=_EPILOG, short_help="Upload a run to MLflow.")
@click.option("--run", "name", required=True, help="Name of the run.", shell_complete=run_names)
@click.option("--tracking-uri", metavar="URI", help="MLflow server or store. Default: where the search recorded.")
@click.option(
    "--mlflow-trials",
    type=click.Choice(get_args(RecordedTrials)),
    help="Which trials get a nested run. Default: as the search was asked.",
)
@click.option("--register", metavar="NAME", help="Register the best models under this name, aliases best and knee.")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
def track(
    name: str,
    tracking_uri: str | None,
    mlflow_trials: RecordedTrials | None,
    register: str | None,
    folder: str,
    as_json: bool,
) -> None:
    """Record a run in MLflow, or the part of it that MLflow lacks; what is there already is kept."""
    run = RunDir.open(Path(folder), name)
    from automc.track.mlflow import recorded_as, ui_command, upload

    warnings: list[str] = []
    if not upload(run, tracking_uri, trials=mlflow_trials, register=register, on_warning=warnings.append):
        for warning in warnings[:1]:
            stderr().print(f"Warning: {warning}", soft_wrap=True)
        raise MissingError(f"MLflow lacks part of the run {name!r}.", remedy="Start the server, and run this again.")
    run_id, uri = recorded_as(run)
    if as_json:
        print_json({"run": name, "mlflow_run_id": run_id, "tracking_uri": uri})
    else:
        stdout().print(f"Recorded as MLflow run {run_id}. To look at it: {ui_command(uri)}", soft_wrap=True)
