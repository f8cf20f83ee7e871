"""From the codes of policies to what they mean for each layer: one integer per layer that says all about its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from automc.compression.storage import between_integers, runs_on_integers
from automc.graph import LayerGraph, LayerSpec
from automc.policy import LowRank, Prune, Quantize, Sparsify, Spec
from automc.predict.kernels import COLUMNS, Ints, Kernels, layer_kernels
from automc.space import Codes, SearchSpace

__all__ = ["LayerChoices", "Sum", "Sums", "kept"]

Sum: TypeAlias = tuple[int, tuple[tuple[int, Ints], ...]]
"""What is always added, and per domain (its column or -1) what each of its codes adds, the first where there is no domain."""


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
