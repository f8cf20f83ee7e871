"""`automc profile`: measure a device, so that searches know what a compressed model will cost on it."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from automc import wording
from automc.cli.options import JOB_OPTIONS, duration
from automc.cli.report import print_json, stdout
from automc.cli.screen import screen
from automc.disk import try_folder
from automc.errors import InputError
from automc.units import parse_duration

if TYPE_CHECKING:
    from automc.devices.device import Device
    from automc.predict.device_file import DeviceFile
    from automc.profiling import Subject
    from automc.protocols import Observer
    from automc.result import PredictorReport
    from automc.transfer import Transfer

__all__ = ["profile"]

_SHARED = ("model", "weights", "data", "batch_size", "device", "threads", "space", "seed")
_KIT = "Measure nothing; write a file that measures another machine, which needs Python, numpy and onnxruntime alone."
_FEW = "Measure only so many whole candidates; what other devices' profiles of the same model taught does the rest."
_RETURNED = "Measure nothing; take in the device file that a kit wrote."
_EPILOG = """\b
Examples:
  automc profile --model torchvision:resnet18 --input 3x224x224
  automc profile --device ssh:pi@pi --few 20 --model torchvision:resnet18 --input 3x224x224
"""


def _shared_options(command: Any) -> Any:
    existing = command.__dict__.setdefault("__click_params__", [])
    existing.extend(reversed([option for option in JOB_OPTIONS if option.name in _SHARED]))
    return command


@click.command(epilog=_EPILOG, short_help="Measure a device.")
@_shared_options
@click.option("--input", "shape", metavar="SHAPE", help="Shape of one input such as 3x224x224, in place of --data.")
@click.option("--time", "limit", type=duration, default="200s", show_default=True, help="For the model's candidates.")
@click.option("--wait", type=duration, default="30s", show_default=True, help="How long to wait for idle cores.")
@click.option("--again", is_flag=True, help="Measure probes and candidates anew, not only what is missing.")
@click.option("--probes-only", is_flag=True, help="Measure the device alone, with no model.")
@click.option("--few", "shots", metavar="N", type=int, help=_FEW)
@click.option("--emit-kit", "kit", metavar="FILE.zip", type=click.Path(path_type=Path), help=_KIT)
@click.option("--from-kit", "returned", metavar="FILE.jsonl", type=click.Path(path_type=Path), help=_RETURNED)
@click.option("--name", metavar="NAME", help="What to call the machine of --from-kit. Default: its host name.")
@click.option(
    "--strict", is_flag=True, help="With --from-kit: refuse a file of another machine or version, or a damaged one."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of sentences.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, only the result.")
def profile(
    shape: str | None,
    limit: str,
    wait: str,
    again: bool,
    probes_only: bool,
    shots: int | None,
    kit: Path | None,
    returned: Path | None,
    name: str | None,
    strict: bool,
    as_json: bool,
    quiet: bool,
    **fields: Any,
) -> None:
    """Measure a device: small probes, then compressed candidates of a model, kernel by kernel and whole.

    What was measured is kept at once: a profile that is broken off goes on where it ended, and searches of the same model use it.
    """
    if kit and returned:
        raise InputError("--emit-kit and --from-kit are two ends of one way.", remedy="Give one of the two.")
    if strict and not returned:
        raise InputError("--strict judges a file from elsewhere.", remedy="Give it with --from-kit.")
    if name is not None and not returned:
        raise InputError("--name names the machine of a file from elsewhere.", remedy="Give it with --from-kit.")
    if shots is not None and (kit or returned or probes_only):
        raise InputError(
            "--few measures a model on this device.", remedy="Leave out --emit-kit, --from-kit, --probes-only."
        )
    if kit:
        _try_place(kit)
    dims = _dims(shape) if shape else None
    report = None
    with screen(quiet=quiet) as watching, contextlib.redirect_stdout(sys.stderr):
        watching.stage("load libraries", None)
        if kit:
            written = _emit(kit, fields, dims, watching)
        elif returned:
            from automc.offboard import import_file

            known = import_file(returned, watching, name=name, strict=strict)
        elif shots is not None:
            few = _few(fields, dims, watching, shots, wait)
        else:
            known, report = _measure(fields, dims, watching, limit, wait, again, probes_only)
    if kit:
        _say_kit(written, as_json=as_json)
    elif shots is not None:
        _say_few(few, as_json=as_json)
    else:
        _say(known, report, as_json=as_json)


def _measure(
    fields: dict[str, Any], dims: tuple[int, ...] | None, observer: Observer, limit: str, wait: str, again: bool, bare: bool
) -> tuple[DeviceFile, PredictorReport | None]:  # fmt: skip
    from automc.devices.device import devices_dir
    from automc.predict.device_file import find_device_file
    from automc.predict.targets import open_device
    from automc.profiling import probe_device, profile_subject

    try_folder(devices_dir())
    device = open_device(fields["device"], fields["threads"])
    subject = None if bare else _subject(fields, dims, device)
    waited = parse_duration(wait)
    probe_device(device, observer, again=again, wait_s=waited)
    report = None
    if subject is not None:
        seconds = parse_duration(limit)
        _, report = profile_subject(
            subject, observer, time_limit_s=seconds, wait_s=waited, seed=fields["seed"], again=again
        )
    return find_device_file(device.key), report


def _few(fields: dict[str, Any], dims: tuple[int, ...] | None, observer: Observer, shots: int, wait: str) -> Transfer:
    from automc.devices.device import devices_dir
    from automc.predict.targets import open_device
    from automc.transfer import transfer

    try_folder(devices_dir())
    subject = _subject(fields, dims, open_device(fields["device"], fields["threads"]))
    return transfer(subject, shots, observer, seed=fields["seed"], wait_s=parse_duration(wait))


def _try_place(kit: Path) -> None:
    """See that a kit can be written there before it is built.

    Raises:
        InputError: not a name that the other machine would take for a kit.
        DiskError: the folder cannot be written to.
    """
    if kit.suffix.lower() != ".zip":
        raise InputError(f"{kit} is no name for a kit.", remedy="Give a name that ends in .zip, such as kit.zip.")
    if kit.is_dir():
        raise InputError(f"{kit} is a folder.", remedy="Give the name of a file, such as kit.zip.")
    try_folder(kit.parent)


def _emit(path: Path, fields: dict[str, Any], dims: tuple[int, ...] | None, observer: Observer) -> Path:
    from automc.offboard import emit_kit, unknown_target

    return emit_kit(path, _subject(fields, dims, unknown_target()), observer, seed=fields["seed"])


def _say_kit(path: Path, *, as_json: bool) -> None:
    size_mb = path.stat().st_size / 1e6
    if as_json:
        print_json({"kit": str(path), "size_bytes": path.stat().st_size})
        return
    stdout().print(f"Wrote {path} ({size_mb:.1f} MB). On the other machine, with Python 3.10 or later:", soft_wrap=True)
    stdout().print(f"  pip install numpy onnxruntime && python3 {shlex.quote(path.name)}", soft_wrap=True)
    stdout().print("Bring the file that it writes back and give it to `automc profile --from-kit FILE`.")


def _say_few(few: Transfer, *, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(few), "may_claim": few.may_claim})
    else:
        stdout().print(few.told(), soft_wrap=True)


def _say(known: DeviceFile, report: PredictorReport | None, *, as_json: bool) -> None:
    from automc.predict.words import learned

    lines = [*learned(known), *(_trust(report) if report else [])]
    if as_json:
        print_json({"device": known.name, "path": str(known.path), "learned": lines})
        return
    for line in lines:
        stdout().print(line, soft_wrap=True)
    stdout().print(f"The raw rounds: {known.path}", soft_wrap=True)


def _trust(report: PredictorReport) -> list[str]:
    return [f"Predicted latencies are {wording.errors(report)}.", *wording.coverage(report)]


def _dims(text: str) -> tuple[int, ...]:
    try:
        dims = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        dims = ()
    if not dims or min(dims) < 1:
        raise InputError(f"{text!r} is not a shape.", remedy="Write it without the batch, such as 3x224x224.")
    return dims


def _subject(fields: dict[str, Any], dims: tuple[int, ...] | None, device: Device) -> Subject:
    import torch

    from automc.demo.model import BATCH_SIZE
    from automc.evaluate.data import gather
    from automc.evaluate.loading import load_data
    from automc.evaluate.models import load_model
    from automc.profiling import Subject
    from automc.tracing.unwrap import unwrapped

    if fields["model"] and not fields["data"] and dims is None:
        raise InputError("The shape of the model's input is not known.", remedy="Give --input 3x224x224, or --data.")
    model = unwrapped(load_model(fields["model"], Path(fields["weights"]) if fields["weights"] else None))
    batch_size = fields["batch_size"] or (1 if fields["model"] else BATCH_SIZE)
    label = (fields["model"] or "demo").rpartition(":")[2]
    if dims is not None:
        inputs: tuple[Any, ...] = (torch.randn(batch_size, *dims),)
        return Subject.of_batch(model, inputs, batch_size, device, fields["space"], label=label)
    data = load_data(fields["data"], max(64, batch_size), fields["seed"])
    inputs = gather(data.calibration, batch_size)
    return Subject.of_batch(model, inputs, batch_size, device, fields["space"], data.input_names, label)
