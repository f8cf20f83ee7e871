"""Seconds of what stands between layers, learned from the runtime's own operators.

Which conversion costs what, and which operators the runtime fuses away, is not guessed: the time of each kind of operator that the
runtime ran, summed over a model, is taken as a non-negative combination of the counts and elements of `ledger.Ledger`. What one operator takes is
a few ticks of the clock; a line on what all of its kind read and wrote, in all models, takes the place of its own time before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from automc.devices.device import NodeTime
from automc.predict.nonnegative import nonnegative
from automc.predict.profile import ProfiledModel
from automc.predict.roofline import Floats

__all__ = ["Glue", "operators_s"]

_LINE_RIDGE = 1e-3


@dataclass(frozen=True)
class Glue:
    """Seconds per feature of `Ledger.names`, summed over the kinds of operator of the runtime."""

    weights: Floats
    learned: tuple[str, ...]

    @classmethod
    def fit(cls, features: Floats, times_s: dict[str, Floats], totals_s: Floats) -> Glue:
        """Learn from models: (models, features) counts, per operator kind (models,) seconds, and (models,) whole latencies."""
        met = features.any(axis=0)
        weights = np.zeros(features.shape[1])
        for times in times_s.values():
            weights[met] += _share(features[:, met], times / totals_s, totals_s)
        return cls(weights, tuple(times_s))

    def predict(self, features: Floats) -> Floats:
        """(count,) seconds between the layers."""
        return np.asarray(features @ self.weights, dtype=np.float64)


def operators_s(candidates: Sequence[ProfiledModel], times_s: Sequence[Floats], totals_s: Floats) -> dict[str, Floats]:
    """Kind of operator -> (models,) seconds of those that belong to no layer, by (nodes,) seconds per model, each kind's on a line.

    `totals_s` are the (models,) whole latencies, to which errors are relative.
    """
    rows: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for model, (candidate, times) in enumerate(zip(candidates, times_s, strict=True)):
        for node, place, seconds in zip(candidate.nodes, candidate.places, times.tolist(), strict=True):
            if place is None:
                rows[node.op].append((model, seconds, *_work(node)))
    found = {}
    for op, of_kind in rows.items():
        table = np.array(of_kind)
        owners, work = table[:, 0].astype(np.int64), table[:, 2:]
        line = _share(work, table[:, 1] / totals_s[owners], totals_s[owners], _LINE_RIDGE)
        found[op] = np.bincount(owners, work @ line, minlength=len(totals_s)).astype(np.float64)
    return found


def _work(node: NodeTime) -> tuple[float, float, float]:
    """One operator, the elements that it reads, and those that it writes."""
    read, written = (prod(side[0].shape) if side else 0 for side in (node.inputs, node.outputs))
    return 1.0, float(read), float(written)


def _share(design: Floats, shares: Floats, totals_s: Floats, ridge: float = 1e-2) -> Floats:
    """Non-negative weights of one operator kind, errors relative to the whole model, with a small ridge."""
    rows = design / totals_s[:, None]
    size = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    penalty = ridge * np.eye(design.shape[1])
    target = np.concatenate([shares, np.zeros(design.shape[1])])
    return nonnegative(np.vstack([rows / size, penalty]), target) / size
