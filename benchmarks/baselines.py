"""What kernel latencies are predicted by elsewhere: estimators (known kernels, their times, asked kernels) -> times of those asked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.neighbors import KNeighborsRegressor

from automc.predict.kernels import Kernels
from automc.predict.roofline import Floats

__all__ = ["ESTIMATORS"]

FEWEST = 20
"""Kernels that make an estimator of their own worth while."""
Estimator = Callable[[Kernels, Floats, Kernels], Floats]


def forest(known: Kernels, times: Floats, asked: Kernels) -> Floats:
    """nn-Meter (Zhang et al. 2021, MobiSys): a random forest per kind of kernel on its shapes, FLOPs and parameters."""
    model = RandomForestRegressor(n_estimators=320, max_depth=70, max_features=6, random_state=10)
    return np.asarray(model.fit(_nn_meter(known), times).predict(_nn_meter(asked)), dtype=np.float64)


def operations(known: Kernels, times: Floats, asked: Kernels) -> Floats:
    """A line on FLOPs, in relative error."""
    design = np.stack([np.ones(len(known)), known.macs], axis=1) / times[:, None]
    line = np.linalg.lstsq(design, np.ones(len(known)), rcond=None)[0]
    return np.maximum(line[0] + line[1] * asked.macs, times.min())


def lookup(known: Kernels, times: Floats, asked: Kernels) -> Floats:
    """A table of what was measured, interpolated between the nearest entries in logarithms of the shapes."""
    table = KNeighborsRegressor(min(4, len(known)), weights="distance").fit(_shapes(known), np.log(times))
    return np.asarray(np.exp(table.predict(_shapes(asked))), dtype=np.float64)


def _nn_meter(kernels: Kernels) -> Floats:
    side = np.sqrt(kernels["in_positions"])
    columns = [side, kernels["cin"], kernels["cout"], np.sqrt(kernels["window"]), kernels["stride"]]
    return np.stack([*columns, 2e-6 * kernels.macs, 1e-6 * kernels.weights], axis=1)


def _shapes(kernels: Kernels) -> Floats:
    names = ("in_positions", "out_positions", "cin", "cout", "window")
    return np.log(np.stack([np.maximum(kernels[name], 1) for name in names], axis=1))


def _per_kind(estimator: Estimator) -> Estimator:
    """One estimator for each kind and precision, and for what is fused, as far as there are kernels of it."""

    def estimate(known: Kernels, times: Floats, asked: Kernels) -> Floats:
        guess = np.full(len(asked), float(np.median(times)))
        for of in (("kind", "int8"), ("kind", "int8", "fused")):
            here, there = (np.stack([each[name] for name in of], axis=1) for each in (known, asked))
            for kind in np.unique(here, axis=0):
                seen, unseen = (here == kind).all(axis=1), (there == kind).all(axis=1)
                if unseen.any() and (len(of) == 2 or seen.sum() >= FEWEST):
                    guess[unseen] = estimator(Kernels(known.rows[seen]), times[seen], Kernels(asked.rows[unseen]))
        return guess

    return estimate


ESTIMATORS: dict[str, Estimator] = {
    "nn-Meter's forest": _per_kind(forest),
    "line on FLOPs": _per_kind(operations),
    "lookup table": _per_kind(lookup),
}
