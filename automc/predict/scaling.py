"""Kernel times in keeping with the latency of the whole model, which is measured more carefully."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import theilslopes

from automc.predict.profile import ProfiledModel
from automc.predict.roofline import Floats

__all__ = ["in_keeping", "run_overhead_s"]

_FEWEST = 5
_LIKELY_SHARE = 0.05
"""Of the latency that a run takes besides its kernels: what is told less precisely than this counts for little."""
_MOST_SHARE = 0.9


def in_keeping(candidates: Sequence[ProfiledModel], latency_s: Floats) -> list[Floats]:
    """Per candidate the (nodes,) seconds that add up to (models,) its latency, less what every run takes besides.

    Kernels are timed in one go, one model after the other; where the machine changes its speed, one candidate's were timed in a slow
    moment and another's in a quick one.
    """
    times = [np.array([node.time_s for node in candidate.nodes]) for candidate in candidates]
    sums = np.array([each.sum() for each in times])
    overhead = run_overhead_s(sums, latency_s)
    return [each * ((s - overhead) / total) for each, s, total in zip(times, latency_s, sums, strict=True)]


def run_overhead_s(sums_s: Floats, latency_s: Floats) -> float:
    """What every run takes besides its kernels, by (models,) sums of their times and latencies; drawn to 0 as far as these do not tell.

    A line through the sums, which are the less precise, over the latencies (Theil and Sen); where it meets 0.
    """
    if len(sums_s) < _FEWEST or np.ptp(latency_s) == 0:
        return 0.0
    slope, _, low, high = theilslopes(sums_s, latency_s)
    if slope <= 0:
        return 0.0
    told = float(np.median(latency_s) - np.median(sums_s) / slope)
    doubt = float(np.median(sums_s)) * (high - low) / (2 * 1.96) / slope**2
    likely = _LIKELY_SHARE * float(np.median(latency_s))
    return float(np.clip(told * likely**2 / (likely**2 + doubt**2), 0.0, _MOST_SHARE * latency_s.min()))
