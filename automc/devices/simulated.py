"""What simulated accelerators share: the work of layers, and how often they read memory. Every figure is simulated; nothing is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from automc.devices.device import Capabilities
from automc.devices.unmeasured import Unmeasured
from automc.errors import MissingError

__all__ = ["BITS", "Accelerator", "Floats", "Simulated", "Work", "dram_bits"]

Floats = NDArray[np.float64]

BITS = ((8, 8), (6, 6), (4, 8), (4, 4), (3, 3), (2, 4), (2, 2))
"""(weight, activation) bits that search spaces offer, from most to fewest; what is left dense runs on 16 bits."""


@dataclass(frozen=True)
class Work:
    """Layers as arrays of shape (count,), for one batch.

    Attributes:
        depth: multiply-accumulates per output element (inputs per group x window).
        columns: output channels that share an input, those of one group.
        passes: output positions x groups x samples: how often depth x columns products are added up.
        weights, inputs, outputs: elements.
        weight_bits, activation_bits: 16 for a layer that is left as it was. Outputs are written in as many bits as inputs are read.
    """

    depth: Floats
    columns: Floats
    passes: Floats
    weights: Floats
    inputs: Floats
    outputs: Floats
    weight_bits: Floats
    activation_bits: Floats

    @property
    def macs(self) -> Floats:
        """(count,) multiply-accumulates."""
        return self.depth * self.columns * self.passes


@runtime_checkable
class Accelerator(Protocol):
    """A closed form for what layers cost."""

    @property
    def name(self) -> str:
        """What --device calls it."""
        ...

    def latency_s(self, work: Work) -> Floats:
        """(count,) seconds of each layer."""
        ...

    def energy_j(self, work: Work) -> Floats:
        """(count,) joules of each layer."""
        ...


def dram_bits(work: Work, weight_buffer: float, input_buffer: float) -> Floats:
    """(count,) bits moved to and from memory, with the better of two loop orders; buffers in bits.

    Either weights stay while all inputs pass by once for each part of the weights that fits, or the other way round
    (Ma et al. 2017, "Optimizing loop operation and dataflow in FPGA acceleration", FPGA '17, section 3).
    """
    weights, inputs = work.weights * work.weight_bits, work.inputs * work.activation_bits
    weights_stay = weights + inputs * np.ceil(weights / weight_buffer)
    inputs_stay = inputs + weights * np.ceil(inputs / input_buffer)
    return np.asarray(np.minimum(weights_stay, inputs_stay) + work.outputs * work.activation_bits, dtype=np.float64)


@dataclass(frozen=True)
class Simulated(Unmeasured):
    """An accelerator as a device: models are loaded and scored on this machine, and their costs come from a closed form."""

    accelerator: Accelerator
    threads: int = 1

    @property
    def name(self) -> str:
        return self.accelerator.name

    @property
    def key(self) -> str:
        return f"simulated-{self.name}"

    def environment(self) -> dict[str, str]:
        """Says that nothing is measured."""
        return {"device": self.name, "processor": "simulated", "runtime": "closed form", "runtime_version": "1"}

    def capabilities(self) -> Capabilities:
        """Every precision of BITS has a kernel; channels need no alignment."""
        return Capabilities(channel_block=1, bits=BITS)

    def absent(self) -> MissingError:
        return MissingError(
            f"{self.name} is simulated: there is nothing to measure.", remedy="Search on it right away."
        )
