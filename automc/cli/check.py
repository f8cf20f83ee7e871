"""`automc check`: every fault of a search's settings at once, before anything is spent; then what it would work with."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from automc.cli.options import job_options, settings
from automc.cli.report import print_json, stdout
from automc.errors import InputError
from automc.locating import located
from automc.recipe import Job
from automc.units import format_quantity

if TYPE_CHECKING:
    from automc.offer import Offer

__all__ = ["check"]

SAMPLES = 2
"""Enough to trace a model; a whole batch only takes longer."""
_KNOBS = {
    "prune": "channel groups can be pruned",
    "quantize": "layers can be quantised",
    "low_rank": "layers can be factorised",
    "sparsify": "layers can be thinned out",
}
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
    fields = located(settings(context))
    with contextlib.redirect_stdout(sys.stderr):
        from automc.faults import find_faults

        job = Job(**{**fields, "batch_size": _batch_size(fields)})
        faults = find_faults(job)
        offered = None if faults else _offer(job)
    if as_json:
        print_json({"faults": [str(fault) for fault in faults], "offer": _record(offered) if offered else None})
    else:
        for line in _lines(offered) if offered else faults:
            stdout().print(line, soft_wrap=True)
    codes = {fault.exit_code for fault in faults}
    return codes.pop() if len(codes) == 1 else InputError.exit_code if faults else 0


def _offer(job: Job) -> Offer:
    from automc.devices.cpu import Cpu
    from automc.evaluate.data import gather
    from automc.evaluate.loading import load_data
    from automc.evaluate.models import load_model
    from automc.offer import offer
    from automc.predict.targets import open_device
    from automc.prepare import CALIBRATION_SAMPLES, exactly, export_dense

    assert job.batch_size is not None
    model = load_model(job.model, Path(job.weights) if job.weights else None)
    data = load_data(job.data, job.batch_size, job.seed)
    device = open_device(job.device, job.threads)
    example = [tensor[:SAMPLES] for tensor in data.example()]
    offered = offer(model, example, device, space=job.space, names=data.input_names)
    inputs = gather(data.calibration, CALIBRATION_SAMPLES)
    # As a search will, wherever it deploys.
    export_dense(offered.traced, exactly(inputs, job.batch_size), inputs, Cpu())
    return offered


def _batch_size(fields: Mapping[str, Any]) -> int:
    from automc.demo.model import BATCH_SIZE

    given: int | None = fields["batch_size"]
    return given or (1 if fields["model"] else BATCH_SIZE)


def _lines(offered: Offer) -> list[str]:
    graph, space = offered.graph, offered.space
    return [
        "Nothing is wrong with these settings. A search would have to work with:",
        f"  {len(graph.priced)} layers of {format_quantity('macs', graph.macs)} in all, per sample",
        *(f"  {offered.targets(knob)} {what}, {offered.choices(knob)} choices" for knob, what in _KNOBS.items()),
        f"  10^{math.log10(space.size):.0f} policies",
        *(["Left alone:"] if graph.left_alone else []),
        *(f"  {left.name}: {left.reason}" for left in graph.left_alone),
    ]


def _record(offered: Offer) -> dict[str, Any]:
    knobs = {knob: {"targets": offered.targets(knob), "choices": offered.choices(knob)} for knob in _KNOBS}
    left_alone = [[left.name, left.reason] for left in offered.graph.left_alone]
    return {"layers": len(offered.graph.priced), "macs": offered.graph.macs, "knobs": knobs, "left_alone": left_alone}
