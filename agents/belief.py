"""What the scores say about the sensitivities: Bayesian linear regression of score drop on single-choice losses.

The sensitivity of a choice is measured with everything else dense, in nats; what it costs in score once everything around it is
compressed differs from knob to knob and from layer to layer. SPDY (2201.13096) searches those coefficients blindly; here
every told score informs them, and Thompson sampling (Thompson 1933; Russo et al. 2018, 1707.02038) does the searching.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Belief"]

Array = NDArray[np.float64]
_KNOB_SPREAD = 0.7
"""Prior standard deviation around 1 of the coefficient that the domains of a knob share."""
_DOMAIN_SPREADS = (0.15, 0.3, 0.6, 1.0)
_NOISES = (0.03, 0.1, 0.3)
"""Candidate standard deviations of each domain's own coefficient, and of the scatter as a share of the median drop; the
evidence chooses (MacKay 1992, "Bayesian interpolation")."""
_PRIOR_SPREAD = 0.4
_FLOOR = 0.05
_FEWEST = 4
_ROUNDING = 1e-9
"""Share of the kernel's mean diagonal that is added to it: losses of very different size leave it singular in doubles."""


class Belief:
    """A Gaussian over one coefficient per domain, relative to the overall scale between nats and score.

    Args:
        knobs: the knob of each domain.
    """

    def __init__(self, knobs: Sequence[str]) -> None:
        same = np.array([[a == b for b in knobs] for a in knobs], dtype=float).reshape(len(knobs), len(knobs))
        self._shared = _KNOB_SPREAD**2 * same
        self._mean = np.ones(len(knobs))
        self._root = np.zeros_like(same)

    def fit(self, losses: Array, drops: Array) -> None:
        """Learn from (trials, domains) single-choice losses of scored policies and their (trials,) drops in score."""
        total = losses.sum(axis=1)
        useful = (total > 0) & (drops > 0)
        if useful.sum() < _FEWEST:
            return
        scale = float(np.median(drops[useful] / total[useful]))
        choices = itertools.product(_DOMAIN_SPREADS, _NOISES)
        fits = [self._posterior(losses, drops / scale, spread, noise) for spread, noise in choices]
        _, self._mean, covariance = max(fits, key=lambda fit: fit[0])
        values, vectors = np.linalg.eigh(covariance)
        self._root = vectors * np.sqrt(np.maximum(values, 0.0))

    def mean(self) -> Array:
        """(domains,) the most likely coefficients, none below a small positive floor."""
        return np.maximum(self._mean, _FLOOR)

    def sample(self, rng: np.random.Generator) -> Array:
        """(domains,) coefficients drawn from the posterior; from the prior's own spread before anything was learned."""
        if not self._root.any():
            return np.exp(_PRIOR_SPREAD * rng.standard_normal(len(self._mean)))
        return np.maximum(self._mean + self._root @ rng.standard_normal(len(self._mean)), _FLOOR)

    def _posterior(self, losses: Array, target: Array, spread: float, noise: float) -> tuple[float, Array, Array]:
        """(log evidence, mean, covariance) for a spread and a scatter, with a free intercept for how losses saturate."""
        prior = self._shared + spread**2 * np.eye(len(self._shared))
        typical = float(np.median(np.abs(target[target != 0])))  # of many policies that lose nothing the median is 0
        cross = losses @ prior
        kernel = cross @ losses.T
        rounding = _ROUNDING * np.trace(kernel) / len(target)
        kernel += typical**2 + (typical**2 * noise**2 + rounding) * np.eye(len(target))
        residual = target - losses.sum(axis=1)
        weights = np.linalg.solve(kernel, residual)
        evidence = -0.5 * float(residual @ weights + np.linalg.slogdet(kernel)[1])
        covariance = prior - cross.T @ np.linalg.solve(kernel, cross)
        return evidence, 1.0 + cross.T @ weights, covariance
