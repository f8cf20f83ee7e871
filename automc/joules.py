"""Energy on the device of a search: measured by the machine's counters, else predicted as a stated power times the latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from automc.devices.cpu import runner, warmed
from automc.devices.device import Array, Device, Model, Runner
from automc.devices.energy import WATTS, Energy, Meter, find_meter, measure_energy, stated_watts
from automc.devices.simulated import Simulated
from automc.errors import InputError
from automc.trial import Cost

__all__ = ["Joules", "check_power", "predicted_by"]


def predicted_by(device: Device) -> float | None:
    """The power above idle, in watts, by which energy is predicted on a device; None where it is known in another way, or not at all.

    Raises:
        InputError: what is stated is not a power.
    """
    known = isinstance(device, Simulated) or find_meter(device.name)[0] is not None
    return None if known else stated_watts()


def check_power(device: Device, config: Mapping[str, Any]) -> None:
    """See that energy is predicted by the power that the run of a config.yaml went by.

    Raises:
        InputError: it is another, or none is stated.
    """
    noted = config.get("watts")
    if noted is not None and (stated := predicted_by(device)) != noted:
        now = "not set" if stated is None else f"{stated:g}"
        raise InputError(
            f"The run {config.get('name')!r} predicts energy by {noted:g} W above idle, and {WATTS} is {now}.",
            remedy=f"Set {WATTS}={noted:g}.",
        )


@dataclass(frozen=True)
class Joules:
    """How energy is known on a device.

    Attributes:
        meter: the counter, None where a stated power stands in.
        watts: above idle, stated; None where none is.
    """

    device: Device
    inputs: Sequence[Array]
    meter: Meter | None
    watts: float | None

    @classmethod
    def of(cls, device: Device, inputs: Sequence[Array]) -> Joules:
        """How energy is known on this device.

        Raises:
            InputError: neither a counter nor a stated power; says what is missing.
        """
        meter, why = find_meter(device.name)
        watts = stated_watts()
        if meter is None and watts is None:
            raise InputError(why, remedy=f"State the power above idle that an inference takes: {WATTS}=12.5.")
        return cls(device, inputs, meter, watts)

    def measure(self, model: Model) -> Energy | None:
        """What the counter says of a model, alone on the machine for two windows; None without a counter, and where it says nothing clear."""
        if self.meter is None:
            return None
        with self._running(model) as run:
            energy = measure_energy(self.meter, run)
        return energy if energy.is_clear else None

    def _running(self, model: Model) -> AbstractContextManager[Callable[[], object]]:
        if isinstance(self.device, Runner):
            return self.device.running(model, self.inputs)
        return warmed(runner(self.device.session(model), self.inputs), pin=False)

    def told(self, cost: Cost, model: Model) -> Cost:
        """The cost with its energy: measured, or the stated power times the latency, which is a prediction.

        Raises:
            InputError: the counter says nothing clear, and no power is stated.
        """
        energy = self.measure(model)
        return self.stated(cost) if energy is None else cost.with_energy(energy.joules, "measured")

    def stated(self, cost: Cost) -> Cost:
        """The cost with its energy as the stated power times its latency.

        Raises:
            InputError: no power is stated.
        """
        assert cost.latency_s is not None
        return cost.with_energy(self.stated_w() * cost.latency_s, "predicted")

    def stated_w(self) -> float:
        """The stated power above idle, in watts.

        Raises:
            InputError: none is stated.
        """
        if self.watts is None:
            raise InputError(
                self.unclear,
                remedy=f"Leave the machine to itself, or state the power above idle that an inference takes: {WATTS}=12.5.",
            )
        return self.watts

    @property
    def unclear(self) -> str:
        """A sentence on a counter that says nothing clear."""
        counter = "No counter" if self.meter is None else self.meter.name
        return f"Energy cannot be measured: {counter} shows no more power while the model runs than while the machine idles."
