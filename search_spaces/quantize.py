"""Integer arithmetic alone: 8-bit weights and activations, or float, for each layer."""

from __future__ import annotations

from automc.graph import LayerGraph
from automc.policy import Quantize
from automc.space import Domain, SearchSpace

__all__ = ["domains", "quantize"]


def quantize(graph: LayerGraph, *, channel_block: int = 1, int8: bool = True, levels: int = 8) -> SearchSpace:
    """One domain per layer that the runtime has an int8 kernel for; empty when the device has none (`int8` False).

    Recurrent layers have none: their weights are stored in 8 bits, which counts for size alone.
    """
    return SearchSpace(tuple(domains(graph) if int8 else ()))


def domains(graph: LayerGraph) -> list[Domain]:
    """{float, w8a8} for every layer that may be quantised, {float, w8} for recurrent ones."""
    offered = [
        (layer.name, Quantize(8, 32 if layer.kind == "recurrent" else 8)) for layer in graph.layers if layer.quantize
    ]
    return [Domain(name, Quantize.knob, (None, spec)) for name, spec in offered]
