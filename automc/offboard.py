"""Machines that automc is not on: the kit that goes there, and the device file that comes back."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automc import __version__
from automc.devices.cpu import Cpu
from automc.devices.device import Capabilities, Device, cache_dir
from automc.devices.kit import agent_archive, patterned, probe_files
from automc.devices.probe_models import probe_set
from automc.disk import write_atomic
from automc.errors import AutomcError, InputError
from automc.predict.attribute import places_in
from automc.predict.device_file import DeviceFile
from automc.predict.profile import subject as subject_digest
from automc.predict.sampling import stratified
from automc.predict.store import append, records
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
    """Write a kit with the probes and the candidates of a subject, whose device is `unknown_target()`.

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
            observer.message(f"a candidate could not be built: {error}", "warning")
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
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "label": subject.label,
        "batch_size": len(arrays[0]),
        "subject": subject_digest(offered.space, arrays, subject.dense_onnx),
        "inputs": [[str(array.dtype), list(array.shape)] for array in arrays],
        "capabilities": dataclasses.asdict(ASSUMED),
        "probes": probes,
        "candidates": entries,
    }
    return write_atomic(path, agent_archive({**files, "kit.json": json.dumps(manifest).encode()}))


def import_file(path: Path, observer: Observer, *, name: str = "", strict: bool = False) -> DeviceFile:
    """Take a device file that a kit wrote among the known devices; what is damaged is left out, and said.

    Raises:
        InputError: no such file, or not a device file; with `strict` also where lines are damaged or automc was of another version.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}.", remedy="Give the .jsonl file that the kit wrote.")
    found = DeviceFile.read(path)
    if found is None or not found.off_board:
        raise InputError(f"{path} is not a device file of a kit.", remedy="Give the .jsonl file that the kit wrote.")
    doubts = [*found.damaged, *_doubts(found)]
    if doubts and strict:
        raise InputError(" ".join(doubts), remedy="Measure again, or leave out --strict.")
    for doubt in doubts:
        observer.message(doubt, "warning")
    target = cache_dir() / "devices" / f"{found.key}.jsonl"
    known = [json.dumps(line, sort_keys=True) for line in records(target)]
    fresh = [line for line in records(path) if json.dumps(line, sort_keys=True) not in known]
    append(target, [_split(line) for line in fresh], observer)
    named = any(line["kind"] == "name" for line in records(target))
    label = name or ("" if named else found.environment.get("host", ""))
    if label:
        append(target, [("name", {"name": label})], observer)
    read = DeviceFile.read(target)
    assert read is not None
    return read


def _doubts(found: DeviceFile) -> list[str]:
    """What speaks against relying on the file."""
    version = found.environment.get("kit_version", "")
    doubts = []
    if version != __version__:
        doubts.append(f"The kit was of automc {version or 'unknown'}; this is {__version__}.")
    if mismatch := found.mismatch(Cpu(int(found.environment.get("threads", "1"))).environment()):
        doubts.append(mismatch)
    if not found.heads:
        doubts.append("The kit was broken off before its models were measured whole: run it again, it goes on.")
    return doubts


def _split(line: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return line["kind"], {name: value for name, value in line.items() if name not in ("kind", "schema")}
