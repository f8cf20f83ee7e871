"""From what people write after --device to a device: one of the registry, a machine behind ssh, or one that was measured off board."""

from __future__ import annotations

import os
from dataclasses import dataclass

from automc import registry
from automc.devices.device import ON_GPU, ON_PROCESSOR, Capabilities, Device
from automc.devices.energy import WATTS, find_meter, stated_watts
from automc.devices.ssh import Ssh
from automc.devices.unmeasured import Unmeasured
from automc.errors import AutomcError, InputError, MissingError, PluginError, UnknownNameError
from automc.predict.device_file import DeviceFile, known_devices

__all__ = ["Recorded", "device_measures", "device_names", "is_device", "open_device", "tells_energy", "why_no_energy"]

_PARTS = [name for name in vars(Device) if not name.startswith("_")]
_ANOTHER = "`automc --debug ...` shows where; --device takes another."


def open_device(text: str, threads: int = 1) -> Device:
    """The device that `text` names: `cpu`, ..., `ssh:USER@HOST`, or the name of a machine that a kit measured.

    Raises:
        UnknownNameError: there is no such device; carries the closest match.
        InputError: more threads than this machine has processors.
        PluginError: a registered device cannot be made, or is none.
    """
    if text.startswith("ssh:"):
        return Ssh(text.removeprefix("ssh:"), threads)
    if text in registry.names("device"):
        if threads > (here := os.cpu_count() or threads):
            raise InputError(f"--threads {threads}: this machine has {here} processors.", remedy="Ask for no more.")
        return _made(text, threads)
    recorded = _off_board()
    if text in recorded:
        return Recorded(recorded[text])
    raise UnknownNameError("device", text, device_names())


def _made(name: str, threads: int) -> Device:
    make = registry.load("device", name)
    try:
        device: Device = make(threads=threads)
    except AutomcError:
        raise
    except Exception as error:  # a device may be anybody's
        raise PluginError.of(f"The device {name!r} failed when it was made", error, _ANOTHER) from error
    missing = [part for part in _PARTS if part not in dir(device) and not hasattr(device, part)]
    if missing:
        raise PluginError(
            f"The device {name!r} is a {type(device).__name__} without {', '.join(missing)}, which is no device.",
            remedy="`automc.devices.device.Device` says what one has to have; --device takes another.",
        )
    return device


def device_names() -> list[str]:
    """What --device takes."""
    return [*registry.names("device"), *_off_board(), "ssh:USER@HOST"]


def is_device(text: str) -> bool:
    """Whether `open_device` knows the name, without connecting to anything."""
    return text.startswith("ssh:") or text in registry.names("device") or text in _off_board()


def tells_energy(text: str) -> bool:
    """Whether a device, by its name, tells the energy of a model; one that nothing is known of may."""
    here = text in ON_PROCESSOR or text.startswith(ON_GPU)
    if here and find_meter(text)[0] is not None:
        return True
    unknown = here or text.startswith("ssh:") or text in _off_board()
    return not unknown or stated_watts() is not None


def why_no_energy(text: str) -> tuple[str, str]:
    """Of a device that does not tell energy: a sentence that says why, and the beginning of one that says how it would."""
    return find_meter(text)[1], f"State the power above idle that an inference takes ({WATTS}=12.5)"


def device_measures(device: Device) -> bool:
    """Whether whole models can be measured on a device from here."""
    return not isinstance(device, Unmeasured)


def _off_board() -> dict[str, DeviceFile]:
    return {name: found for found in reversed(known_devices()) if found.off_board for name in (found.key, found.name)}


@dataclass(frozen=True)
class Recorded(Unmeasured):
    """A machine that a kit measured: what it took is known, and nothing can be measured on it from here."""

    file: DeviceFile
    threads: int = 1

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

    def absent(self) -> MissingError:
        if self.file.broken_off:
            return MissingError(
                f"{self.name} was measured with a kit that was broken off before its models were measured whole.",
                remedy="Run the kit again there, it goes on, and bring its device file back; another model or space needs a kit of its own.",
            )
        return MissingError(
            f"{self.name} was measured with a kit and cannot be measured from here.",
            remedy="Emit a kit of this very model and space and bring its device file back, or use ssh:USER@HOST.",
        )
