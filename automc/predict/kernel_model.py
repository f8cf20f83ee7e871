"""Seconds of a kernel: as measured where exactly this kernel was, else roofline times residual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automc.predict.kernels import Ints, Kernels, Layouts
from automc.predict.residual import Residuals
from automc.predict.roofline import Floats, Rooflines

__all__ = ["KernelModel", "distinct"]


@dataclass(frozen=True)
class KernelModel:
    """Predicts kernels; `exact` are the measured ones."""

    rooflines: Rooflines
    residuals: Residuals
    exact: Mapping[tuple[int, ...], float]

    @classmethod
    def fit(
        cls, kernels: Kernels, times_s: Floats, layouts: Layouts, batch_size: int, like: KernelModel | None = None
    ) -> KernelModel:
        """Learn from measured kernels, (count,) seconds each; repeated ones count by their median.

        `like` is a model of more kernels, which spares choosing again how smooth the residuals are.

        The same kernel takes longer behind some neighbours than behind others; what it takes more or less belongs to the neighbourhood.
        """
        known, medians = distinct(kernels, times_s)
        rooflines = Rooflines.fit(known, medians, layouts, batch_size)
        residuals = Residuals.fit(known, medians / rooflines.predict(known), layouts, like.residuals if like else None)
        return cls(
            rooflines, residuals, {tuple(row): float(t) for row, t in zip(known.rows.tolist(), medians, strict=True)}
        )

    def predict(self, kernels: Kernels, *, use_exact: bool = True) -> Floats:
        """(count,) seconds of each kernel for one batch."""
        times = self.rooflines.predict(kernels) * self.residuals.factors(kernels)
        if use_exact:
            for index, row in enumerate(kernels.rows.tolist()):
                times[index] = self.exact.get(tuple(row), times[index])
        return times

    def learned(self, kernels: Kernels) -> NDArray[np.bool_]:
        """(count,) whether each kernel was measured, or is of a class that was."""
        return self.is_exact(kernels) | self.rooflines.learned(kernels)

    def is_exact(self, kernels: Kernels) -> NDArray[np.bool_]:
        """(count,) whether each kernel was measured."""
        return np.array([tuple(row) in self.exact for row in kernels.rows.tolist()], dtype=np.bool_)


def distinct(kernels: Kernels, times_s: Floats) -> tuple[Kernels, Floats]:
    """Each different kernel once, with the median of its times."""
    rows, inverse = np.unique(kernels.rows, axis=0, return_inverse=True)
    where: Ints = inverse.reshape(-1)
    order = np.argsort(where, kind="stable")
    groups = np.split(times_s[order], np.cumsum(np.bincount(where, minlength=len(rows)))[:-1])
    return Kernels(rows), np.array([np.median(group) for group in groups])
