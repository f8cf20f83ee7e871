"""Which kernel of the runtime's graph is which layer (and which factor of it), by names. Needs the standard library alone.

Runtimes rename what they fuse. ONNX Runtime keeps either the node's name or the name of a tensor that it writes, with a
prefix or a suffix; both lead back to the layer by the model that was given. What matches nothing stands between layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from automc.devices.device import NodeTime

__all__ = ["Place", "assign"]

Place = tuple[str, int]
"""(layer, factor): factor 0 is the layer itself where it is not factorised."""

_ADDED = re.compile(r"^fused |(_token_\d+|_nchwc|_fused|_quant|/duplicated|/\w+Fusion/?)+$")
_COMPUTES = ("Conv", "GRU", "Gemm", "LSTM", "MatMul", "RNN")


def assign(places: Mapping[str, Place], nodes: Sequence[NodeTime]) -> list[Place | None]:
    """For each node the place that its name leads to, the first node of a place alone."""
    taken: set[Place] = set()
    found: list[Place | None] = []
    for node in nodes:
        place = places.get(_ADDED.sub("", node.name)) if any(op in node.op for op in _COMPUTES) else None
        found.append(None if place is None or place in taken else place)
        if place is not None:
            taken.add(place)
    return found
