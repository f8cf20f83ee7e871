"""What a walk through the graph adds up: every feature by itself, to learn from, or what the features cost, to price with.

Both are linear in the counts and elements of `ledger.Ledger.names` and in the columns of the layer tables, so prices need no features:
each layer's table is folded into a few columns once, and operators are billed all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from automc.predict.kernels import Ints
from automc.predict.layers import TRANSITIONS, WIDTH, LayerTable
from automc.predict.roofline import Floats

__all__ = ["Bill", "Columns", "Prices", "Tally", "Trail"]

Columns: TypeAlias = NDArray[np.int16]
_FROM_LAYERS = slice(0, 2 * len(TRANSITIONS))
"""Features that happen inside layers too: the last columns of a layer table."""


@dataclass(frozen=True)
class Trail:
    """What a walk met, for (count,) policies at once.

    Attributes:
        run: of each layer (count,) rows of its table.
        columns: (count,) the column of each operator met; -1 where a policy has none there.
        elements: (count,) what those operators work on.
    """

    count: int
    tables: Sequence[LayerTable]
    run: Sequence[Ints]
    columns: Sequence[Columns]
    elements: Sequence[Floats]


class Tally:
    """Sums by feature.

    Attributes:
        layers: (count, WIDTH) of the layer tables.
        glue: (features, count), each feature's count followed by its elements.
        times_s: (layers, count).
    """

    def __init__(self, trail: Trail, features: int) -> None:
        self.layers: Floats = np.zeros((trail.count, WIDTH))
        self.glue: Floats = np.zeros((features, trail.count))
        self.times_s: Floats = np.zeros((len(trail.tables), trail.count))
        for index, (table, run) in enumerate(zip(trail.tables, trail.run, strict=True)):
            values = table.values[run]
            self.layers += values
            self.glue[_FROM_LAYERS] += values[:, WIDTH - 2 * len(TRANSITIONS) :].T
            self.times_s[index] = values[:, 0]
        for columns, elements in zip(trail.columns, trail.elements, strict=True):
            for column in np.unique(columns[columns >= 0]).tolist():
                rows = columns == column
                self.glue[column] += rows
                self.glue[column + 1] += rows * elements


@dataclass(frozen=True, eq=False)
class Prices:
    """What each part costs.

    Attributes:
        table: (WIDTH, 4) from a layer table's columns to those of `Bill.sums`.
        feature_s, feature_bytes: (features + 1,) per feature of the glue; the last is 0.
        constant_s, constant_bytes: of every model.
    """

    table: Floats
    feature_s: Floats
    feature_bytes: Floats
    constant_s: float
    constant_bytes: float

    @classmethod
    def of(cls, layer_s: Floats, layer_bytes: Floats, feature_s: Floats, feature_bytes: Floats, constants: tuple[float, float]) -> Prices:  # fmt: skip
        """`layer_s` and `layer_bytes` are (WIDTH,) prices of the layer tables' columns, without what features cost besides."""
        table = np.zeros((WIDTH, 4))
        inside = slice(WIDTH - 2 * len(TRANSITIONS), WIDTH)
        table[:, 0], table[:, 1] = layer_s, layer_bytes
        table[inside, 0] += feature_s[_FROM_LAYERS]
        table[inside, 1] += feature_bytes[_FROM_LAYERS]
        table[2, 2] = table[0, 3] = 1.0
        return cls(table, np.append(feature_s, 0.0), np.append(feature_bytes, 0.0), *constants)

    @cached_property
    def element_s(self) -> Floats:
        """(features + 1,) per element of an operator whose count is that column; the last is 0."""
        return np.append(self.feature_s[1:], 0.0)


class Bill:
    """Sums of prices.

    Attributes:
        sums: (count, 4) seconds, bytes, macs, seconds of layer kernels.
        times_s: (count, layers).
    """

    def __init__(self, trail: Trail, prices: Prices) -> None:
        self.sums: Floats = np.zeros((trail.count, 4))
        self.times_s: Floats = np.zeros((trail.count, len(trail.tables)))
        self.sums[:, 0], self.sums[:, 1] = prices.constant_s, prices.constant_bytes
        for index, (table, run) in enumerate(zip(trail.tables, trail.run, strict=True)):
            values = np.take(table.folded(prices.table), run, axis=0)
            self.sums += values
            self.times_s[:, index] = values[:, 3]
        if trail.columns:
            columns = np.stack(trail.columns).astype(np.intp)
            seconds = np.stack(trail.elements)
            seconds *= prices.element_s[columns]
            seconds += prices.feature_s[columns]
            self.sums[:, 0] += seconds.sum(axis=0)
            self.sums[:, 1] += prices.feature_bytes[columns].sum(axis=0)

    def rows(self) -> NDArray[np.float64]:
        """(count, 3) seconds, bytes, macs."""
        return self.sums[:, :3]
