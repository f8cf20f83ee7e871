"""Zeros alone: the share of its weights that each convolution and linear layer keeps.

They make the file smaller. They make a layer faster only on a device that has a kernel for their pattern.
"""

from __future__ import annotations

from collections.abc import Sequence

from automc.graph import LayerGraph
from automc.policy import Sparsify
from automc.space import Domain, SearchSpace

__all__ = ["DENSITIES", "domains", "sparse"]

DENSITIES = (0.75, 0.5, 0.35, 0.25)
_SMALLEST = 1024
"""Weights below which a mask and its description save nothing worth having."""


def sparse(graph: LayerGraph, *, sparsity: Sequence[str] = ()) -> SearchSpace:
    """One domain per layer and nothing else.

    Args:
        sparsity: the n:m patterns that the device has a kernel for.
    """
    return SearchSpace(tuple(domains(graph, sparsity)))


def domains(graph: LayerGraph, sparsity: Sequence[str] = ()) -> list[Domain]:
    """Unstructured densities and the device's n:m patterns for every ordinary convolution and linear layer, densest first."""
    choices = [Sparsify(density) for density in DENSITIES] + [_pattern(name) for name in sparsity if ":" in name]
    choices.sort(key=lambda spec: (-spec.density, spec.pattern != "unstructured"))
    layers = [layer for layer in graph.layers if layer.kind in ("conv", "linear") and layer.weight_count >= _SMALLEST]
    return [Domain(layer.name, Sparsify.knob, (None, *choices)) for layer in layers]


def _pattern(name: str) -> Sparsify:
    n, _, m = name.partition(":")
    return Sparsify(int(n) / int(m), name)
