"""What the nodes of a model take where nobody watches them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["unwatched"]

_TENSORS_A_NODE = 8
"""What it costs to note down a node, in what a tensor of it costs: an integer convolution, which has 9 of them, costs twice as much as an activation."""
_TENSOR_S, _TENSOR_DOUBT_S = 0.2e-6, 0.2e-6
"""What noting down a tensor costs, and by how much that may be off: models of many milliseconds hardly tell."""
_REPEATABLE = 0.01
"""What a single run of a model repeats to, as a fraction."""
_LEAST_SHARE = 0.1
"""Of its time as watched that is left of a node at least."""


def unwatched(watched_s: Sequence[Sequence[float]], whole_s: Sequence[float], tensors: Sequence[int]) -> list[float]:
    """(nodes,) seconds that add up to no more than the model took in the same moments with nobody watching, as far as that can be told.

    To time a node costs a few microseconds, the more the more tensors it notes down; how much depends on what else the machine does, so
    it is found where it arises: watched and unwatched runs alternate, and what one took more than the other is taken off the nodes. Only the quickest quarter of the pairs of runs counts. The longer the model, the less that
    difference says, and the more counts what is usual.

    Args:
        watched_s: (nodes, runs) seconds of the nodes.
        whole_s: (runs,) seconds of the whole model, unwatched, just before or after.
        tensors: (nodes,) how many tensors each node reads and writes.
    """
    if not watched_s:
        return []
    watched, whole = np.array(watched_s), np.array(whole_s)
    quick = np.argsort(watched.sum(axis=0) + whole)[: max(2, len(whole) // 4)]
    nodes_s, shares = watched[:, quick].mean(axis=1), _TENSORS_A_NODE + np.array(tensors)
    cost_s, usual_s = nodes_s.sum() - whole[quick].mean(), _TENSOR_S * shares.sum()
    trust = 1.0 / (1.0 + (_REPEATABLE * whole[quick].mean()) ** 2 / len(quick) / (_TENSOR_DOUBT_S * shares.sum()) ** 2)
    cost_s = max(trust * cost_s + (1.0 - trust) * usual_s, 0.0)
    left: list[float] = np.maximum(nodes_s - cost_s * shares / shares.sum(), _LEAST_SHARE * nodes_s).tolist()
    return left
