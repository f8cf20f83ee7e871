"""From what people write after --device to a device."""

from __future__ import annotations

from automc import registry
from automc.devices.device import Device

__all__ = ["open_device"]


def open_device(text: str, threads: int = 1) -> Device:
    """The device that `text` names: one of the registry.

    Raises:
        UnknownNameError: there is no such device; carries the closest match.
    """
    device: Device = registry.load("device", text)(threads=threads)
    return device
