"""The simulated bit-fusing array against the cycles that HAQ's authors simulated for MobileNetV2.

    python benchmarks/bitfusion.py FOLDER/haq_mobilenetv2_cycles.npy

The file holds cycles (53 layers, weight bits 1-8, activation bits 1-8) at batch size 16. Only ratios and orders are compared: the array and
the memory of that table are not published with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau, spearmanr

from automc.devices.bitfusion import BitFusion
from automc.devices.simulated import Floats, Work

BATCH = 16
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, repeats and stride of each stage: Sandler et al. 2018, arXiv 1801.04381, table 2."""
Layer = tuple[int, int, int, int, int, int]
"""Input channels, output channels, window side, groups, input side, output side."""


def layers(side: int = 224) -> Iterator[Layer]:
    """The 53 layers of MobileNetV2, in order."""
    yield 3, 32, 3, 1, side, side // 2
    channels, side = 32, side // 2
    for expansion, width, repeats, stride in _STAGES:
        for block in range(repeats):
            hidden, target = channels * expansion, side // (stride if block == 0 else 1)
            if expansion > 1:
                yield channels, hidden, 1, 1, side, side
            yield hidden, hidden, 3, hidden, side, target
            yield hidden, width, 1, 1, target, target
            channels, side = width, target
    yield channels, 1280, 1, 1, side, side
    yield 1280, 1000, 1, 1, 1, 1


def work(weight_bits: int, activation_bits: int) -> Work:
    """All layers of a batch at the same bits."""
    cin, cout, window, groups, here, there = np.array(list(layers()), dtype=np.float64).T
    depth = cin / groups * window**2
    bits = np.ones_like(cin)
    return Work(
        depth, cout / groups, BATCH * there**2 * groups, depth * cout, BATCH * here**2 * cin, BATCH * there**2 * cout,
        weight_bits * bits, activation_bits * bits,
    )  # fmt: skip


def main() -> None:
    """Print totals, their ratios, and how far the order of layers agrees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cycles", type=Path)
    table = np.load(parser.parse_args().cycles, allow_pickle=False).astype(np.float64)
    arrays = {
        "bitfusion": BitFusion(),
        "bitfusion, memory of 32 bits a cycle": replace(BitFusion(), interface=32.0),
        "bitfusion, infinite memory": replace(BitFusion(), interface=np.inf),
    }
    _print(
        "HAQ's table", {bits: table[:, bits[0] - 1, bits[1] - 1] for bits in ((8, 8), (4, 4), (2, 2), (4, 8), (8, 4))}
    )
    print("MACs alone would be 1 : 1 : 1, products of bits 16 : 4 : 1.")
    for name, array in arrays.items():
        _print(name, {bits: array.cycles(work(*bits)) for bits in ((8, 8), (4, 4), (2, 2), (4, 8), (8, 4))})
        ours = np.stack([[array.cycles(work(w, a)) for a in range(1, 9)] for w in range(1, 9)]).transpose(2, 0, 1)
        for bits in (8, 4, 2):
            pair = table[:, bits - 1, bits - 1], ours[:, bits - 1, bits - 1]
            print(f"  W{bits}A{bits}, order of the layers: Spearman {spearmanr(*pair)[0]:.2f}, Kendall {kendalltau(*pair)[0]:.2f}")  # fmt: skip
        totals = spearmanr(table.sum(0).ravel(), ours.sum(0).ravel())[0]
        print(f"  order of the 64 precisions by total cycles: Spearman {totals:.2f}")
        print(f"  memory-bound layers at W8A8: {int(np.sum(array.cycles(work(8, 8)) > array.compute_cycles(work(8, 8))))} of 53")  # fmt: skip


def _print(name: str, cycles: dict[tuple[int, int], Floats]) -> None:
    totals = {bits: float(values.sum()) for bits, values in cycles.items()}
    ratios = [totals[bits] / totals[2, 2] for bits in ((8, 8), (4, 4), (2, 2))]
    mixed = [totals[bits] / totals[8, 8] for bits in ((4, 8), (8, 4))]
    print(f"{name}: {totals[8, 8] / 1e6:.1f} million cycles at W8A8; W8A8 : W4A4 : W2A2 = {' : '.join(f'{r:.2f}' for r in ratios)}; W4A8 {mixed[0]:.2f}, W8A4 {mixed[1]:.2f} of W8A8")  # fmt: skip


if __name__ == "__main__":
    main()
