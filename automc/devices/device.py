"""Device: a target that models run on, what it can do, and what it tells about a run. Runtimes implement the protocol."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from automc.devices.measure import Measurement

__all__ = [
    "ON_GPU",
    "ON_PROCESSOR",
    "Array",
    "Capabilities",
    "Device",
    "Model",
    "NodeTime",
    "Runner",
    "Session",
    "Tensor",
    "cache_dir",
    "capabilities_path",
    "device_path",
    "devices_dir",
    "digest",
]

Array = NDArray[Any]
Model = bytes | Path
"""A serialized ONNX model, or where it lies."""

ON_PROCESSOR = frozenset({"cpu", "openvino", "torch", "torch-compile"})
"""Devices that run on this machine's processor, so that its counters of energy count them."""

ON_GPU = ("torch-cuda", "torch-compile-cuda")
"""How the names of devices begin that run on this machine's first GPU."""


@dataclass(frozen=True)
class Capabilities:
    """What a device does well.

    Attributes:
        channel_block: kernels compute output channels in multiples of this; 1 where no such block is known.
        channel_multiple: input channels must be a multiple of this (and at least a block) to stay on the blocked path.
        int8: the runtime has integer kernels for convolutions and linear layers.
        sparsity: patterns of zeros with a real kernel, such as "2:4"; others only make files smaller.
        reduce_range: the integer kernels can saturate with 8-bit weights, so exporters use 7 bits (AVX2 without VNNI).
        bits: (weight, activation) bits that layers can run in, most first; empty where 8-bit kernels are all there is.
    """

    channel_block: int = 1
    channel_multiple: int = 1
    int8: bool = True
    sparsity: tuple[str, ...] = ()
    reduce_range: bool = False
    bits: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Capabilities:
        """Read what `dataclasses.asdict` made of capabilities and JSON of that; older files hold more."""
        own = {field.name for field in fields(cls)}
        return cls(**{name: _as_tuples(value) for name, value in data.items() if name in own})


@dataclass(frozen=True)
class Tensor:
    """Type ("float", "uint8", ...) and shape, batch included, of a tensor that a kernel read or wrote."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NodeTime:
    """One kernel of the runtime's own optimised graph: what it takes where nobody watches, and what it read and wrote."""

    name: str
    op: str
    time_s: float
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()

    def to_json(self) -> list[Any]:
        """[name, op, seconds, [[dtype, shape], ...], [[dtype, shape], ...]]."""
        pairs = [[[tensor.dtype, list(tensor.shape)] for tensor in side] for side in (self.inputs, self.outputs)]
        return [self.name, self.op, self.time_s, *pairs]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> NodeTime:
        """Read what `to_json` wrote."""
        sides = [tuple(Tensor(dtype, tuple(shape)) for dtype, shape in side) for side in data[3:5]]
        return cls(data[0], data[1], data[2], sides[0], sides[1])


class Session(Protocol):
    """A model made ready to run."""

    def run(self, *inputs: Array) -> list[Array]:
        """The outputs for one batch, inputs in the order of the model."""
        ...


class Device(Protocol):
    """A target. Everything that a predictor or a certificate needs to know of a runtime goes through these."""

    @property
    def name(self) -> str:
        """For people: "cpu"."""
        ...

    @property
    def key(self) -> str:
        """Identifies processor, runtime, version and threads: measurements of one key can be compared."""
        ...

    def environment(self) -> dict[str, str]:
        """Processor, runtime and version, threads, operating system."""
        ...

    def capabilities(self) -> Capabilities:
        """What this device does well, probed once and cached."""
        ...

    def session(self, model: Model) -> Session:
        """Load a model."""
        ...

    def measure(
        self, models: Mapping[str, Model], inputs: Sequence[Array], rounds: int = 12, **options: Any
    ) -> Measurement:
        """Measure whole models, interleaved; `options` go to `measure.interleave`."""
        ...

    def node_times(self, model: Model, inputs: Sequence[Array], repeats: int = 5) -> list[NodeTime]:
        """The kernels of the optimised graph, in the order in which they ran."""
        ...


@runtime_checkable
class Runner(Protocol):
    """A device that also hands out what it times, so that a counter can be read around it."""

    def running(self, model: Model, inputs: Sequence[Array]) -> AbstractContextManager[Callable[[], object]]:
        """What runs a model once as `Device.measure` times it: warm, with the device's threads, and alone on the machine."""
        ...


def cache_dir() -> Path:
    """Where measurements are kept: `$AUTOMC_CACHE`, or `automc` in the user's cache folder."""
    base = os.environ.get("AUTOMC_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "automc"


def devices_dir() -> Path:
    """Where what is known of devices is kept."""
    return cache_dir() / "devices"


def device_path(key: str) -> Path:
    """The file of the device `key`: what was measured of it."""
    return devices_dir() / f"{key}.jsonl"


def capabilities_path(key: str) -> Path:
    """What was probed of the channel blocks of the device `key`."""
    return devices_dir() / f"{key}.capabilities.json"


def digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits of the parts, in order."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()[:16]


def _as_tuples(value: Any) -> Any:
    """A value of JSON with tuples for its lists, however deep."""
    return tuple(_as_tuples(part) for part in value) if isinstance(value, list) else value
