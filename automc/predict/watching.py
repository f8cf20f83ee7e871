"""What the nodes of profiled models take where nobody watches them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from automc.predict.profile import Candidate
from automc.predict.roofline import Floats, relative_nnls

__all__ = ["TOLERATED_DISAGREEMENT", "unwatched_s"]

TOLERATED_DISAGREEMENT = 0.03
"""Of kernel times with the latency of their whole model, as a fraction."""

_FEWEST = 5
_MOST_WATCHING_US = 10.0
_TENSOR_US, _TENSOR_DOUBT_US = 0.15, 0.05
"""What a tensor costs, as short models tell it with precision, and by how much it may be off before the data have to insist: long models hardly tell."""
_USUAL_ERROR = 0.01
"""Of a sum of node times; candidates that were disturbed while their nodes were timed are off by far more, and count for little."""
_LEAST_SHARE = 0.1
"""Of its time as measured that is left of a node at least."""


def unwatched_s(candidates: Sequence[Candidate], latency_s: Floats) -> list[Floats]:
    """Per candidate the (nodes,) seconds that its nodes take where nobody watches them, in keeping with the latency of the whole model.

    To time a node costs a few microseconds, the more the more tensors it notes down (an integer convolution has 9 of them); a robust
    regression of the whole latencies on the times and numbers of nodes and tensors finds how many.
    Kernels are timed a few times, one model after the other, the whole models in many interleaved rounds: where both then disagree by more
    than TOLERATED_DISAGREEMENT, other work disturbed the kernels.
    """
    raw = [np.array([node.time_s for node in candidate.nodes]) for candidate in candidates]
    watching_s = _watching_s(candidates, raw, latency_s)
    times = [np.maximum(each - cost, _LEAST_SHARE * each) for each, cost in zip(raw, watching_s, strict=True)]
    return [each * scale for each, scale in zip(times, _scales(times, latency_s), strict=True)]


def _watching_s(candidates: Sequence[Candidate], times_s: Sequence[Floats], latency_s: Floats) -> list[Floats]:
    """Per candidate the (nodes,) seconds that it costs to time them, by node and by tensor that a node reads or writes; 0 for too few models to tell."""
    tensors = [np.array([float(len(n.inputs) + len(n.outputs)) for n in c.nodes]) for c in candidates]
    if len(times_s) < _FEWEST:
        return [np.zeros(len(each)) for each in tensors]
    sums, counts = _sums(times_s)
    noted = np.array([each.sum() for each in tensors])
    design = np.stack([sums, -1e-6 * counts, -1e-6 * noted, np.full(len(sums), 1e-6)], axis=1) / latency_s[:, None]
    pull = 0.05 * np.sqrt(len(sums))

    def errors(weights: Floats) -> Floats:
        """Relative errors of the latencies, how far the times' weight is from 1, and a tensor's cost from the usual."""
        doubt = _USUAL_ERROR * (weights[2] - _TENSOR_US) / _TENSOR_DOUBT_US
        return np.append(design @ weights - 1.0, [pull * (weights[0] - 1.0), doubt])

    limits = [0.5, 0.0, 0.0, 0.0], [2.0, _MOST_WATCHING_US, _MOST_WATCHING_US, np.inf]
    found = least_squares(errors, np.array([1.0, 1.0, 0.1, 1.0]), bounds=limits, loss="soft_l1", f_scale=_USUAL_ERROR)
    per_node, per_tensor = 1e-6 * found.x[1:3]
    return [per_node + per_tensor * each for each in tensors]


def _scales(times_s: Sequence[Floats], latency_s: Floats) -> Floats:
    """(models,) what makes kernel times agree with the whole latency, less an overhead per node and per run."""
    sums, counts = _sums(times_s)
    design = np.stack([sums, counts, np.ones(len(sums))], axis=1)
    weights = relative_nnls(design, latency_s)
    errors = np.abs(design @ weights / latency_s - 1.0)
    calm = errors <= max(3.0 * float(np.median(errors)), 0.01)
    weights = relative_nnls(design[calm], latency_s[calm])
    scales = (latency_s - design[:, 1:] @ weights[1:]) / np.maximum(weights[0] * sums, 1e-12)
    return np.where(np.abs(scales - 1.0) > TOLERATED_DISAGREEMENT, np.clip(scales, 0.5, 2.0), 1.0)


def _sums(times_s: Sequence[Floats]) -> tuple[Floats, Floats]:
    """(models,) sums and numbers of node times."""
    return np.array([each.sum() for each in times_s]), np.array([float(len(each)) for each in times_s])
