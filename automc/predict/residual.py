"""What the roofline leaves: scikit-learn's randomised trees on log ratios, for classes with enough samples.

Trees (Geurts et al. 2006, "Extremely randomized trees") cannot extrapolate, so they only correct: outside what was measured the roofline stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from automc.predict.kernels import Kernels, Layouts
from automc.predict.roofline import Floats

__all__ = ["Residuals"]

MIN_SAMPLES = 20
_LIMIT = float(np.log(2.0))


@dataclass(frozen=True)
class Residuals:
    """One forest per precision that has enough samples."""

    forests: Mapping[int, Any]
    layouts: Layouts

    @classmethod
    def fit(cls, kernels: Kernels, ratios: Floats, layouts: Layouts, seed: int = 0) -> Residuals:
        """`ratios` are measured over roofline times, (count,)."""
        forests = {}
        for int8 in (0, 1):
            rows = kernels["int8"] == int8
            if rows.sum() >= MIN_SAMPLES:
                forest = ExtraTreesRegressor(n_estimators=60, min_samples_leaf=2, max_features=0.7, random_state=seed)
                targets = np.clip(np.log(ratios[rows]), -_LIMIT, _LIMIT)
                forests[int8] = forest.fit(_describe(Kernels(kernels.rows[rows]), layouts), targets)
        return cls(forests, layouts)

    def factors(self, kernels: Kernels) -> Floats:
        """(count,) what to multiply roofline times by."""
        factors = np.ones(len(kernels))
        for int8, forest in self.forests.items():
            rows = kernels["int8"] == int8
            if rows.any():
                factors[rows] = np.exp(_mean(forest, _describe(Kernels(kernels.rows[rows]), self.layouts)))
        return factors


def _mean(forest: Any, rows: Floats) -> Floats:
    """(count,) what `forest.predict` says, tree by tree: its own way sets up a parallel job for each call, which takes 40 ms."""
    features = np.ascontiguousarray(rows, dtype=np.float32)
    mean: Floats = np.mean([tree.tree_.predict(features)[:, 0] for tree in forest.estimators_], axis=0)
    return mean


def _describe(kernels: Kernels, layouts: Layouts) -> Floats:
    """(count, 12) shapes, and how far channels are from full blocks."""
    block = max(layouts.block, 1)
    cin, cout = kernels["cin"], kernels["cout"]
    columns = (
        kernels["kind"], layouts.modes(kernels), kernels["window"], kernels["stride"], cin, cout,
        cin % block, -cout % block, kernels["out_positions"], cin * kernels["window"], kernels.macs, kernels["cold"],
    )  # fmt: skip
    return np.stack(columns, axis=1).astype(np.float64)
