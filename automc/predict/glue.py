"""Seconds of what stands between layers, learned from the runtime's own operators.

Which conversion costs what, and which operators the runtime fuses away, is not guessed: the time of each kind of operator that the
runtime ran, summed over a model, is taken as a non-negative combination of the counts and elements of `flow.Flow`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from automc.predict.roofline import Floats

__all__ = ["Glue"]


@dataclass(frozen=True)
class Glue:
    """Seconds per feature of `Flow.names`, summed over the kinds of operator of the runtime."""

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


def _share(design: Floats, shares: Floats, totals_s: Floats, ridge: float = 1e-2) -> Floats:
    """Non-negative weights of one operator kind, errors relative to the whole model, with a small ridge."""
    rows = design / totals_s[:, None]
    size = np.linalg.norm(rows, axis=0)
    penalty = ridge * np.eye(design.shape[1])
    solution, _ = nnls(np.vstack([rows / size, penalty]), np.concatenate([shares, np.zeros(design.shape[1])]))
    return np.asarray(solution / size, dtype=np.float64)
