"""Machines that automc is not on: the kit that goes there, and the device file that comes back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automc import __version__, registry
from automc.devices.cpu import Cpu
from automc.devices.device import Capabilities, Device, device_path, digest
from automc.devices.kit import agent_archive, patterned, probe_files
from automc.devices.lines import append_lines
from automc.devices.probe_models import probe_set
from automc.disk import explained, write_atomic
from automc.errors import AutomcError, InputError
from automc.predict.attribute import places_in
from automc.predict.device_file import DeviceFile, known_devices
from automc.predict.profile import now
from automc.predict.profile import subject as subject_digest
from automc.predict.sampling import stratified
from automc.predict.store import records
from automc.predict.targets import Recorded
from automc.profiling import Subject
from automc.protocols import Observer

__all__ = ["ASSUMED", "emit_kit", "import_file", "unknown_target"]

ASSUMED = Capabilities(channel_block=8, channel_multiple=4, reduce_range=True)
"""What candidates are drawn for where the target is not known yet: counts of whole blocks of 8, weights that no kernel saturates with."""


def unknown_target() -> Device:
    """The device that a kit is emitted for."""
    return Recorded(DeviceFile(Path(), "unknown", "the target", {}, ASSUMED))


def emit_kit(path: Path, subject: Subject, observer: Observer, *, candidates: int = 24, seed: int = 0) -> Path:
    """Write a kit, in a folder that is made where it is missing, with the probes and the candidates of a subject, whose device is `unknown_target()`.

    Raises:
        AutomcError: no candidate could be built.
        DiskError: the file cannot be written.
    """
    offered, build = subject.offered, subject.builder()
    policies = offered.space.decode(stratified(offered.space, candidates, seed))
    observer.stage("build the kit", float(len(policies)))
    probes, files = probe_files(probe_set())
    entries: list[dict[str, Any]] = []
    names = [layer.module for layer in offered.graph.priced]
    for policy in policies:
        try:
            model = build(policy)
        except Exception as error:  # one candidate that cannot be built is said and left out
            observer.message(f"A candidate could not be built: {error}", "warning")
            continue
        file = f"candidates/{policy.digest}.onnx"
        files[file] = patterned(model)
        places = {name: list(place) for name, place in places_in(model, names).items()}
        entry = {"policy": policy.to_json(), "digest": policy.digest, "size_bytes": len(model), "places": places}
        entries.append({**entry, "model": file})
        observer.advance()
    if not entries:
        raise AutomcError("No candidate of the model could be built.", remedy="`automc check` says what it offers.")
    arrays = [tensor.numpy() for tensor in subject.example]
    manifest = {
        "version": __version__,
        "created": now(),
        "label": subject.label,
        "batch_size": len(arrays[0]),
        "subject": subject_digest(offered.space, arrays, subject.dense_onnx),
        "inputs": [[str(array.dtype), list(array.shape)] for array in arrays],
        "capabilities": dataclasses.asdict(ASSUMED),
        "probes": probes,
        "candidates": entries,
    }
    return write_atomic(path, agent_archive({**files, "kit.json": json.dumps(manifest).encode()}))


def import_file(path: Path, observer: Observer, *, name: str | None = None, strict: bool = False) -> DeviceFile:
    """Take a device file that a kit wrote among the known devices, under a name, by default its host's; what is damaged is left out, and said.

    Files of the same machine and name are one device; every other name is a device of its own, and none is ever this machine.

    Raises:
        InputError: no such file, or not a device file, or one without more than probes; the name cannot be used; with `strict` also
            where lines are damaged or automc was of another version.
        DiskError: it cannot be kept.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}.", remedy="Give the .jsonl file that the kit wrote.")
    found = DeviceFile.read(path)
    if found is None and any(line["kind"] == "space" for line in records(path)):
        raise InputError(f"{path} was broken off in its probes.", remedy="Run the kit again there: it goes on.")
    if found is None or not found.off_board:
        raise InputError(f"{path} is not a device file of a kit.", remedy="Give the .jsonl file that the kit wrote.")
    label = _label(found, name)
    doubts = [*found.damaged, *_doubts(found)]
    if doubts and strict:
        raise InputError(" ".join(doubts), remedy="Measure again, or leave out --strict.")
    for doubt in doubts:
        observer.message(doubt, "warning")
    key = f"kit-{digest(found.key, label)}"
    target = device_path(key)
    known = {json.dumps(line, sort_keys=True) for line in records(target)}
    given = {json.dumps(line, sort_keys=True): line for line in (_rekeyed(line, key, path) for line in records(path))}
    fresh = [line for text, line in given.items() if text not in known]
    if known and not any(text in known for text, line in given.items() if line["kind"] != "space"):
        observer.message(
            f"{label} was measured before, and this adds to it: give --name where it is another machine.", "warning"
        )
    with explained(target):
        append_lines(target, [*map(_split, fresh), *([] if known else [("name", {"name": label})])])
    read = DeviceFile.read(target)
    assert read is not None
    return read


def _label(found: DeviceFile, name: str | None) -> str:
    """What the machine of a file is called.

    Raises:
        InputError: by that name it could not be opened, or another device is meant.
    """
    host = found.environment.get("host", "")
    label = (host if name is None else name).strip()
    if not label:
        raise InputError("The machine has no name.", remedy="Give --name NAME, such as --name pi.")
    if label in (".", "..") or any(mark in label for mark in "/\\") or not label.isprintable():
        raise InputError(
            f"{label!r} cannot be the name of a device.", remedy="Give a --name without slashes, such as pi."
        )
    if label in registry.names("device") or label.startswith("ssh:"):
        raise InputError(
            f"--device {label} already means a device of automc.", remedy="Give another --name, such as pi."
        )
    holders = [device for device in known_devices() if label in (device.name, device.key)]
    if any(not device.off_board or device.environment.get("host", "") != host for device in holders):
        raise InputError(f"{label!r} is already the name of another machine.", remedy="Give another --name.")
    return label


def _rekeyed(line: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """A line as it stands in the file of the device `key`.

    Raises:
        InputError: it does not say which model it is of.
    """
    of_model = {"key": digest(key, line["subject"])} if "subject" in line else {}
    if "key" in line and not of_model:
        raise InputError(
            f"{path} is of a kit of an earlier automc.", remedy="Emit the kit again, and run that one there."
        )
    return {**line, **of_model, **({"device_key": key} if "device_key" in line else {})}


def _doubts(found: DeviceFile) -> list[str]:
    """What speaks against relying on the file."""
    version = found.environment.get("kit_version", "")
    doubts = []
    if version != __version__:
        doubts.append(f"The kit was of automc {version or 'unknown'}; this is {__version__}.")
    if mismatch := found.mismatch(Cpu(int(found.environment.get("threads", "1"))).environment()):
        doubts.append(mismatch)
    if found.broken_off:
        doubts.append("The kit was broken off before its models were measured whole: run it again, it goes on.")
    return doubts


def _split(line: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return line["kind"], {name: value for name, value in line.items() if name not in ("kind", "schema")}
