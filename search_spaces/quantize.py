"""Bits alone: 8-bit integers where they are fast, and weights of few bits where a file should be small."""

from __future__ import annotations

from collections.abc import Sequence

from automc.graph import LayerGraph, LayerSpec
from automc.policy import Quantize
from automc.space import Domain, SearchSpace

__all__ = ["domains", "mixed", "mixed_domains", "quantize"]

_INTEGER = Quantize(8, 8)
_STORED = (Quantize(8, 32), Quantize(4, 32), Quantize(3, 32, symmetric=False), Quantize(2, 32, symmetric=False))
"""Weights that only the file holds in these bits: they run in floating point and save no time. Zero points help at 2 and 3 bits."""


def quantize(graph: LayerGraph, *, int8: bool = True, bits: Sequence[tuple[int, int]] = ()) -> SearchSpace:
    """One domain per layer that the runtime has an int8 kernel for; empty when the device has none (`int8` False).

    `bits` are the (weight, activation) bits of a device that computes in fewer than 8. Recurrent layers have none: their weights are stored in 8 bits, which counts for size alone.
    """
    return SearchSpace(tuple(domains(graph, bits) if int8 else ()))


def mixed(graph: LayerGraph, *, int8: bool = True) -> SearchSpace:
    """8-bit kernels where there are any, and weights of 8, 4, 3 and 2 bits for size budgets, for each layer."""
    return SearchSpace(tuple(mixed_domains(graph, int8=int8)))


def domains(graph: LayerGraph, bits: Sequence[tuple[int, int]] = ()) -> list[Domain]:
    """{float, w8a8}, or {float, `bits`}, for every layer that may be quantised, {float, w8} for recurrent ones."""
    offered = tuple(Quantize(*pair) for pair in bits)
    return [
        Domain(
            layer.name, Quantize.knob, (None, *(offered if offered and layer.kind != "recurrent" else [_widest(layer)]))
        )
        for layer in graph.layers
        if layer.quantize
    ]


def mixed_domains(graph: LayerGraph, *, int8: bool) -> list[Domain]:
    """{float, w8a8 where there are integer kernels, w8, w4, w3, w2}; the file stores 3 bits in 4, and recurrent weights in 8."""
    choices = (None, *((_INTEGER,) if int8 else ()), *_STORED)
    return [
        Domain(layer.name, Quantize.knob, (None, _widest(layer)) if layer.kind == "recurrent" else choices)
        for layer in graph.layers
        if layer.quantize
    ]


def _widest(layer: LayerSpec) -> Quantize:
    """The most bits that are offered: runtimes have no integer kernels for recurrent layers."""
    return Quantize(8, 32) if layer.kind == "recurrent" else _INTEGER
