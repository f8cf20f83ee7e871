"""Bytes of the exported model: weights as stored, plus what the file holds besides, calibrated on built candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automc.predict.nonnegative import nonnegative
from automc.predict.roofline import Floats

__all__ = ["SizeModel"]


@dataclass(frozen=True)
class SizeModel:
    """bytes = weights + a constant + so much per kernel that factors add, per integer kernel, integer tensor and node that decodes weights."""

    weights: Floats

    @classmethod
    def fit(cls, weight_bytes: Floats, counts: Floats, sizes: Floats) -> SizeModel:
        """From built candidates: (models,) bytes of weights, (models, 4) counts of those parts, (models,) bytes in all."""
        left = np.maximum(sizes - weight_bytes, 0.0)
        return cls(nonnegative(_design(counts), left))

    def predict(self, weight_bytes: Floats, counts: Floats) -> Floats:
        """(count,) bytes."""
        return np.asarray(weight_bytes + _design(counts) @ self.weights, dtype=np.float64)


def _design(counts: Floats) -> Floats:
    return np.column_stack([np.ones(len(counts)), counts])
