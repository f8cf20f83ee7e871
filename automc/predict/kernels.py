"""From the choices for a layer to the kernels that run it: shapes, precision, and the memory layout they work in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from automc.compression.storage import between_integers, runs_on_integers
from automc.factors import Factor, factor_positions, factors_of
from automc.graph import LayerGraph, LayerSpec
from automc.policy import LowRank, Prune, Quantize, Sparsify, Spec
from automc.space import Codes, SearchSpace

__all__ = [
    "BLOCKED",
    "COLUMNS",
    "INT8",
    "KINDS",
    "PLAIN",
    "Ints",
    "Kernels",
    "LayerChoices",
    "Layouts",
    "Sum",
    "Sums",
    "kept",
    "layer_kernels",
]

Ints = NDArray[np.int64]
Sum: TypeAlias = tuple[int, tuple[tuple[int, Ints], ...]]
"""What is always added, and per domain (its column or -1) what each of its codes adds, the first where there is no domain."""

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


@dataclass(frozen=True)
class LayerChoices:
    """Which columns of a policy's codes concern a layer, and what each code means for it.

    Attributes:
        inputs, outputs: (fixed, [(column or -1, kept channels times `times` per code)]).
        low_rank, quantize, sparsify: (column or -1, spec per code).
        clipped: whether a Clip follows, which the runtime fuses into a floating-point layer.
        implied: per code of `bits`, the one by which the layer is exported between integer layers; empty where there are none.
        unasked: what it becomes there that is not among the choices.
    """

    spec: LayerSpec
    inputs: Sum
    outputs: Sum
    low_rank: tuple[int, tuple[LowRank | None, ...]]
    quantize: tuple[int, tuple[Quantize | None, ...]]
    sparsify: tuple[int, tuple[Sparsify | None, ...]] = (-1, (None,))
    clipped: bool = False
    implied: tuple[int, ...] = ()
    unasked: tuple[Quantize, ...] = ()

    @classmethod
    def of(cls, spec: LayerSpec, graph: LayerGraph, space: SearchSpace, *, clipped: bool = False) -> LayerChoices:
        """The choices that `space` offers for a layer."""
        ranks = _domain(space, spec.name, LowRank.knob)
        bits = _domain(space, spec.name, Quantize.knob)
        zeros = _domain(space, spec.name, Sparsify.knob)
        asked = tuple(s if isinstance(s, Quantize) else None for s in bits[1])
        implied, unasked = (
            _implied(asked) if _may_be_implied(spec, graph) and space.columns(Quantize.knob) else ((), ())
        )
        return cls(
            spec,
            (spec.inputs.fixed, kept(spec.inputs.parts, graph, space)),
            (spec.outputs.fixed, kept(spec.outputs.parts, graph, space)),
            (ranks[0], tuple(s if isinstance(s, LowRank) else None for s in ranks[1])),
            (bits[0], asked),
            (zeros[0], tuple(s if isinstance(s, Sparsify) else None for s in zeros[1])),
            clipped,
            implied,
            unasked,
        )

    @cached_property
    def bits(self) -> tuple[Quantize | None, ...]:
        """What the bits code of a key stands for: the choices of the space, and what is `unasked` for besides."""
        return (*self.quantize[1], *self.unasked)

    @property
    def key(self) -> Sum:
        """One even integer per policy that says all about the layer: cin, cout, zeros, rank and bits code.

        Odd is an integer layer that is cold, and a floating-point one whose Clip is left to the quantisation behind it.
        """
        fixed, parts, unit = 0, list[tuple[int, Ints]](), 2
        counts = len(self.bits), len(self.low_rank[1]), len(self.sparsify[1])
        for (column, specs), count in zip((self.quantize, self.low_rank, self.sparsify), counts, strict=True):
            parts.append((column, unit * np.arange(len(specs))))
            unit *= count
        for (always, channels), times in ((self.outputs, unit), (self.inputs, unit * (self.spec.out_channels + 1))):
            fixed += always * times
            parts += [(column, kept * times) for column, kept in channels]
        return fixed, tuple(parts)

    def keys(self, codes: Codes) -> Ints:
        """(count,) `key` of each policy."""
        return Sums([self.key]).of(codes)[0]

    @property
    def runs_int8(self) -> Sum:
        """1 where a policy runs the layer on integers, else 0."""
        column, specs = self.quantize
        return 0, ((column, np.array([int(spec is not None and runs_on_integers(spec)) for spec in specs])),)

    def implied_key(self, keys: Ints) -> Ints:
        """(count,) the same choices as they are exported between integer layers; the same key where nothing is integer."""
        if not self.implied:
            return keys
        code = keys // 2 % len(self.bits)
        return keys + 2 * (np.array(self.implied)[code] - code)

    @property
    def key_count(self) -> int:
        """One more than the largest key."""
        widths = (self.spec.in_channels + 1) * (self.spec.out_channels + 1)
        return 2 * widths * len(self.sparsify[1]) * len(self.low_rank[1]) * len(self.bits)

    def density(self, key: int) -> float:
        """The share of the weights that a key leaves."""
        _, code = divmod(key // (2 * len(self.bits) * len(self.low_rank[1])), len(self.sparsify[1]))
        spec = self.sparsify[1][code]
        return 1.0 if spec is None else spec.density

    def rounding(self, key: int) -> Quantize | None:
        """What a key says about the weights' bits."""
        return self.bits[key // 2 % len(self.bits)]

    def kernels(self, key: int) -> Kernels:
        """The kernels of a key, in order."""
        key, odd = divmod(key, 2)
        key, code = divmod(key, len(self.bits))
        key, rank = divmod(key, len(self.low_rank[1]))
        cin, cout = divmod(key // len(self.sparsify[1]), self.spec.out_channels + 1)
        kernels = layer_kernels(self.spec, cin, cout, self.low_rank[1][rank], self.bits[code], cold=bool(odd))
        clips = self.clipped and not odd and not kernels["int8"].any()
        if clips:
            kernels.rows[-1, COLUMNS.index("fused")] = 1
        return kernels


def _may_be_implied(spec: LayerSpec, graph: LayerGraph) -> bool:
    return spec.kind != "recurrent" and spec.name in graph.layer


def _implied(asked: Sequence[Quantize | None]) -> tuple[tuple[int, ...], tuple[Quantize, ...]]:
    """Per choice the place, among the choices and what is returned besides, of what it becomes between integers."""
    become = [s if s is not None and runs_on_integers(s) else between_integers(s) for s in asked]
    besides = tuple(dict.fromkeys(spec for spec in become if spec not in asked))
    return tuple([*asked, *besides].index(spec) for spec in become) + tuple(
        range(len(asked), len(asked) + len(besides))
    ), besides


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


def kept(parts: Sequence[tuple[str, int]], graph: LayerGraph, space: SearchSpace) -> tuple[tuple[int, Ints], ...]:
    """For each (group, times): the group's column (or -1) and `times` x kept channels per code."""
    found = []
    for group, times in parts:
        column, specs = _domain(space, group, Prune.knob)
        width = graph.widths[group]
        keeps = [spec.keep if isinstance(spec, Prune) else width for spec in specs]
        found.append((column, times * np.array(keeps, dtype=np.int64)))
    return tuple(found)


class Sums:
    """Many sums over the choices of a policy, taken at once."""

    def __init__(self, sums: Sequence[Sum]) -> None:
        terms = [[(-1, np.array([fixed])), *parts] if fixed or not parts else [*parts] for fixed, parts in sums]
        order = sorted(range(len(terms)), key=lambda index: -len(terms[index]))
        self._back = np.argsort(order)
        self._rounds = []  # the first term of every sum, the second of those that have one, ...
        for place in range(len(terms[order[0]])):
            columns, values = zip(*(terms[i][place] for i in order if len(terms[i]) > place), strict=True)
            sizes = [len(each) for each in values]
            first = np.cumsum(sizes) - sizes
            self._rounds.append((np.array(columns), first[:, None], np.concatenate(values)))

    def of(self, codes: Codes) -> Ints:
        """(sums, count) values for (count, domains) codes."""
        by_domain = np.zeros((codes.shape[1] + 1, len(codes)), dtype=np.int64)  # the last row is that of no domain, -1
        by_domain[:-1] = codes.T
        total = np.zeros((len(self._back), len(codes)), dtype=np.int64)
        for columns, first, values in self._rounds:
            total[: len(columns)] += values[by_domain[columns] + first]
        return total[self._back]


def _domain(space: SearchSpace, target: str, knob: str) -> tuple[int, tuple[Spec | None, ...]]:
    """The column of a target's knob (or -1) and its choices."""
    column = space.column(target, knob)
    return -1 if column is None else column, space.choices(target, knob)
