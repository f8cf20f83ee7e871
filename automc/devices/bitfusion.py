"""A bit-fusing systolic array: units of 2-bit multipliers that join to the width of their operands, so that fewer bits run faster.

After Sharma et al. 2018, "Bit Fusion", ISCA, arXiv 1712.01507. The array is that of the authors' simulator in its comparison with
Eyeriss (github.com/hsharma35/bitfusion, bf_e_conf.ini): 16 columns of 32 units at 500 MHz; buffers of 64, 32 and 16 kB for weights, inputs
and outputs; 192 bits a cycle to and from memory. Energies are those of Horowitz 2014, "Computing's energy problem", ISSCC, figure 1.1.9,
for 45 nm and 0.9 V (8-bit addition 0.03 pJ, multiplication 0.2 pJ; 64 bits of a 32 kB cache 20 pJ, of DRAM 1.3 to 2.6 nJ). Both were checked against
public text: the configuration file as published, the energies as three independent projects quote the figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automc.devices.simulated import Floats, Simulated, Work, dram_bits

__all__ = ["BitFusion", "bitfusion"]

_MAC8_J = 0.2e-12 + 0.03e-12
"""An 8-bit multiplication and an 8-bit addition."""
_SRAM_J = 20e-12 / 64
"""Per bit, from 32 kB."""
_DRAM_J = 1.3e-9 / 64
"""Per bit, the lower end of 1.3 to 2.6 nJ for 64 bits."""


@dataclass(frozen=True)
class BitFusion:
    """An array of `rows` (along the sum) x `columns` (output channels) units; buffers in bytes, `interface` in bits per cycle."""

    name: str = "bitfusion"
    rows: int = 32
    columns: int = 16
    frequency_hz: float = 500e6
    weight_buffer: int = 65536
    input_buffer: int = 32768
    interface: float = 192.0

    def fused(self, work: Work) -> Floats:
        """(count,) products that one unit computes in a cycle: floor(8 / w) x floor(8 / a) up to 8 bits, 1/4 at 16 x 16."""
        return _times(work.weight_bits) * _times(work.activation_bits)

    def cycles(self, work: Work) -> Floats:
        """(count,) cycles of each layer: computing and moving data overlap, so the longer of the two counts."""
        return np.maximum(self.compute_cycles(work), self._traffic(work) / self.interface)

    def compute_cycles(self, work: Work) -> Floats:
        """(count,) cycles if memory were infinitely fast; what does not fill rows or columns idles.

        Sums shorter than the rows stand side by side in blocks along the diagonal of the array: three channels of a depthwise 3x3
        convolution at 8 bits, fourteen at 4.
        """
        rows = self.rows * self.fused(work)
        tiles = np.ceil(work.depth / rows) * np.ceil(work.columns / self.columns)
        together = np.minimum(np.floor(rows / work.depth), np.floor(self.columns / work.columns))
        return np.asarray(np.ceil(work.passes / np.maximum(together, 1.0)) * tiles, dtype=np.float64)

    def latency_s(self, work: Work) -> Floats:
        """(count,) seconds of each layer."""
        return self.cycles(work) / self.frequency_hz

    def energy_j(self, work: Work) -> Floats:
        """(count,) joules: multipliers by the product of their bits, buffers and memory by the bits that they move."""
        compute = work.macs * _MAC8_J * work.weight_bits * work.activation_bits / 64
        reads = work.macs * (work.weight_bits / self._reuse(work) + work.activation_bits / self.columns)
        return np.asarray(compute + reads * _SRAM_J + self._traffic(work) * _DRAM_J, dtype=np.float64)

    def _reuse(self, work: Work) -> Floats:
        """(count,) products per read of a weight from its buffer: a weight stays in its unit for one input position at least."""
        return np.maximum(np.minimum(work.passes, float(self.rows)), 1.0)

    def _traffic(self, work: Work) -> Floats:
        return dram_bits(work, 8.0 * self.weight_buffer, 8.0 * self.input_buffer)


def _times(bits: Floats) -> Floats:
    """(count,) operands of so many bits that fit into 8; half of one at 16 bits."""
    return np.where(bits <= 8, np.floor(8.0 / np.maximum(bits, 1.0)), 8.0 / np.maximum(bits, 1.0))


def bitfusion(threads: int = 1) -> Simulated:
    """The array as a device; `threads` are those that score on this machine."""
    return Simulated(BitFusion(), threads)
