"""A padded roofline per kernel class: time = sum of non-negative coefficients times work, fitted in relative error.

The features are those that bound a kernel from below (Williams et al. 2009, "Roofline"): multiply-accumulates and bytes, counted with the padding
that blocked kernels compute, so that the cliffs at block boundaries are in the features, not left to be learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automc.predict.kernels import KINDS, Ints, Kernels, Layouts
from automc.predict.nonnegative import nonnegative

__all__ = ["FEATURES", "Floats", "Rooflines", "relative_nnls"]

Floats = NDArray[np.float64]
FEATURES = (
    "constant", "padded_macs", "macs", "in_bytes", "out_bytes", "weight_bytes", "patch_bytes", "outputs", "gathers",
    "cold_bytes", "cold_gathers", "fused_outputs",
)  # fmt: skip
_GROUPED = [KINDS.index(kind) for kind in ("grouped", "conv_nd", "transposed")]
_PASS = 4
"""Blocks of output channels that a kernel computes while it reads its input once (MLAS)."""
MIN_SAMPLES = 6
"""Distinct kernels that a class needs for coefficients of its own; with fewer it shares those of a wider class."""


@dataclass(frozen=True)
class Rooflines:
    """Coefficients (seconds per unit of each feature) per class, from the narrowest class to all kernels."""

    coefficients: Mapping[tuple[int, ...], Floats]
    layouts: Layouts
    batch_size: int

    @classmethod
    def fit(cls, kernels: Kernels, times_s: Floats, layouts: Layouts, batch_size: int) -> Rooflines:
        """Fit every class that has enough distinct kernels, and all their wider classes."""
        design = features(kernels, layouts, batch_size)
        levels = classes(kernels, layouts)
        coefficients: dict[tuple[int, ...], Floats] = {}
        for level in range(levels.shape[1] + 1):
            prefixes = levels[:, :level]
            for prefix in np.unique(prefixes, axis=0):
                rows = (prefixes == prefix).all(axis=1)
                if rows.sum() >= MIN_SAMPLES or level == 0:
                    coefficients[tuple(prefix.tolist())] = relative_nnls(design[rows], times_s[rows])
        return cls(coefficients, layouts, batch_size)

    def predict(self, kernels: Kernels) -> Floats:
        """(count,) seconds of each kernel for one batch."""
        design = features(kernels, self.layouts, self.batch_size)
        levels = classes(kernels, self.layouts)
        times = np.zeros(len(kernels))
        for key in np.unique(levels, axis=0):
            rows = (levels == key).all(axis=1)
            times[rows] = design[rows] @ self._nearest(tuple(key.tolist()))
        return np.maximum(times, 1e-9)

    def learned(self, kernels: Kernels) -> NDArray[np.bool_]:
        """(count,) whether the kernel's kind and precision have coefficients of their own."""
        keys = classes(kernels, self.layouts)[:, :2]
        return np.array([tuple(key) in self.coefficients for key in keys.tolist()], dtype=np.bool_)

    def _nearest(self, key: tuple[int, ...]) -> Floats:
        return next(self.coefficients[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.coefficients)


def classes(kernels: Kernels, layouts: Layouts) -> Ints:
    """(count, 3) precision, kind, layout mode: from wide to narrow."""
    return np.stack([kernels["int8"], kernels["kind"], layouts.modes(kernels)], axis=1)


def features(kernels: Kernels, layouts: Layouts, batch_size: int) -> Floats:
    """(count, features) work of each kernel for a batch, in the order of FEATURES."""
    block = max(layouts.block, 1)
    mode, int8 = layouts.modes(kernels), kernels["int8"] == 1
    cin, cout, window = kernels["cin"], kernels["cout"], kernels["window"]
    here, there = batch_size * kernels["in_positions"], batch_size * kernels["out_positions"]
    wide_in = np.where((mode == 2) & ~int8, _up(cin, block), cin)
    wide_out = _up(cout, block)
    depth = (
        np.where(kernels["kind"] == KINDS.index("depthwise"), 1, wide_in // np.maximum(_groups(kernels), 1)) * window
    )
    size = np.where(int8, 1, 4)
    stored = np.where(mode >= 1, wide_out, cout)
    columns = (
        np.ones(len(kernels)),
        batch_size * kernels.turns * _up(depth, 4) * wide_out,
        batch_size * kernels.macs,
        size * here * wide_in,
        size * there * stored,
        size * kernels.weights,
        size * there * wide_in * window * -(-wide_out // (_PASS * block)),
        there * wide_out,
        there * window,
        kernels["cold"] * size * (here * cin + there * cout),
        kernels["cold"] * there * window,
        kernels["fused"] * there * cout,
    )
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def relative_nnls(design: Floats, target: Floats, ridge: float = 1e-3) -> Floats:
    """(features,) non-negative x that minimises sum((design @ x / target - 1)^2), with a little ridge on scaled features."""
    scaled = design / target[:, None]
    norms = np.maximum(np.linalg.norm(scaled, axis=0), 1e-300)
    rows = np.vstack([scaled / norms, ridge * np.eye(design.shape[1])])
    return nonnegative(rows, np.concatenate([np.ones(len(target)), np.zeros(design.shape[1])])) / norms


def _groups(kernels: Kernels) -> Ints:
    return np.where(np.isin(kernels["kind"], _GROUPED), kernels["groups"], 1)


def _up(values: Ints, block: int) -> Ints:
    return -(-values // block) * block
