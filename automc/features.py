"""What a layer looks like, as numbers: the part of a learning agent's state that no policy changes (AMC, 1802.03494, equation 1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automc.graph import LayerGraph, LayerSpec
from automc.space import SearchSpace

__all__ = ["FEATURES", "layer_features"]

FEATURES = ("out_channels", "in_channels", "height", "width", "stride", "kernel", "macs")


def layer_features(graph: LayerGraph, space: SearchSpace) -> NDArray[np.float64]:
    """(domains, 7) of each domain its layer's FEATURES; of a channel group those of its largest producer and all their MACs."""
    rows = [_row(_layers(graph, domain.target)) for domain in space.domains]
    return np.array(rows, dtype=float).reshape(len(rows), len(FEATURES))


def _layers(graph: LayerGraph, target: str) -> list[LayerSpec]:
    names = graph.group[target].producers if target in graph.group else (target,)
    return [layer for layer in graph.priced if layer.name in names]


def _row(layers: list[LayerSpec]) -> list[float]:
    if not layers:
        return [0.0] * len(FEATURES)
    layer = max(layers, key=lambda one: one.macs)
    flat = layer.kind in ("linear", "recurrent")
    height = layer.positions if flat else layer.out_shape[1]
    width = layer.positions // max(height, 1)
    shape = (layer.out_channels, layer.in_channels, height, width, layer.stride[0], layer.kernel[0])
    return [*map(float, shape), float(sum(one.macs for one in layers))]
