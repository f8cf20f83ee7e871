"""The file of a device: what the probes told, and which models were profiled; who it is, and whether that is this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automc.devices.device import Capabilities, Device, devices_dir
from automc.devices.energy import Energy
from automc.devices.measure import Measurement
from automc.devices.probes import Probe, Probed, run_probes
from automc.errors import UnknownNameError
from automc.predict.profile import facts_of
from automc.predict.store import append, records
from automc.protocols import SILENT, Observer

__all__ = ["DeviceFile", "Head", "find_device_file", "keep_device", "known_devices", "probed"]


@dataclass(frozen=True)
class Head:
    """What is known of one profiled model without its kernels."""

    key: str
    label: str
    candidates: int
    failed: int
    batch_size: int
    seconds: float
    measurement: Measurement
    measured_at: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Head:
        """From the closing line of a profile."""
        return cls(
            record["key"], record.get("label", ""), record["candidates"], len(record.get("failed", ())),
            record["batch_size"], record["seconds"], Measurement.from_json(record["measurement"]),
            record["environment"].get("measured_at", ""),
        )  # fmt: skip


@dataclass(frozen=True)
class DeviceFile:
    """What is known of one device.

    Attributes:
        name: what people call it; the key where it has no name.
        space: what candidates were drawn for, where that was decided before the device was known.
        kernels: how many kernels were timed.
        broken_off: candidates of a model were not followed by its whole models, or there were none yet.
        energies: (model, what it took by the machine's counters).
        few: a sentence on each model of which few candidates were measured.
        damaged: notes on lines that could not be read.
    """

    path: Path
    key: str
    name: str
    environment: Mapping[str, str]
    capabilities: Capabilities
    probes: tuple[Probed, ...] = ()
    heads: tuple[Head, ...] = ()
    space: Capabilities | None = None
    kernels: int = 0
    damaged: tuple[str, ...] = ()
    off_board: bool = False
    broken_off: bool = False
    energies: tuple[tuple[str, Energy], ...] = ()
    few: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> DeviceFile | None:
        """The device of a file; None where it says nothing of one.

        Raises:
            OSError: it cannot be read.
        """
        listener = _Notes()
        lines = list(records(path, listener))
        told = [line for line in lines if line["kind"] in ("device", "few", "profile")]
        if not told:
            return None
        named = [line["name"] for line in lines if line["kind"] == "name"]
        spaces = [Capabilities.from_json(line["capabilities"]) for line in lines if line["kind"] == "space"]
        heads = {line["key"]: Head.of(line) for line in lines if line["kind"] == "profile"}
        begun = {line["key"] for line in lines if line["kind"] in ("candidate", "failure")}
        answers = [Probed.from_json(line) for line in lines if line["kind"] == "probe"]
        return cls(
            path, told[-1]["device_key"], named[-1] if named else told[-1]["device_key"], told[-1]["environment"],
            Capabilities.from_json(told[-1]["capabilities"]), tuple({(p.group, p.name): p for p in answers}.values()),
            tuple(heads.values()), spaces[-1] if spaces else None,
            sum(len(line["nodes"]) for line in lines if line["kind"] == "candidate"), tuple(listener.messages),
            off_board=bool(spaces), broken_off=not heads or not begun <= heads.keys(), energies=tuple(_energy(line) for line in lines if line["kind"] == "energy"),
            few=tuple(line["sentence"] for line in lines if line["kind"] == "few"),
        )  # fmt: skip

    def mismatch(self, environment: Mapping[str, str]) -> str:
        """A sentence on how the device differs from the one of `environment`, "" where measurements of both can be compared."""
        facts = {"processor": "processor", "runtime_version": "runtime version", "threads": "threads"}
        differing = [
            f"{words} {self.environment.get(fact, 'unknown')} there, {environment.get(fact, 'unknown')} here"
            for fact, words in facts.items()
            if self.environment.get(fact) != environment.get(fact)
        ]
        return f"{self.name} was measured elsewhere: {'; '.join(differing)}." if differing else ""


def known_devices(folder: Path | None = None, observer: Observer = SILENT) -> list[DeviceFile]:
    """Every device that something is known of, the latest first; files that cannot be read are left out, and `observer` is told."""
    found: list[tuple[float, DeviceFile]] = []
    for path in sorted((folder or devices_dir()).glob("*.jsonl")):
        try:
            device, changed_s = DeviceFile.read(path), path.stat().st_mtime
        except OSError as error:
            observer.message(f"{path} cannot be read ({error.strerror}); the device in it is left out.", "warning")
            continue
        if device is not None:
            found.append((changed_s, device))
            for note in device.damaged:
                observer.message(note, "warning")
    return [device for _, device in sorted(found, key=lambda each: -each[0])]


def find_device_file(name: str, folder: Path | None = None) -> DeviceFile:
    """The known device of a name, a key, or the beginning of either.

    Raises:
        UnknownNameError: there is none; carries the closest match.
    """
    devices = known_devices(folder)
    exact = [device for device in devices if name in (device.name, device.key)]
    begun = [device for device in devices if device.name.startswith(name) or device.key.startswith(name)]
    if exact or (name and begun):
        return (exact or begun)[0]
    raise UnknownNameError("measured device", name, [device.name for device in devices])


def probed(path: Path, observer: Observer = SILENT) -> list[Probed]:
    """The answers in a device's file, the latest to each question."""
    answers = [Probed.from_json(line) for line in records(path, observer) if line["kind"] == "probe"]
    return list({(found.group, found.name): found for found in answers}.values())


def keep_device(path: Path, device: Device, probes: Sequence[Probe], observer: Observer) -> None:
    """Run probes and append each answer as it comes, then who the device is."""
    for probe in probes:
        [found] = run_probes(device, [probe])
        append(path, [("probe", found.to_json())], observer)
        observer.advance()
    append(path, [("device", facts_of(device))], observer)


def _energy(line: Mapping[str, Any]) -> tuple[str, Energy]:
    fields = {name: line[name] for name in ("joules", "idle_w", "busy_w", "runs", "window_s", "meter")}
    return line["label"] or line["key"], Energy(**fields)


@dataclass
class _Notes:
    """An observer that keeps what is said."""

    messages: list[str] = field(default_factory=list)

    def stage(self, name: str, total: float | None) -> None:
        """Nothing."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Nothing."""

    def message(self, text: str, level: str = "info") -> None:
        """Keep it."""
        self.messages.append(text)
