"""What a walk through the graph adds up: every feature by itself, to learn from, or what the features cost, to price with.

Both are linear in the counts and elements of `flow.Flow.names` and in the columns of the layer tables, so prices need no features:
each layer's table is folded into a few columns once, and operators are billed as they are met.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from automc.predict.kernels import Ints
from automc.predict.layers import FILE_COLUMNS, TRANSITIONS, WIDTH, LayerTable
from automc.predict.roofline import Floats

__all__ = ["Bill", "Prices", "Sink", "Tally"]

_FROM_LAYERS = slice(0, 2 * len(TRANSITIONS))
"""Features that happen inside layers too: the last columns of a layer table."""


class Sink(Protocol):
    """Takes what a walk meets, for (count,) policies at once."""

    def layer(self, index: int, table: LayerTable, run: Ints, file: Ints) -> None:
        """A layer runs as the keys `run` say and is stored as the keys `file` say; `file` is `run` where that is the same."""
        ...

    def operators(self, columns: Ints, elements: Floats) -> None:
        """An operator, or nothing where a policy's column is -1, on so many elements."""
        ...


class Tally:
    """Sums by feature.

    Attributes:
        layers: (count, WIDTH) of the layer tables.
        glue: (features, count), each feature's count followed by its elements.
        times_s: (layers, count).
    """

    def __init__(self, count: int, features: int, layers: int) -> None:
        self.layers: Floats = np.zeros((count, WIDTH))
        self.glue: Floats = np.zeros((features, count))
        self.times_s: Floats = np.zeros((layers, count))

    def layer(self, index: int, table: LayerTable, run: Ints, file: Ints) -> None:
        values = table.lookup(run)[0].copy()
        values[:, FILE_COLUMNS] = table.lookup(file)[0][:, FILE_COLUMNS]
        self.layers += values
        self.glue[_FROM_LAYERS] += values[:, WIDTH - 2 * len(TRANSITIONS) :].T
        self.times_s[index] = values[:, 0]

    def operators(self, columns: Ints, elements: Floats) -> None:
        for column in np.unique(columns[columns >= 0]).tolist():
            rows = columns == column
            self.glue[column] += rows
            self.glue[column + 1] += rows * elements


@dataclass(frozen=True, eq=False)
class Prices:
    """What each part costs.

    Attributes:
        table: (WIDTH, 5) from a layer table's columns to those of `Bill.sums`.
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
        table = np.zeros((WIDTH, 5))
        inside = slice(WIDTH - 2 * len(TRANSITIONS), WIDTH)
        table[:, 0] = layer_s
        table[inside, 0] += feature_s[_FROM_LAYERS]
        table[inside, 1] = feature_bytes[_FROM_LAYERS]
        table[1, 1] = layer_bytes[1]
        table[FILE_COLUMNS, 2] = layer_bytes[FILE_COLUMNS]
        table[2, 3] = table[0, 4] = 1.0
        return cls(table, np.append(feature_s, 0.0), np.append(feature_bytes, 0.0), *constants)


class Bill:
    """Sums of prices.

    Attributes:
        sums: (count, 5) seconds, bytes by how it runs, bytes by what is stored, macs, seconds of layer kernels.
        times_s: (count, layers).
    """

    def __init__(self, prices: Prices, count: int, layers: int) -> None:
        self.prices = prices
        self.sums: Floats = np.zeros((count, 5))
        self.times_s: Floats = np.zeros((count, layers))
        self.sums[:, 0], self.sums[:, 1] = prices.constant_s, prices.constant_bytes

    def layer(self, index: int, table: LayerTable, run: Ints, file: Ints) -> None:
        folded = table.folded(self.prices.table)
        values = np.take(folded, table.find(run), axis=0)
        if run is not file:
            values[:, 2] = folded[table.find(file), 2]
        self.sums += values
        self.times_s[:, index] = values[:, 4]

    def operators(self, columns: Ints, elements: Floats) -> None:
        seconds, size = self.prices.feature_s, self.prices.feature_bytes
        self.sums[:, 0] += seconds[columns] + np.append(seconds[1:], 0.0)[columns] * elements
        self.sums[:, 1] += size[columns]

    def rows(self) -> NDArray[np.float64]:
        """(count, 3) seconds, bytes, macs."""
        return np.stack([self.sums[:, 0], self.sums[:, 1] + self.sums[:, 2], self.sums[:, 3]], axis=1)
