"""The range that the codes of an activation should cover: all of it, all but its tails, or where rounding errs least."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["RANGES", "RangeRule", "best_range", "full_range", "percentile_range"]

_SHRINK = np.linspace(1.0, 0.2, 33)
_TAIL = 0.01
"""Percent of the values beyond each end of a percentile range."""

RangeRule = Callable[[NDArray[np.float32], int], tuple[float, float]]
"""(values, bits) -> (low <= 0, high >= 0), not both 0."""


def full_range(values: NDArray[np.float32], bits: int = 8) -> tuple[float, float]:
    """From the least value to the largest, whatever the bits (min-max)."""
    return _around_zero(float(values.min()), float(values.max()))


def percentile_range(values: NDArray[np.float32], bits: int = 8) -> tuple[float, float]:
    """Without the lowest and the highest 0.01 % of the values, whatever the bits."""
    low, high = np.percentile(values, [_TAIL, 100 - _TAIL])
    return _around_zero(float(low), float(high))


def best_range(values: NDArray[np.float32], bits: int = 8) -> tuple[float, float]:
    """The range whose `bits`-bit rounding of `values` has the least mean squared error.

    Shrinks the ends together from the minimum and maximum; ties and constant inputs keep the full range.
    """
    low, high = full_range(values)
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


RANGES: Mapping[str, RangeRule] = {"min-max": full_range, "percentile": percentile_range, "mse": best_range}
"""The rules by name."""
