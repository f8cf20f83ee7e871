"""The shapes of the factors that replace a layer: what is built, priced and counted follows from them alone.

svd: k x k (or linear) into `rank` channels, then 1 x 1. spatial: k x 1, then 1 x k. tucker: 1 x 1, k x k, 1 x 1.
cp: 1 x 1, depthwise k x 1, depthwise 1 x k, 1 x 1. tt: 1 x 1, k x 1, 1 x k, 1 x 1.
Linear layers and 1 x 1 convolutions are matrices, for which every method is the SVD.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from automc.graph import LayerSpec
from automc.policy import LowRank

__all__ = ["Factor", "factored_macs", "factor_positions", "factors_of", "factors_of_layer"]


@dataclass(frozen=True)
class Factor:
    """One factor: a linear map of channels, with the layer's kernel along some axes and 1 along the others.

    Attributes:
        rows, columns: whether it has the layer's kernel height (width), stride, padding and dilation.
        depthwise: each channel by itself; `inputs` and `outputs` are equal.
    """

    inputs: int
    outputs: int
    rows: bool = False
    columns: bool = False
    depthwise: bool = False

    def along(self, pair: tuple[int, int]) -> tuple[int, int]:
        """A (height, width) pair of the layer, its kernel or stride, with 1 along the axes that this factor leaves alone."""
        return (pair[0] if self.rows else 1, pair[1] if self.columns else 1)

    def weights(self, kernel: tuple[int, int]) -> int:
        """Number of weights, given the layer's kernel."""
        return self.outputs * (1 if self.depthwise else self.inputs) * prod(self.along(kernel))


def factors_of(spec: LowRank, inputs: int, outputs: int, kernel: tuple[int, int]) -> tuple[Factor, ...]:
    """The factors of a layer with those channels, in order. Ranks beyond what the shape allows are capped, but for cp, which has no such bound."""
    rank, method, (height, width) = spec.rank, spec.method, kernel
    if height * width == 1 or method == "svd":
        inner = min(rank, outputs, inputs * height * width)
        return Factor(inputs, inner, rows=True, columns=True), Factor(inner, outputs)
    if method == "spatial":
        inner = min(rank, inputs * height, outputs * width)
        return Factor(inputs, inner, rows=True), Factor(inner, outputs, columns=True)
    if method == "tucker":
        first, last = min(rank, inputs), min(rank, outputs)
        first, last = min(first, last * height * width), min(last, first * height * width)
        return Factor(inputs, first), Factor(first, last, rows=True, columns=True), Factor(last, outputs)
    if method == "cp":
        rows = Factor(rank, rank, rows=True, depthwise=True)
        columns = Factor(rank, rank, columns=True, depthwise=True)
        return Factor(inputs, rank), rows, columns, Factor(rank, outputs)
    first, middle, last = _train_ranks(rank, inputs, outputs, kernel)
    between = Factor(first, middle, rows=True), Factor(middle, last, columns=True)
    return Factor(inputs, first), *between, Factor(last, outputs)


def factors_of_layer(layer: LayerSpec, spec: LowRank) -> tuple[Factor, ...]:
    """The factors of a layer at its dense width; of a recurrent one those of its input weights, the second inside it."""
    inputs = layer.features if layer.kind == "recurrent" else layer.in_channels
    return factors_of(spec, inputs, layer.out_channels, layer.kernel)


def factor_positions(layer: LayerSpec, factors: tuple[Factor, ...]) -> list[tuple[int, int]]:
    """Per factor the positions that it reads and those that it writes; a k x 1 factor leaves the width as it is."""
    if layer.kind == "linear":
        return [(layer.positions, layer.positions)] * len(factors)
    sides, found = [layer.in_shape[1], layer.in_shape[2]], []
    for factor in factors:
        before = prod(sides)
        sides = [layer.out_shape[1] if factor.rows else sides[0], layer.out_shape[2] if factor.columns else sides[1]]
        found.append((before, prod(sides)))
    return found


def factored_macs(layer: LayerSpec, spec: LowRank) -> int:
    """Multiply-accumulates per sample of the factors that replace `layer` at its dense width."""
    factors = factors_of_layer(layer, spec)
    if layer.kind == "recurrent":
        state = (layer.in_channels - layer.features) * layer.out_channels
        return layer.positions * (state + sum(factor.weights(layer.kernel) for factor in factors))
    positions = factor_positions(layer, factors)
    return sum(written * factor.weights(layer.kernel) for factor, (_, written) in zip(factors, positions, strict=True))


def _train_ranks(rank: int, inputs: int, outputs: int, kernel: tuple[int, int]) -> tuple[int, int, int]:
    """None exceeds what its neighbours can feed or use."""
    first, last = min(rank, inputs), min(rank, outputs)
    middle = min(rank, first * kernel[0], last * kernel[1])
    return min(first, middle * kernel[0]), middle, min(last, middle * kernel[1])
