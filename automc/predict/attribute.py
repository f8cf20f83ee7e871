"""Which kernel of the runtime's graph is which layer (and which factor of it), by the model that the runtime was given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import onnx

from automc.devices.device import NodeTime
from automc.devices.places import Place, assign
from automc.export.floating import layer_of as module_of
from automc.predict.structure import LAYER_OPS, layer_of

__all__ = ["Place", "attribute", "places_in"]


def attribute(model: bytes, nodes: Sequence[NodeTime], layers: Sequence[str]) -> list[Place | None]:
    """For each node the layer and factor that it computes, None for what stands between layers.

    `model` is what the runtime was given; its weights are named `<layer>.…weight…`.
    """
    return assign(places_in(model, layers), nodes)


def places_in(model: bytes, layers: Sequence[str]) -> dict[str, Place]:
    """Names of layer nodes, of what they write, and of what elementwise nodes after them write -> place."""
    return _places(onnx.load_from_string(model).graph, layers)


def _places(graph: Any, layers: Sequence[str]) -> dict[str, Place]:
    constants = {tensor.name: tensor.name for tensor in graph.initializer}
    factors: dict[str, int] = defaultdict(int)
    written: dict[str, Place] = {}
    places: dict[str, Place] = {}
    for node in graph.node:
        if node.op_type in LAYER_OPS:
            place = _place(node, constants, layers, factors)
        else:
            sources = [name for name in node.input if name and name not in constants]
            if not sources:
                constants.update({name: constants.get(node.input[0], "") if node.input else "" for name in node.output})
                continue
            place = written.get(sources[0]) if len(sources) == 1 else None
        if place is not None:
            written.update({name: place for name in node.output})
            places.update({name: place for name in (node.name, *node.output) if name})
    return places


def _place(node: Any, constants: dict[str, str], layers: Sequence[str], factors: dict[str, int]) -> Place | None:
    weights = [constants[name] for name in node.input if name in constants]
    layer = next((owner for name in weights if (owner := layer_of(name, layers))), None)
    if weights and (
        layer is None or module_of(node) in layers
    ):  # the owner of the weight may be another that shares it
        layer = _by_scope(node, layers)
    if layer is None:
        return None
    factors[layer] += 1
    return layer, factors[layer] - 1


def _by_scope(node: Any, layers: Sequence[str]) -> str | None:
    scope = module_of(node)
    return scope if scope in layers else layer_of(scope, layers)
