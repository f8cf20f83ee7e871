"""From what people write after --device to a device: one of the registry, a machine behind ssh, or one that was measured off board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from automc import registry
from automc.devices.cpu import Cpu
from automc.devices.device import ON_PROCESSOR, Array, Capabilities, Device, Model, NodeTime, Session
from automc.devices.energy import find_meter, stated_watts
from automc.devices.measure import Measurement
from automc.devices.simulated import Simulated
from automc.devices.ssh import Ssh
from automc.errors import MissingError, UnknownNameError
from automc.predict.device_file import DeviceFile, known_devices

__all__ = ["Recorded", "device_measures", "device_names", "is_device", "open_device", "tells_energy"]


def open_device(text: str, threads: int = 1) -> Device:
    """The device that `text` names: `cpu`, ..., `ssh:USER@HOST`, or the name of a machine that a kit measured.

    Raises:
        UnknownNameError: there is no such device; carries the closest match.
    """
    if text.startswith("ssh:"):
        return Ssh(text.removeprefix("ssh:"), threads)
    if text in registry.names("device"):
        device: Device = registry.load("device", text)(threads=threads)
        return device
    recorded = _off_board()
    if text in recorded:
        return Recorded(recorded[text])
    raise UnknownNameError("device", text, device_names())


def device_names() -> list[str]:
    """What --device takes."""
    return [*registry.names("device"), *_off_board(), "ssh:USER@HOST"]


def is_device(text: str) -> bool:
    """Whether `open_device` knows the name, without connecting to anything."""
    return text.startswith("ssh:") or text in registry.names("device") or text in _off_board()


def tells_energy(text: str) -> bool:
    """Whether a device, by its name, tells the energy of a model; one that nothing is known of may."""
    if text in ON_PROCESSOR and find_meter()[0] is not None:
        return True
    elsewhere = text.startswith(("ssh:", "torch-cuda", "torch-compile-cuda")) or text in _off_board()
    return not (text in ON_PROCESSOR or elsewhere) or stated_watts() is not None


def device_measures(device: Device) -> bool:
    """Whether whole models can be measured on a device from here."""
    return not isinstance(device, (Recorded, Simulated))


def _off_board() -> dict[str, DeviceFile]:
    return {name: found for found in reversed(known_devices()) if found.off_board for name in (found.key, found.name)}


@dataclass(frozen=True)
class Recorded:
    """A machine that a kit measured: what it took is known, and nothing can be measured on it from here."""

    file: DeviceFile

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def key(self) -> str:
        return self.file.key

    def environment(self) -> dict[str, str]:
        """As the kit told it."""
        return dict(self.file.environment)

    def capabilities(self) -> Capabilities:
        """Those that the kit's candidates were drawn for."""
        return self.file.space or self.file.capabilities

    def session(self, model: Model) -> Session:
        """The model loaded on this machine, to score it."""
        return Cpu(1).session(model)

    def measure(
        self, models: Mapping[str, Model], inputs: Sequence[Array], rounds: int = 12, **options: Any
    ) -> Measurement:
        """Not possible from here.

        Raises:
            MissingError: always.
        """
        raise self._absent()

    def node_times(self, model: Model, inputs: Sequence[Array], repeats: int = 5) -> list[NodeTime]:
        """Not possible from here.

        Raises:
            MissingError: always.
        """
        raise self._absent()

    def _absent(self) -> MissingError:
        return MissingError(
            f"{self.name} was measured with a kit and cannot be measured from here.",
            remedy="Emit a kit of this very model and space and bring its device file back, or use ssh:USER@HOST.",
        )
