"""What a runtime does well, asked with small models: run on a device, kept as plain records. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from automc.devices.device import Array, Device, NodeTime
from automc.errors import MissingError, first_line

__all__ = ["Probe", "Probed", "run_probes"]

_REPEATS = 12
_ROUNDS = 9


@dataclass(frozen=True)
class Probe:
    """One question.

    Attributes:
        group, name: what is asked, such as ("gemm", "int8").
        inputs: numpy type and shape of each.
        work: what is divided by the seconds: floating-point operations, bytes, elements or operators.
        ops: kernels that count, by a part of their operator's name; all where empty.
        whole: time the whole model, with what lies between its kernels.
    """

    group: str
    name: str
    model: bytes
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    work: float
    ops: tuple[str, ...] = ()
    whole: bool = False

    def arrays(self) -> list[Array]:
        """One batch of inputs."""
        rng = np.random.default_rng(0)
        return [(64 * rng.random(shape)).astype(dtype) for dtype, shape in self.inputs]


@dataclass(frozen=True)
class Probed:
    """The answer: seconds for `work`, or why there are none."""

    group: str
    name: str
    work: float
    seconds: float | None
    error: str = ""

    @property
    def rate(self) -> float | None:
        """Work per second."""
        return None if self.seconds is None else self.work / max(self.seconds, 1e-12)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Probed:
        """Read what `to_json` wrote, ignoring other fields."""
        return cls(data["group"], data["name"], data["work"], data["seconds"], data["error"])


def run_probes(device: Device, probes: Sequence[Probe], advance: Callable[[], None] = lambda: None) -> list[Probed]:
    """The answer to each probe, in order; a model that the runtime refuses is an answer too.

    Raises:
        MissingError: the device cannot be reached, or there is nothing to measure on it.
    """
    found = []
    for probe in probes:
        try:
            seconds, error = _seconds(device, probe), ""
        except MissingError:  # the device itself is not there
            raise
        except Exception as refused:  # each runtime has errors of its own
            seconds, error = None, first_line(refused)[:200]
        found.append(Probed(probe.group, probe.name, probe.work, seconds, error))
        advance()
    return found


def _seconds(device: Device, probe: Probe) -> float:
    inputs = probe.arrays()
    if probe.whole:
        return device.measure({"probe": probe.model}, inputs, _ROUNDS, time_limit_s=2.0).median_s("probe")
    return sum(node.time_s for node in device.node_times(probe.model, inputs, _REPEATS) if _counts(node, probe.ops))


def _counts(node: NodeTime, ops: Sequence[str]) -> bool:
    return not ops or any(op in node.op for op in ops)
