"""Least squares whose weights are none of them negative."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

__all__ = ["nonnegative"]


def nonnegative(design: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """(features,) x of 0 or more that minimises |design @ x - target|; scipy's own ends the process where there are no features, or no rows."""
    if design.size == 0:
        return np.zeros(design.shape[1])
    solution, _ = nnls(design, target)
    return np.asarray(solution, dtype=np.float64)
