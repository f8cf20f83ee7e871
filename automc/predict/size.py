"""Bytes of the exported model: weights as stored, plus what the file holds besides, calibrated on built candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from automc.predict.roofline import Floats

__all__ = ["SizeModel"]


@dataclass(frozen=True)
class SizeModel:
    """bytes = weights + what the dense file holds besides + per factor node added + per integer kernel."""

    overhead: float
    per_kernel: float
    per_int8: float
    dense_kernels: float

    @classmethod
    def fit(cls, weight_bytes: Floats, kernels: Floats, int8: Floats, sizes: Floats, dense_kernels: float) -> SizeModel:
        """From built candidates, (models,) each."""
        left = sizes - weight_bytes
        design = np.stack([np.ones(len(left)), np.maximum(kernels - dense_kernels, 0.0), int8], axis=1)
        solution, _ = nnls(design, np.maximum(left, 0.0))
        return cls(float(solution[0]), float(solution[1]), float(solution[2]), dense_kernels)

    def predict(self, weight_bytes: Floats, kernels: Floats, int8: Floats) -> Floats:
        """(count,) bytes."""
        added = np.maximum(kernels - self.dense_kernels, 0.0)
        return np.asarray(weight_bytes + self.overhead + self.per_kernel * added + self.per_int8 * int8)
