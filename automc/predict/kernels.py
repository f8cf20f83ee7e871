"""The kernels that run a layer: shapes, precision, and the memory layout they work in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from automc.compression.storage import runs_on_integers
from automc.factors import Factor, factor_positions, factors_of
from automc.graph import LayerSpec
from automc.policy import LowRank, Quantize

__all__ = ["BLOCKED", "COLUMNS", "INT8", "KINDS", "PLAIN", "Ints", "Kernels", "Layouts", "layer_kernels"]

Ints = NDArray[np.int64]
COLUMNS = (
    "kind",
    "cin",
    "cout",
    "window",
    "stride",
    "in_positions",
    "out_positions",
    "groups",
    "int8",
    "cold",
    "fused",
    "height",
)
KINDS = (
    "conv", "pointwise", "depthwise", "grouped", "linear", "recurrent", "winograd", "pool", "concat", "conv_nd", "transposed",
)  # fmt: skip

PLAIN, BLOCKED, INT8 = 1, 2, 4
"""Formats of an activation: fp32 as the model has it, fp32 in channel blocks, 8-bit. Bits, so that a tensor may have several."""


_INT8_BLOCK = 16
"""Integer convolutions of fewer output channels go through a copy of their input (MLAS, all x86)."""


@dataclass(frozen=True)
class Kernels:
    """Kernels as rows of integers, columns as in COLUMNS; positions are per sample.

    `cold` marks an integer kernel behind a conversion: what it reads and writes is not where the kernel before it left its tensors, and
    with ONNX Runtime it takes up to 40 % longer than between integer kernels. `height` is that of the window, whose positions are `window`
    (0 where it is not known). `fused` counts what it computes besides and pays for: a Clip behind it, with ONNX Runtime up to 70 % of its time,
    which is left to a quantisation that follows.
    """

    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> Ints:
        """(count,) one column."""
        return self.rows[:, COLUMNS.index(column)]

    @property
    def macs(self) -> Ints:
        """(count,) multiply-accumulates per sample."""
        return self.turns * self.weights

    @property
    def turns(self) -> Ints:
        """(count,) positions per sample at which all weights are used: those written, of a transposed convolution those read."""
        return np.where(self["kind"] == KINDS.index("transposed"), self["in_positions"], self["out_positions"])

    @property
    def weights(self) -> Ints:
        """(count,) number of weights."""
        return self["cin"] * self["cout"] * self["window"] // np.maximum(self["groups"], 1)


@dataclass(frozen=True)
class Layouts:
    """The layout rules of a runtime that computes fp32 convolutions in blocks of channels.

    A convolution of at least a block of input channels, a multiple of `multiple`, reads and writes blocks; one of fewer reads the plain
    layout and writes blocks; any other works on the plain layout. Without blocks (`block` 1) all is plain. These are the rules of
    ONNX Runtime's NCHWc transformer; where they do not hold, kernels only share coefficients less well.
    """

    block: int = 1
    multiple: int = 1

    def modes(self, kernels: Kernels) -> Ints:
        """(count,) 0 plain, 1 plain in and blocks out ("direct"), 2 blocks in and out; for int8 0 or 2, with or without copying."""
        mode = np.zeros(len(kernels), dtype=np.int64)
        if self.block <= 1 or not len(kernels):
            return mode
        kind, cin, cout, groups = (kernels[c] for c in ("kind", "cin", "cout", "groups"))
        ordinary, aligned = kind <= 1, cin % self.multiple == 0
        mode[ordinary & (cin < self.block)] = 1
        mode[ordinary & (cin >= self.block) & aligned] = 2
        mode[(kind == 2) & (cout % self.multiple == 0)] = 2
        per_group = (cin // groups % self.block == 0) & (cout // groups % self.block == 0)
        mode[(kind == 3) & per_group] = 2
        int8 = kernels["int8"] == 1
        direct = np.where(kind == 2, cout % _INT8_BLOCK == 0, aligned & (cout >= _INT8_BLOCK))
        mode[int8] = 2 * direct[int8]
        return mode

    def formats(self, kernels: Kernels) -> tuple[Ints, Ints]:
        """(count,) the format that each kernel reads, and the one it writes."""
        mode, int8 = self.modes(kernels), kernels["int8"] == 1
        reads = np.where(int8, INT8, np.where(mode == 2, BLOCKED, PLAIN))
        writes = np.where(int8, INT8, np.where(mode >= 1, BLOCKED, PLAIN))
        return reads, writes


def layer_kernels(
    spec: LayerSpec, cin: int, cout: int, rank: LowRank | None, bits: Quantize | None, *, cold: bool = False
) -> Kernels:
    """The kernels of a layer, in order: itself, or its factors (`automc.factors`)."""
    int8 = int(bits is not None and runs_on_integers(bits))
    rows = _own_kernel(spec, cin, cout, int8) if rank is None else _factor_kernels(spec, cin, cout, rank, int8)
    heights = [rows_high for *_, rows_high in rows]
    first_cold = [int(cold and int8 == 1)] + [0] * (len(rows) - 1)
    none = np.zeros_like(first_cold)
    return Kernels(np.column_stack([np.array([row[:-1] for row in rows]), first_cold, none, heights]))


def _own_kernel(spec: LayerSpec, cin: int, cout: int, int8: int) -> list[tuple[int, ...]]:
    window, stride = prod(spec.kernel), prod(spec.stride)
    groups = max(1, spec.groups * cout // spec.out_channels)  # of a depthwise layer all its channels
    kind = KINDS.index(spec.kind if spec.kind != "conv" or window > 1 else "pointwise")
    return [(kind, cin, cout, window, stride, spec.in_positions, spec.positions, groups, int8, spec.kernel[0])]


def _factor_kernels(spec: LayerSpec, cin: int, cout: int, rank: LowRank, int8: int) -> list[tuple[int, ...]]:
    if spec.kind == "recurrent":
        return _projected_kernels(spec, cin, cout, rank.rank)
    factors = factors_of(rank, cin, spec.out_channels, spec.kernel)
    factors = (*factors[:-1], replace(factors[-1], outputs=cout))  # pruned outputs are rows of the last factor
    rows: list[tuple[int, ...]] = []
    for factor, (here, there) in zip(factors, factor_positions(spec, factors), strict=True):
        (height, width), stride = factor.along(spec.kernel), prod(factor.along(spec.stride))
        groups = factor.outputs if factor.depthwise else 1
        kind, channels = _kind(spec, factor, height * width), (factor.inputs, factor.outputs)
        rows.append((kind, *channels, height * width, stride, here, there, groups, int8, height))
    return rows


def _projected_kernels(spec: LayerSpec, cin: int, cout: int, rank: int) -> list[tuple[int, ...]]:
    """A recurrent layer behind a linear one that narrows what it reads; its state is part of `cin`."""
    read = cin - (spec.in_channels - spec.features)
    inner, here, there = max(1, min(rank, read)), spec.in_positions, spec.positions
    linear, recurrent = KINDS.index("linear"), KINDS.index("recurrent")
    return [
        (linear, read, inner, 1, 1, here, here, 1, 0, 1),
        (recurrent, cin - read + inner, cout, 1, 1, here, there, 1, 0, 1),
    ]


def _kind(spec: LayerSpec, factor: Factor, window: int) -> int:
    kind = (
        "linear"
        if spec.kind == "linear"
        else "depthwise"
        if factor.depthwise
        else "conv"
        if window > 1
        else "pointwise"
    )
    return KINDS.index(kind)
