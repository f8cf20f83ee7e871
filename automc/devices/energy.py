"""Joules of an inference: the machine's own counters over windows of at least five seconds, idle power subtracted.

Counters: Linux powercap (Intel RAPL; AMD offers the same zones) in /sys/class/powercap/intel-rapl:N, kernel documentation
power/powercap/powercap, of which the packages count: psys holds them too, and intel-rapl-mmio tells them once more; NVIDIA's total energy counter through NVML, where pynvml can be imported. Both count the whole package, so that what
else runs meanwhile is counted too. Where there is no counter, a stated power stands in, and the figure is a prediction.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from automc.devices.device import ON_GPU, ON_PROCESSOR
from automc.errors import InputError

__all__ = ["WATTS", "WINDOW_S", "Energy", "Meter", "PowerCap", "find_meter", "measure_energy", "stated_watts"]

POWERCAP = Path("/sys/class/powercap")
WINDOW_S = 5.0
"""Counters tick about every millisecond and power wanders for seconds: shorter windows are worth little."""
_CLEAR = 0.01
"""A counter that tells anything of what runs shows more than this share of the power above idle."""
WATTS = "AUTOMC_WATTS"
"""Environment variable: the power above idle, in watts, that an inference takes on a machine without counters."""


class Meter(Protocol):
    """A counter of joules."""

    @property
    def name(self) -> str:
        """What is counted, for people."""
        ...

    def joules(self) -> float:
        """The counter; only differences mean anything."""
        ...


@dataclass(frozen=True)
class Energy:
    """What runs took, idle power subtracted.

    Attributes:
        joules: per run, above idle.
        idle_w, busy_w: mean power of the whole package in the idle window, and in the busy one.
        meter: what was counted.
    """

    joules: float
    idle_w: float
    busy_w: float
    runs: int
    window_s: float
    meter: str

    @property
    def power_w(self) -> float:
        """Above idle."""
        return self.busy_w - self.idle_w

    @property
    def is_clear(self) -> bool:
        """Whether the runs took clearly more than idling: else the counter stands still, or other work ran in the idle window."""
        return self.power_w > _CLEAR * self.busy_w

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class PowerCap:
    """The sum of the package zones of powercap; wraps of their counters are made up for."""

    def __init__(self, zones: list[Path]) -> None:
        self._zones = [(zone / "energy_uj", _read(zone / "max_energy_range_uj")) for zone in zones]
        self._last = [_read(counter) for counter, _ in self._zones]
        self._total_uj = 0

    @property
    def name(self) -> str:
        return f"powercap, {len(self._zones)} package(s)"

    def joules(self) -> float:
        """Joules since the meter was made; to be read more often than the counters wrap (minutes)."""
        values = [_read(counter) for counter, _ in self._zones]
        for value, last, (_, limit) in zip(values, self._last, self._zones, strict=True):
            self._total_uj += value - last if value >= last else value - last + limit
        self._last = values
        return 1e-6 * self._total_uj


class Nvml:
    """The energy counter of the GPU that CUDA counts first: the first of CUDA_VISIBLE_DEVICES where that is set."""

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        self._gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
        by_index = self._gpu.isdecimal()
        self._handle = (
            pynvml.nvmlDeviceGetHandleByIndex(int(self._gpu))
            if by_index
            else pynvml.nvmlDeviceGetHandleByUUID(self._gpu)
        )
        self.joules()

    @property
    def name(self) -> str:
        return f"NVML, GPU {self._gpu}"

    def joules(self) -> float:
        """Joules since the driver was loaded; the counter is in millijoules."""
        return 1e-3 * float(self._read(self._handle))


def find_meter(device: str = "cpu") -> tuple[Meter | None, str]:
    """A counter of what a device takes, by its name; or None and a sentence that says why there is none and what is lost."""
    if device.startswith(ON_GPU):
        return _find_gpu_meter()
    if device not in ON_PROCESSOR:
        return None, f"{device} has no counters of energy here."
    zones = _zones()
    if not zones:
        return None, f"Energy cannot be measured: this machine has no counters in {POWERCAP}."
    try:
        return PowerCap(zones), ""
    except PermissionError:
        return None, (
            f"Energy cannot be measured: no permission to read {zones[0] / 'energy_uj'}"
            " (an administrator can allow it: chmod a+r)."
        )
    except (OSError, ValueError) as error:
        return None, f"Energy cannot be measured: {error}."


def _zones() -> list[Path]:
    """The zones whose sum is what the processors take: packages, each as one driver tells it; where none is a package, all by their names."""
    found = [zone for zone in POWERCAP.glob("*rapl*:*") if zone.name.count(":") == 1]
    by_name: dict[str, Path] = {}
    for zone in sorted(found, key=lambda zone: ("mmio" in zone.name, zone.name)):
        by_name.setdefault(_zone_name(zone), zone)
    return [zone for name, zone in by_name.items() if name.startswith("package-")] or list(by_name.values())


def _zone_name(zone: Path) -> str:
    """What a zone says it is, such as "package-0"; its folder's name where it says nothing."""
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return zone.name


def _find_gpu_meter() -> tuple[Meter | None, str]:
    try:
        return Nvml(), ""
    except ImportError:
        return None, "Energy cannot be measured on the GPU: pynvml is not installed (pip install nvidia-ml-py)."
    except Exception as error:  # NVML's errors are its own family: no driver, or a GPU without a counter
        return None, f"Energy cannot be measured on the GPU: {type(error).__name__}: {error}."


def measure_energy(
    meter: Meter,
    run: Callable[[], object],
    *,
    window_s: float = WINDOW_S,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Joules per run: an idle window first, then one full of runs; both once more where they do not differ clearly.

    Raises:
        InputError: a window shorter than WINDOW_S.
    """
    if window_s < WINDOW_S:
        raise InputError(f"A window of {window_s:g} s is too short.", remedy=f"Take {WINDOW_S:g} s or more.")
    found = _windows(meter, run, window_s, clock, sleep)
    return found if found.is_clear else _windows(meter, run, window_s, clock, sleep)


def _windows(
    meter: Meter,
    run: Callable[[], object],
    window_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Energy:
    begin, before = clock(), meter.joules()
    sleep(window_s)
    idle_w = (meter.joules() - before) / (clock() - begin)
    runs, begin, before = 0, clock(), meter.joules()
    while (elapsed := clock() - begin) < window_s:
        run()
        runs += 1
    busy_j = meter.joules() - before
    joules = max(busy_j - idle_w * elapsed, 0.0) / runs
    return Energy(joules, idle_w, busy_j / elapsed, runs, elapsed, meter.name)


def stated_watts() -> float | None:
    """The power above idle that the environment states; None where it states none.

    Raises:
        InputError: it is not a number of watts.
    """
    text = os.environ.get(WATTS)
    if not text:
        return None
    try:
        watts = float(text)
    except ValueError:
        watts = 0.0
    if not 0.0 < watts < 1e4:
        raise InputError(f"{WATTS}={text!r} is not a power in watts.", remedy="Write a number such as 12.5.")
    return watts


def _read(path: Path) -> int:
    return int(path.read_text())
