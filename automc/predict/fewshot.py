"""A new device from a handful of measurements: an empirical-Bayes prior over the coefficients of known devices.

log latency of configuration x on device d is x . c_d + noise, with c_d ~ N(m, S) across devices (Efron and Morris 1973, "Stein's estimation
rule and its competitors", JASA 68; Rasmussen and Williams 2006, equations 2.9 and 5.10 to 5.12 for posterior and leave-one-out). m and S
are those of known devices; how far to trust them against the new measurements is chosen by the leave-one-out error of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automc.errors import InputError

__all__ = ["CLAIMABLE", "FewShot", "Prior"]

Floats = NDArray[np.float64]
CLAIMABLE = 0.1
"""Above this leave-one-out error of the log latency (about a fraction) nothing may be claimed of the new device."""
_OWN = (0.0, 1e-4, 1e-3, 1e-2)
"""Variance of coefficients that no known device shares, as a share of the mean variance."""
_NOISE = tuple(float(v) for v in 10.0 ** np.arange(-5.0, 0.1, 0.5))
"""Variance of the noise of log latencies."""
_SHIFT = 1e3
"""Variance of the constant: how fast the device is as a whole is not known beforehand."""


@dataclass(frozen=True)
class Prior:
    """What known devices have in common: (features,) mean and (devices, features) deviations of their coefficients."""

    mean: Floats
    deviations: Floats

    @classmethod
    def of(cls, features: Floats, latencies_s: Floats, ridge: float = 1.0) -> Prior:
        """From (count, features) configurations and (devices, count) latencies, each device's mean log latency taken away.

        Raises:
            InputError: fewer than two devices, or a latency that is not positive.
        """
        if len(latencies_s) < 2 or not (latencies_s > 0).all():
            raise InputError("A prior needs positive latencies of at least two devices.")
        logs = np.log(latencies_s)
        design = features - features.mean(0)
        gram = design.T @ design + ridge * np.eye(features.shape[1])
        coefficients = np.linalg.solve(gram, design.T @ (logs - logs.mean(1, keepdims=True)).T).T
        return cls(coefficients.mean(0), coefficients - coefficients.mean(0))

    def covariance(self, left: Floats, right: Floats, own: float) -> Floats:
        """(left, right) prior covariance of log latencies, the unknown constant included."""
        shared = (left @ self.deviations.T) @ (right @ self.deviations.T).T / (len(self.deviations) - 1)
        spread = own * float((self.deviations**2).mean())
        return np.asarray(shared + spread * (left @ right.T) * left.shape[1] + _SHIFT, dtype=np.float64)


@dataclass(frozen=True)
class FewShot:
    """A device known by few measurements.

    Attributes:
        error: root mean square leave-one-out error of the log latency, over the measurements.
        weights: (samples,) of the posterior mean.
    """

    prior: Prior
    samples: Floats
    weights: Floats
    own: float
    error: float

    @classmethod
    def fit(cls, prior: Prior, samples: Floats, latencies_s: Floats) -> FewShot:
        """From (samples, features) configurations and their (samples,) latencies on the new device.

        Raises:
            InputError: fewer than three measurements, or one that is not positive.
        """
        if len(samples) < 3 or not (latencies_s > 0).all():
            raise InputError("A new device needs at least three positive latencies.", remedy="Measure 10 to 20.")
        rest = np.log(latencies_s) - samples @ prior.mean
        tried = [cls._with(prior, samples, rest, own, noise) for own in _OWN for noise in _NOISE]
        return min(tried, key=lambda found: found.error)

    @classmethod
    def _with(cls, prior: Prior, samples: Floats, rest: Floats, own: float, noise: float) -> FewShot:
        inverse = np.linalg.inv(prior.covariance(samples, samples, own) + noise * np.eye(len(samples)))
        weights = inverse @ rest
        left_out = weights / np.diag(inverse)  # equation 5.12: what is off when the measurement itself is left out
        return cls(prior, samples, weights, own, float(np.sqrt(np.mean(left_out**2))))

    @property
    def may_claim(self) -> bool:
        """Whether the own leave-one-out error allows to promise anything of this device."""
        return self.error <= CLAIMABLE

    def predict(self, features: Floats) -> Floats:
        """(count,) seconds."""
        near = self.prior.covariance(features, self.samples, self.own)
        return np.asarray(np.exp(features @ self.prior.mean + near @ self.weights), dtype=np.float64)
