"""The range that the codes of an activation should cover: where rounding errs least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_range"]

_SHRINK = np.linspace(1.0, 0.2, 33)


def best_range(values: NDArray[np.float32], bits: int = 8) -> tuple[float, float]:
    """The range whose `bits`-bit rounding of `values` has the least mean squared error.

    Shrinks the ends together from the minimum and maximum; ties and constant inputs keep the full range.
    """
    low, high = _around_zero(float(values.min()), float(values.max()))
    best, error = (low, high), np.inf
    for shrink in _SHRINK:
        scale = (high - low) * shrink / (2**bits - 1)
        zero = round(-low * shrink / scale)
        codes = np.clip(np.round(values / scale) + zero, 0, 2**bits - 1)
        candidate = float(np.mean(((codes - zero) * scale - values) ** 2))
        if candidate < error:
            best, error = (low * shrink, high * shrink), candidate
    return best


def _around_zero(low: float, high: float) -> tuple[float, float]:
    low, high = min(0.0, low), max(0.0, high)
    return (low, high) if high > low else (0.0, 1.0)  # all zero: any range represents it exactly
