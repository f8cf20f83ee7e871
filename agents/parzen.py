"""The Parzen estimator of Optuna's TPE, tabulated: the same densities and the same draws, in a tenth of the time.

Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", section 4; multivariate as of Falkner et al. 2018 (1807.01774). Of
codes there are so few that every kernel's mass at each of them is worth a table; Optuna works mass by mass and domain by domain.
`TPESampler` takes other estimators as `_parzen_estimator_cls`, and only subclasses of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from scipy.special import ndtr

from automc.space import Codes

__all__ = ["TabulatedParzen"]

Array = NDArray[np.float64]
_NARROWEST = 100.0
"""No kernel is narrower than this part of its domain."""


class TabulatedParzen(_ParzenEstimator):
    """A mixture of products of normal kernels, discretised and truncated to codes 0 .. n - 1: one around each observation, and a prior.

    Args:
        observations: per parameter (trials,) codes.
        search_space: `IntDistribution`s from 0.
        predetermined_weights: (trials,) of the observations; by default what `parameters` says.
    """

    def __init__(
        self,
        observations: Mapping[str, Array],
        search_space: Mapping[str, BaseDistribution],
        parameters: _ParzenEstimatorParameters,
        predetermined_weights: Array | None = None,
    ) -> None:
        self._names = list(search_space)
        self._sizes = np.array([_size(search_space[name]) for name in self._names])
        codes = np.array([observations[name] for name in self._names], dtype=float).T
        if predetermined_weights is None:
            predetermined_weights = self._call_weights_func(parameters.weights, len(codes))
        weights = np.append(predetermined_weights, parameters.prior_weight if len(codes) else 1.0)
        self._weights = weights / weights.sum()
        self._mass = _masses(codes, _deviations(codes, self._sizes), self._sizes)

    def sample(self, rng: np.random.RandomState, size: int) -> dict[str, Codes]:
        """Per parameter (size,) codes: a kernel by its weight, and in every domain the code at a random quantile of it."""
        active = rng.choice(len(self._weights), p=self._weights, size=size)
        quantiles = rng.uniform(size=(len(self._names), size)).T
        below = np.cumsum(self._mass[active], axis=2) < quantiles[:, :, None]
        drawn = np.minimum(below.sum(axis=2), self._sizes - 1)
        return {name: drawn[:, column] for column, name in enumerate(self._names)}

    def log_pdf(self, samples_dict: Mapping[str, Codes]) -> Array:
        """(size,) log densities of (size,) codes per parameter."""
        codes = np.array([samples_dict[name] for name in self._names], dtype=np.int64).T
        each = self._log_mass[:, np.arange(len(self._names)), codes].sum(axis=2) + np.log(self._weights)[:, None]
        top = each.max(axis=0)
        density: Array = np.log(np.exp(each - top).sum(axis=0)) + top
        return density

    @cached_property
    def _log_mass(self) -> Array:
        with np.errstate(divide="ignore"):  # far from a narrow kernel there is nothing; the prior is everywhere
            return np.log(self._mass)


def _size(distribution: BaseDistribution) -> int:
    assert isinstance(distribution, IntDistribution)
    assert distribution.low == 0
    return distribution.high + 1


def _deviations(codes: Array, sizes: Codes) -> Array:
    """(trials + 1, domains) of the kernels: to the farther neighbour among the observations; the prior's is the whole domain."""
    trials, ends = len(codes), np.ones((1, len(sizes)))
    order = np.argsort(codes, axis=0)
    placed = np.concatenate([-0.5 * ends, np.take_along_axis(codes, order, axis=0), (sizes - 0.5) * ends])
    gaps = np.diff(placed, axis=0)
    wide = np.maximum(gaps[:-1], gaps[1:])
    if trials > 1:  # the ends of a domain are no neighbours
        wide[0], wide[-1] = gaps[1], gaps[-2]
    deviations = np.take_along_axis(wide, np.argsort(order, axis=0), axis=0)
    narrowest = sizes / min(_NARROWEST, 2.0 + trials)
    return np.concatenate([np.clip(deviations, narrowest, sizes), sizes * ends])


def _masses(codes: Array, deviations: Array, sizes: Codes) -> Array:
    """(trials + 1, domains, most codes) the share of each kernel's mass that is at each code; 0 beyond a domain.

    Many kernels are alike: each kind is worked out once.
    """
    centres = np.concatenate([codes, sizes[None] / 2.0 - 0.5])
    kinds, kind = np.unique(centres + sizes * (int(sizes.max()) + 1) + 1j * deviations, return_inverse=True)
    size, centre = np.divmod(kinds.real, int(sizes.max()) + 1)
    edges = np.minimum(np.arange(int(sizes.max()) + 1), size[:, None]) - 0.5
    edges = (edges - centre[:, None]) / kinds.imag[:, None]
    tails = ndtr(-np.abs(edges))  # a difference of tails is accurate where one of the masses below is not
    low, high = tails[:, :-1], tails[:, 1:]
    around = (edges[:, :-1] < 0.0) & (edges[:, 1:] > 0.0)
    mass = np.where(around, 1.0 - low - high, np.abs(high - low))
    shares: Array = (mass / mass.sum(axis=1, keepdims=True))[kind.reshape(codes.shape[0] + 1, -1)]
    return shares
