"""Tables per layer: everything that the choices for one layer decide, computed once per distinct choice and then looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from automc.predict.kernel_model import KernelModel
from automc.predict.kernels import Ints, Kernels, LayerChoices, Layouts, layer_kernels
from automc.predict.roofline import Floats
from automc.space import Codes

__all__ = ["TRANSITIONS", "WIDTH", "LayerTable", "transition"]

TRANSITIONS = ("blocked>plain", "int8>plain", "plain>blocked", "int8>blocked", "plain>int8", "blocked>int8")
"""Conversions of an activation that a runtime inserts where a reader wants another format."""

WIDTH = 5 + 2 * len(TRANSITIONS)
"""Columns of a layer table."""

_FROM_TO = {(2, 1): 0, (4, 1): 1, (1, 2): 2, (4, 2): 3, (1, 4): 4, (2, 4): 5}


def transition(source: int, target: int) -> int:
    """Index into TRANSITIONS; -1 where source and target are the same format."""
    return _FROM_TO.get((source, target), -1)


@dataclass
class LayerTable:
    """What each distinct choice for a layer implies. Grows as choices are met; lookups are vectorised.

    Columns of `values`: seconds, kernels, macs, weights and biases in bytes, int8 kernels, then count and elements of
    each of TRANSITIONS between the factors of the layer. Columns of `formats`: format read, format written, kernels of fp32.
    """

    choices: LayerChoices
    layouts: Layouts
    batch_size: int
    model: KernelModel | None = None
    keys: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    values: Floats = field(default_factory=lambda: np.zeros((0, WIDTH)))
    formats: Ints = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))

    def lookup(self, codes: Codes) -> tuple[Floats, Ints]:
        """((count, WIDTH) values, (count, 2) formats) of each policy."""
        keys = self.choices.keys(codes)
        where = self._find(keys)
        if len(self.keys) == 0 or not np.array_equal(self.keys[where], keys):
            self._learn(np.unique(keys))
            where = self._find(keys)
        return self.values[where], self.formats[where]

    def kernels(self, key: int) -> Kernels:
        """The kernels of a key, in order."""
        return layer_kernels(self.choices.spec, *self.choices.read(key))

    def _find(self, keys: Ints) -> NDArray[np.intp]:
        return np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))

    def _learn(self, keys: Ints) -> None:
        fresh = np.setdiff1d(keys, self.keys)
        kernels = [self.kernels(key) for key in fresh.tolist()]
        values, formats = self._rows(kernels)
        order = np.argsort(np.concatenate([self.keys, fresh]))
        self.keys = np.concatenate([self.keys, fresh])[order]
        self.values = np.concatenate([self.values, values])[order]
        self.formats = np.concatenate([self.formats, formats])[order]

    def _rows(self, kernels: Sequence[Kernels]) -> tuple[Floats, Ints]:
        everything = Kernels(np.concatenate([k.rows for k in kernels]))
        times = np.zeros(len(everything)) if self.model is None else self.model.predict(everything)
        ends = np.cumsum([len(k) for k in kernels])
        values, formats = np.zeros((len(kernels), WIDTH)), np.zeros((len(kernels), 2), dtype=np.int64)
        for row, (each, end) in enumerate(zip(kernels, ends.tolist(), strict=True)):
            values[row, :5] = self._sums(each, times[end - len(each) : end])
            reads, writes = self.layouts.formats(each)
            formats[row] = reads[0], writes[-1]
            for i in range(len(each) - 1):
                elements = int(each["cout"][i] * each["out_positions"][i]) * self.batch_size
                self._between(values[row], int(writes[i]), int(reads[i + 1]), elements)
        return values, formats

    def _between(self, row: Floats, source: int, target: int, elements: int) -> None:
        if (kind := transition(source, target)) >= 0:
            row[5 + 2 * kind] += 1
            row[6 + 2 * kind] += elements

    def _sums(self, kernels: Kernels, times: Floats) -> tuple[float, ...]:
        int8 = kernels["int8"] == 1
        biases = int(kernels["cout"][-1]) * 4 if self.choices.spec.bias else 0
        scales = 5 * int(kernels["cout"][int8].sum())
        size = float(np.where(int8, 1, 4) @ kernels.weights) + biases + scales
        return float(times.sum()), float(len(kernels)), float(kernels.macs.sum()), size, float(int8.sum())
