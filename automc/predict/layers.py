"""Tables per layer: everything that the choices for one layer decide, computed once per distinct choice and then looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from automc.compression.storage import decoding_nodes, file_bits, file_bytes
from automc.export.sparse import OVERHEAD
from automc.policy import Quantize
from automc.predict.choices import LayerChoices
from automc.predict.kernel_model import KernelModel
from automc.predict.kernels import Ints, Kernels, Layouts
from automc.predict.roofline import Floats

__all__ = ["TRANSITIONS", "WIDTH", "Formats", "LayerTable", "find_rows", "transition"]

TRANSITIONS = ("blocked>plain", "int8>plain", "plain>blocked", "int8>blocked", "plain>int8", "blocked>int8")
"""Conversions of an activation that a runtime inserts where a reader wants another format."""

WIDTH = 6 + 2 * len(TRANSITIONS)
"""Columns of a layer table."""

Formats: TypeAlias = NDArray[np.uint8]

_DIRECT = 1 << 19
"""Up to so many possible keys a table finds rows by index, beyond by bisection."""

_FROM_TO = {(2, 1): 0, (4, 1): 1, (1, 2): 2, (4, 2): 3, (1, 4): 4, (2, 4): 5}


def transition(source: int, target: int) -> int:
    """Index into TRANSITIONS; -1 where source and target are the same format."""
    return _FROM_TO.get((source, target), -1)


@dataclass
class LayerTable:
    """What each distinct choice for a layer implies. Grows as choices are met; lookups are vectorised.

    Columns of `values`: seconds, kernels, macs, weights and biases in bytes, int8 kernels, nodes that decode weights, then count and
    elements of each of TRANSITIONS between the factors of the layer. Columns of `formats`: format read, format written. The row of an even key
    is followed by that of the odd one; `twins` holds per row that of the same choices on integers unasked.
    """

    choices: LayerChoices
    layouts: Layouts
    batch_size: int
    keys: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    values: Floats = field(default_factory=lambda: np.zeros((0, WIDTH)))
    formats: Formats = field(default_factory=lambda: np.zeros((0, 2), dtype=np.uint8))
    twins: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        size = self.choices.key_count
        self._row_of = np.full(size, -1, dtype=np.int32) if size <= _DIRECT else None
        self._fold: tuple[Floats, Floats] | None = None

    def fresh(self, keys: Ints) -> Ints:
        """The different keys among even `keys`, their implied twins, and both when odd, that the table does not hold."""
        if (self.find(keys) >= 0).all():
            return keys[:0]
        warm = np.concatenate([keys, self.choices.implied_key(keys)])
        return np.setdiff1d(np.concatenate([warm, warm + 1]), self.keys)

    def folded(self, weights: Floats) -> Floats:
        """(rows, columns) `values` times (WIDTH, columns) weights, kept until the table grows or the weights are others."""
        if self._fold is None or self._fold[0] is not weights or len(self._fold[1]) != len(self.values):
            self._fold = weights, self.values @ weights
        return self._fold[1]

    def kernels(self, key: int) -> Kernels:
        """The kernels of a key, in order."""
        return self.choices.kernels(key)

    def add(self, keys: Ints, kernels: Sequence[Kernels], times_s: Floats) -> None:
        """Take in fresh keys, their kernels, and (all their kernels,) seconds."""
        values, formats = self._rows(keys, kernels, times_s)
        order = np.argsort(np.concatenate([self.keys, keys]))
        self.keys = np.concatenate([self.keys, keys])[order]
        self.values = np.concatenate([self.values, values])[order]
        self.formats = np.concatenate([self.formats, formats])[order]
        if self._row_of is not None:
            self._row_of[self.keys] = np.arange(len(self.keys))
        self.twins = self.find(self.choices.implied_key(self.keys)).astype(np.int64)

    def find(self, keys: Ints) -> NDArray[np.signedinteger]:
        """(count,) row of each key, -1 for a key that the table does not hold."""
        if self._row_of is not None:
            return self._row_of[keys]
        if not len(self.keys):
            return np.full(len(keys), -1)
        rows = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[rows] == keys, rows, -1)

    def _rows(self, keys: Ints, kernels: Sequence[Kernels], times: Floats) -> tuple[Floats, Formats]:
        ends = np.cumsum([len(k) for k in kernels]).tolist()
        reads, writes = self.layouts.formats(Kernels(np.concatenate([each.rows for each in kernels])))
        values, formats = np.zeros((len(kernels), WIDTH)), np.zeros((len(kernels), 2), dtype=np.uint8)
        for row, (key, each, start, end) in enumerate(zip(keys.tolist(), kernels, [0, *ends], ends, strict=False)):
            stored = self.choices.rounding(key), self.choices.density(key)
            values[row, :6] = self._sums(each, times[start:end], *stored)
            formats[row] = reads[start], writes[end - 1]
            for i in range(len(each) - 1):
                elements = int(each["cout"][i] * each["out_positions"][i]) * self.batch_size
                self._between(values[row], int(writes[start + i]), int(reads[start + i + 1]), elements)
        return values, formats

    def _between(self, row: Floats, source: int, target: int, elements: int) -> None:
        if (kind := transition(source, target)) >= 0:
            row[6 + 2 * kind] += 1
            row[7 + 2 * kind] += elements

    def _sums(self, kernels: Kernels, times: Floats, bits: Quantize | None, density: float) -> tuple[float, ...]:
        biases = int(kernels["cout"][-1]) * 4 if self.choices.spec.bias else 0
        size = _weight_bytes(kernels, bits) - _saved_bytes(kernels, bits, density) + biases
        decoding = 0 if self.choices.spec.kind == "recurrent" else _decoding_nodes(kernels, bits)
        size, decoding = size * self.choices.spec.stored, decoding * self.choices.spec.stored
        integer = float(kernels["int8"].sum())
        return float(times.sum()), float(len(kernels)), float(kernels.macs.sum()), size, integer, float(decoding)


def _weight_bytes(kernels: Kernels, bits: Quantize | None) -> float:
    """Of weights and their scales; integer kernels hold a zero point per output besides."""
    if bits is None:
        return 4.0 * float(kernels.weights.sum())
    outputs = kernels["cout"]
    features = kernels.weights // outputs
    pairs = zip(outputs.tolist(), features.tolist(), strict=True)
    zeros = int(outputs[kernels["int8"] == 1].sum())
    return float(sum(file_bytes(bits, *pair) for pair in pairs)) + zeros


def _decoding_nodes(kernels: Kernels, bits: Quantize | None) -> int:
    """Of all factors: each has codes of its own."""
    if bits is None:
        return 0
    features = kernels.weights // kernels["cout"]
    pairs = zip(features.tolist(), kernels["int8"].tolist(), strict=True)
    return sum(decoding_nodes(bits, count, on_integers=bool(integer)) for count, integer in pairs)


def _saved_bytes(kernels: Kernels, bits: Quantize | None, density: float) -> float:
    """What a file gains by not storing zeros: a bit per weight says which are left. Codes of less than a byte are stored whole."""
    value_bytes = 4.0 if bits is None else file_bits(bits) / 8
    saved = (value_bytes * (1.0 - density) - 1 / 8) * kernels.weights - OVERHEAD
    return float(np.maximum(saved, 0.0).sum()) if value_bytes >= 1 else 0.0


def find_rows(tables: Sequence[LayerTable], model: KernelModel, keys: Ints) -> Ints:
    """(tables, count) rows of (tables, count) keys; those that a table does not hold it takes in."""
    rows = np.empty(keys.shape, dtype=np.int64)
    for table, row, of_layer in zip(tables, rows, keys, strict=True):
        row[:] = table.find(of_layer)
    if (rows < 0).any():
        _learn(tables, model, keys)
        return find_rows(tables, model, keys)
    return rows


def _learn(tables: Sequence[LayerTable], model: KernelModel, keys: Ints) -> None:
    """Take (tables, count) keys in; the kernels of those that a table does not hold are predicted in one go, equal ones once."""
    fresh = [table.fresh(of_layer) for table, of_layer in zip(tables, keys, strict=True)]
    kernels = [[table.kernels(key) for key in new.tolist()] for table, new in zip(tables, fresh, strict=True)]
    rows = [each.rows for of_layer in kernels for each in of_layer]
    if rows:
        unique, where = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
        times = model.predict(Kernels(unique))[where.reshape(-1)]
        ends = np.cumsum([sum(len(each) for each in of_layer) for of_layer in kernels]).tolist()
        for table, new, each, start, end in zip(tables, fresh, kernels, [0, *ends], ends, strict=False):
            if len(new):
                table.add(new, each, times[start:end])
