"""From sums of kernels to whole models: a small linear calibration, intervals by split conformal, corrections by what was measured.

Conformal intervals follow Lei et al. 2018 (arXiv 1604.04173): the quantile of the errors on models held out of the fit. Corrections are kriging
on log ratios: exact where a policy was measured, fading with the distance between policies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automc.predict.nonnegative import nonnegative
from automc.predict.roofline import Floats

__all__ = ["Calibration", "Corrections", "conformal"]

_PRIOR_WEIGHT = 0.02
_REACH = 0.25
"""Distance, as a share of the latency that differs, at which a correction has faded to 1/e."""
_LOCAL_SHARE = 0.5
"""Share of the corrections' variance that is local; the rest shifts all predictions alike."""


@dataclass(frozen=True)
class Calibration:
    """latency = kernels x a + glue x b + nodes x c + d, all non-negative; a and b are drawn to 1, c and d to 0."""

    weights: Floats

    @classmethod
    def fit(cls, terms: Floats, latency_s: Floats) -> Calibration:
        """`terms` (models, 4): seconds of kernels, of glue, number of kernels and conversions, and ones; relative errors."""
        scale = np.array([1.0, 1.0, 1e-5, 1e-4])
        rows = terms * scale / latency_s[:, None]
        prior = _PRIOR_WEIGHT * np.sqrt(len(rows)) * np.eye(4)
        target = np.concatenate([np.ones(len(rows)), prior @ np.array([1.0, 1.0, 0.0, 0.0])])
        return cls(nonnegative(np.vstack([rows, prior]), target) * scale)

    def predict(self, terms: Floats) -> Floats:
        """(count,) seconds."""
        return np.asarray(terms @ self.weights, dtype=np.float64)


def conformal(errors: Floats, level: float = 0.95) -> float:
    """Half-width, in log ratio, that holds `level` of new models: the conformal quantile of absolute held-out errors.

    With fewer than level / (1 - level) errors that quantile does not exist; the largest error is widened in proportion.
    """
    count = len(errors)
    if count == 0:
        return float(np.log(2.0))
    rank = int(np.ceil((count + 1) * level))
    ordered = np.sort(np.abs(errors))
    return float(ordered[rank - 1]) if rank <= count else float(ordered[-1] * rank / count)


@dataclass(frozen=True)
class Corrections:
    """Measured policies and how far off their predictions were.

    Attributes:
        profiles_s: (anchors, layers) seconds per layer of the measured policies.
        log_ratios: (anchors,) log of measured over predicted.
        inverse: inverse of the anchors' covariance, variance 1.
    """

    profiles_s: Floats
    log_ratios: Floats
    inverse: Floats

    @classmethod
    def of(cls, profiles_s: Floats, log_ratios: Floats) -> Corrections:
        """Corrections by (anchors, layers) seconds per layer and (anchors,) log ratios."""
        covariance = _covariance(profiles_s, profiles_s) + 1e-6 * np.eye(len(profiles_s))
        return cls(profiles_s, log_ratios, np.asarray(np.linalg.inv(covariance), dtype=np.float64))

    def at(self, profiles_s: Floats) -> tuple[Floats, Floats]:
        """(count,) log correction, and the share of the uncertainty that is left, 0 at a measured policy to 1 far away."""
        near = _covariance(profiles_s, self.profiles_s)
        weights = near @ self.inverse
        left = np.sqrt(np.clip(1.0 - np.sum(weights * near, axis=1), 0.0, 1.0))
        return np.asarray(weights @ self.log_ratios), np.asarray(left)


def _covariance(left: Floats, right: Floats) -> Floats:
    """(left, right) covariance of log ratios: by the share of the latency that lies in layers which differ."""
    columns = [np.abs(left - row).sum(axis=1) / np.maximum(left.sum(axis=1), row.sum()) for row in right]
    distance = np.stack(columns, axis=1)
    return np.asarray(1.0 - _LOCAL_SHARE + _LOCAL_SHARE * np.exp(-distance / _REACH), dtype=np.float64)
