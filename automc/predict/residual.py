"""What the roofline leaves, in logarithms of the ratio: the mean of a smooth function of each class's shapes and of trees over all classes.

Both only correct: neither goes far beyond what was measured, so that the roofline stands there. Kernels change smoothly with their shapes but
for the edges of blocks and tiles, which are inputs of their own; where they do not, trees err elsewhere than the smooth function, so that the mean
of both errs less than either. A class of few samples has the trees alone. Trees are Geurts et al. 2006, "Extremely randomized trees", by scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from automc.predict.kernels import Ints, Kernels, Layouts
from automc.predict.kriging import Kriging
from automc.predict.roofline import Floats

__all__ = ["Residuals"]

MIN_SAMPLES = 20
_TREES = 100
_LIMIT = float(np.log(4.0))


@dataclass(frozen=True)
class Residuals:
    """A function per (precision, kind) that has enough samples, and a forest per precision."""

    smooth: Mapping[tuple[int, int], Kriging]
    forests: Mapping[int, Any]
    layouts: Layouts

    @classmethod
    def fit(
        cls, kernels: Kernels, ratios: Floats, layouts: Layouts, like: Residuals | None = None, seed: int = 0
    ) -> Residuals:
        """`ratios` are measured over roofline times, (count,); how smooth a class is may be taken from `like`, of more kernels."""
        targets = np.clip(np.log(ratios), -_LIMIT, _LIMIT)
        smooth, forests = {}, {}
        for key, rows in _classes(kernels):
            if rows.sum() >= MIN_SAMPLES:
                before = like.smooth.get(key) if like else None
                smooth[key] = Kriging.fit(_describe(Kernels(kernels.rows[rows]), layouts), targets[rows], before, seed)
        for int8 in {key[0] for key, _ in _classes(kernels)}:
            rows = kernels["int8"] == int8
            if rows.sum() >= MIN_SAMPLES:
                forest = ExtraTreesRegressor(_TREES, max_features=0.7, random_state=seed)
                inputs = _with_work(Kernels(kernels.rows[rows]), layouts)
                forests[int8] = forest.fit(inputs, targets[rows])
        return cls(smooth, forests, layouts)

    def factors(self, kernels: Kernels) -> Floats:
        """(count,) what to multiply roofline times by."""
        logs = np.zeros(len(kernels))
        for key, rows in _classes(kernels):
            each = Kernels(kernels.rows[rows])
            found = [self.smooth[key].predict(_describe(each, self.layouts))] if key in self.smooth else []
            if key[0] in self.forests:
                found.append(_mean(self.forests[key[0]], _with_work(each, self.layouts)))
            logs[rows] = np.mean(found, axis=0) if found else 0.0
        return np.exp(np.clip(logs, -_LIMIT, _LIMIT))


def _classes(kernels: Kernels) -> list[tuple[tuple[int, int], Any]]:
    """((int8, kind), (count,) which kernels) of each class that is there."""
    keys: Ints = np.stack([kernels["int8"], kernels["kind"]], axis=1)
    return [((int(key[0]), int(key[1])), (keys == key).all(axis=1)) for key in np.unique(keys, axis=0)]


def _with_work(kernels: Kernels, layouts: Layouts) -> Floats:
    """(count, 25) the kind, shapes as `_describe` has them, and in logarithms what trees cannot multiply: operations, weights, blocks, outputs."""
    block, here, there = max(layouts.block, 1), kernels["in_positions"], kernels["out_positions"]
    cin, cout = kernels["cin"], kernels["cout"]
    products = (kernels.macs, kernels.weights, -(-cout // block) * there, -(-cin // block) * here, cout * there)
    logs = [np.log(np.maximum(product, 1)) for product in products]
    return np.column_stack([kernels["kind"], _describe(kernels, layouts), *logs])


def _mean(forest: Any, rows: Floats) -> Floats:
    """(count,) what `forest.predict` says, tree by tree: its own way sets up a parallel job for each call, which takes 40 ms."""
    features = np.ascontiguousarray(rows, dtype=np.float32)
    mean: Floats = np.mean([tree.tree_.predict(features)[:, 0] for tree in forest.estimators_], axis=0)
    return mean


def _describe(kernels: Kernels, layouts: Layouts) -> Floats:
    """(count, 19) shapes in logarithms, how full the last block of channels and the last tiles of positions are, and what is special."""
    block = max(layouts.block, 1)
    cin, cout = kernels["cin"], kernels["cout"]
    side = np.sqrt(kernels["out_positions"])
    blocks = -(-cout // block)
    names = ("in_positions", "out_positions", "window", "height", "stride", "groups")
    sizes = (cin, cout, *(kernels[name] for name in names))
    edges = (cin % block, -cout % block, side % 2, side % 4, side % 8, blocks % 2, blocks % 4, blocks % 8)
    rest = (layouts.modes(kernels), kernels["cold"], kernels["fused"])
    return np.column_stack([*(np.log(np.maximum(size, 1)) for size in sizes), *edges, *rest]).astype(np.float64)
