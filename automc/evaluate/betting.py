"""Whether the mean of a finite population can still reach a value, told from a part of it.

A bettor with one unit of wealth bets, sample after sample, that the mean is below the value. While it is not, the wealth is a
nonnegative supermartingale, and so the probability that it *ever* reaches 1 / error is at most `error` (Ville 1939),
however often one looks. Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement" (NeurIPS 2020,
arXiv 2006.04347) and "Estimating means of bounded random variables by betting" (JRSS B 2024, arXiv 2010.09686), whose
approximate growth-rate-optimal bets are used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["is_below", "log_wealth"]

_MOST = 0.75
"""The share of the wealth that one sample may cost."""


def is_below(values: ArrayLike, size: int, mean: float, error: float) -> bool:
    """Whether the mean of the whole population is below `mean`; wrongly so with a probability of at most `error`.

    The probability is over the order of the samples and holds for all looks at one population together.

    Args:
        values: (n,) samples in 0..1, in the random order in which they were drawn without replacement.
        size: of the population.
    """
    return bool(log_wealth(values, size, mean).max(initial=0.0) >= -np.log(error))


def log_wealth(values: ArrayLike, size: int, mean: float) -> NDArray[np.float64]:
    """(n,) logarithm of the wealth after each of (n,) samples in 0..1; infinite once the mean is out of reach."""
    y = np.asarray(values, dtype=np.float64)
    count = np.arange(len(y))  # of samples before this one
    total = np.cumsum(y) - y
    expected = (size * mean - total) / (size - count)  # of the next sample, if the population's mean is `mean`
    bets = np.clip(_bets(y, expected), 0.0, _MOST / np.maximum(1.0 - expected, 1e-9))
    bets[expected <= 0.0] = 0.0  # the mean is reached already
    growth = np.log1p(bets * (np.minimum(expected, 1.0) - y))
    most = total + y + (size - count - 1)  # the population's sum, if all that is left is 1
    return np.where(most < size * mean - 1e-9, np.inf, np.cumsum(growth))


def _bets(y: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) approximate growth-rate-optimal bets, each from the samples before it and half a sample of prior knowledge."""
    seen = np.arange(1, len(y) + 1)
    mean = (0.5 + np.cumsum(y)) / (seen + 1)
    variance = (0.25 + np.cumsum((y - mean) ** 2)) / (seen + 1)
    before = np.concatenate([[0.5], mean[:-1]])
    spread = np.concatenate([[0.25], variance[:-1]])
    edge = expected - before
    return edge / (spread + edge**2)
