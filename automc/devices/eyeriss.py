"""A row-stationary array such as Eyeriss, whose energy is that of moving data through its memories.

The array is that of Chen et al. 2017, "Eyeriss", JSSC 52(1): 168 processing elements at 200 MHz, a buffer of 108 kB, 16-bit words, 64 bits
of memory bus at 60 MHz. Energies per access of a 16-bit word, relative to one multiply-accumulate, are those of Chen et al. 2016,
"Eyeriss: a spatial architecture", ISCA, table IV: scratchpad 1, buffer 6, DRAM 200. Energy-aware pruning (Yang et al. 2017, arXiv
1611.05128, section 3) estimates with the same hierarchy and scales computation and data by their bits, as is done here. A 16-bit
multiply-accumulate takes 0.86 pJ by Horowitz 2014, ISSCC, figure 1.1.9: four 8-bit multiplications and two 8-bit additions, at 45 nm.

Checked against public text: array, frequency, buffer and words against the test that reproduces the chip in github.com/stanford-mast/nn_dataflow
(nn_dataflow/tests/dataflow_test/test_nn_dataflow.py: 12 x 14, 108 kB, 200 MHz), the energies against the same project's default (--hier-cost 200 6 2 1).
Left out is the array's own network (2 in that list). That test fits the 65 nm chip with 2 pJ a multiply-accumulate, so joules here are about half of the chip's;
ratios do not depend on it. The 60 MHz of the memory link are those of the article and were not found in another text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automc.devices.simulated import Floats, Simulated, Work, dram_bits

__all__ = ["Eyeriss", "eyeriss"]

_MAC_J = 4 * 0.2e-12 + 2 * 0.03e-12
_SCRATCHPAD, _BUFFER, _DRAM = 1.0, 6.0, 200.0
"""Energy of moving a 16-bit word, in multiply-accumulates."""
_WORD = 16.0


@dataclass(frozen=True)
class Eyeriss:
    """`rows` x `columns` processing elements; the buffer in bytes, half for weights and half for inputs, the bus in bits per second."""

    name: str = "eyeriss"
    rows: int = 12
    columns: int = 14
    frequency_hz: float = 200e6
    buffer: int = 110592
    bus_bits_s: float = 64 * 60e6
    filters: int = 16
    """Output channels for which an input that was read from the buffer is used."""

    def latency_s(self, work: Work) -> Floats:
        """(count,) seconds: all elements compute, one product a cycle whatever the bits, unless the memory bus takes longer."""
        compute = work.macs / (self.rows * self.columns * self.frequency_hz)
        return np.asarray(np.maximum(compute, self._traffic(work) / self.bus_bits_s), dtype=np.float64)

    def energy_j(self, work: Work) -> Floats:
        """(count,) joules of multipliers, scratchpads, buffer and DRAM."""
        weights, activations = work.weight_bits / _WORD, work.activation_bits / _WORD
        compute = work.macs * weights * activations
        scratchpads = (
            _SCRATCHPAD * work.macs * (weights + activations + 2.0)
        )  # a partial sum is read and written in 16 bits
        buffer = _BUFFER * (work.macs * activations / self._inputs_reused(work) + work.weights * weights)
        dram = _DRAM * self._traffic(work) / _WORD
        return np.asarray(_MAC_J * (compute + scratchpads + buffer + dram), dtype=np.float64)

    def _inputs_reused(self, work: Work) -> Floats:
        """(count,) products per read of an input from the buffer: its window along the array, and the filters next to it."""
        return np.maximum(np.minimum(work.columns, self.filters), 1.0) * np.maximum(
            np.sqrt(work.depth).clip(max=3.0), 1.0
        )

    def _traffic(self, work: Work) -> Floats:
        return dram_bits(work, 4.0 * self.buffer, 4.0 * self.buffer)


def eyeriss(threads: int = 1) -> Simulated:
    """The array as a device; `threads` are those that score on this machine."""
    return Simulated(Eyeriss(), threads)
