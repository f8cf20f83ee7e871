"""Kriging: a smooth function between measured points, with a length per input and a share of noise, by scikit-learn.

A Gaussian process with a Matern 3/2 covariance whose parameters maximise the marginal likelihood of a part of the points (Rasmussen and
Williams 2006, "Gaussian Processes for Machine Learning", equations 2.25, 4.17 and 5.8). Far from what was measured it returns to the mean.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from automc.predict.roofline import Floats

__all__ = ["Kriging"]

_MOST = 250
"""Points by which the parameters are chosen; the function goes through all of them."""
_STEPS = 40


@dataclass(frozen=True)
class Kriging:
    """The fitted function.

    Attributes:
        center, units: (inputs,) what inputs are shifted and multiplied by.
        process: the Gaussian process of the values less `mean`, in units of `spread`.
    """

    center: Floats
    units: Floats
    mean: float
    spread: float
    process: Any

    @classmethod
    def fit(cls, inputs: Floats, values: Floats, like: Kriging | None = None, seed: int = 0) -> Kriging:
        """From (count, inputs) points and their (count,) values; with the parameters of `like` where that is given."""
        center, deviation = inputs.mean(0), inputs.std(0)
        units = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-9)
        mean, spread = float(values.mean()), float(values.std()) + 1e-9
        if like is not None:
            center, units, spread = like.center, like.units, like.spread
        points, targets = (inputs - center) * units, (values - mean) / spread
        chosen = np.random.default_rng(seed).permutation(len(points))[:_MOST]
        kernel = _parameters(points[chosen], targets[chosen]) if like is None else like.process.kernel_
        process = GaussianProcessRegressor(kernel, optimizer=None).fit(points, targets)
        return cls(center, units, mean, spread, process)

    def predict(self, inputs: Floats) -> Floats:
        """(count,) values at (count, inputs) points."""
        found = self.process.predict((inputs - self.center) * self.units)
        return np.asarray(found * self.spread + self.mean, dtype=np.float64)


def _parameters(points: Floats, targets: Floats) -> Any:
    lengths = np.full(points.shape[1], 3.0)
    kernel = ConstantKernel(1.0) * Matern(lengths, (0.3, 300.0), nu=1.5) + WhiteKernel(0.05, (1e-3, 3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an input that does not matter has a length at its bound
        return GaussianProcessRegressor(kernel, optimizer=_climb, random_state=0).fit(points, targets).kernel_


def _climb(objective: Any, start: Any, bounds: Any) -> tuple[Floats, float]:
    """A few steps of L-BFGS: the last digits of the likelihood are worth nothing."""
    found = minimize(objective, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": _STEPS})
    return found.x, float(found.fun)
