"""`automc check`: every fault of a search's settings at once, before anything is spent."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from automc.cli.options import job_options, settings
from automc.cli.report import print_json, stdout

__all__ = ["check"]

BAD_INPUT = 2
_EPILOG = """\b
Examples:
  automc check --model net.py:build --weights w.safetensors --data data.py:loaders --budget 60%
  automc check recipe.yaml
"""


@click.command(epilog=_EPILOG, short_help="Report all faults of the settings at once.")
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of sentences.")
@click.pass_context
def check(context: click.Context, /, as_json: bool, **_options: Any) -> int:
    """Report all faults of the settings at once, and what a search would have to work with."""
    with contextlib.redirect_stdout(sys.stderr):
        from automc.evaluate.faults import find_faults

        faults = find_faults(**settings(context))
    if as_json:
        print_json({"faults": faults})
    else:
        for fault in faults or ["Nothing is wrong with these settings."]:
            stdout().print(fault)
    return BAD_INPUT if faults else 0
