"""What stands between layers: activations, additions, pools, and the conversions between fp32, channel blocks and int8.

Each activation is followed through the dense graph in the formats that it exists in; where a reader wants another, a conversion of
its elements is counted. Which conversion costs what, and which operators the runtime fuses away, is learned: the
time of each kind of operator of the runtime, summed over a model, is a non-negative combination of the counts and elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from automc.graph import LayerGraph
from automc.predict.kernel_model import KernelModel
from automc.predict.kernels import BLOCKED, INT8, PLAIN, Ints, count, kept
from automc.predict.layers import TRANSITIONS, WIDTH, LayerTable, look_up, transition
from automc.predict.roofline import Floats
from automc.predict.structure import Step, Structure
from automc.space import Codes, SearchSpace

__all__ = ["Flow", "Glue"]

_FORMATS = (PLAIN, BLOCKED, INT8)
_UNARY = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Gelu", "Elu", "Erf", "Exp"}
)
_KEEPS_BLOCKS = frozenset({*_UNARY, "Add", "Mul", "Sum", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"})
_KEEPS_INT8 = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape", "Resize",
        "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that stay integer when all that they read was made integer; the exporter's rule, not the runtime's."""


@dataclass(frozen=True)
class Counted:
    """Sums over the graph for each policy: `layers` (count, layer table width), `glue` (count, features), `times` (count, layers)."""

    layers: Floats
    glue: Floats
    times_s: Floats


class Flow:
    """Follows formats through the dense graph, for many policies at once."""

    def __init__(
        self,
        structure: Structure,
        graph: LayerGraph,
        space: SearchSpace,
        tables: Sequence[LayerTable],
        model: KernelModel,
    ) -> None:
        self.structure = structure
        self.tables = tables
        self.model = model
        ops = sorted({step.op for step in structure.steps if step.layer < 0})
        self.names = tuple(
            [f"{kind}:{what}" for kind in TRANSITIONS for what in ("count", "elements")]
            + [
                f"{op}:{fmt}:{what}"
                for op in ops
                for fmt in ("plain", "blocked", "int8")
                for what in ("count", "elements")
            ]
        )
        self.count_columns = [i for i, name in enumerate(self.names) if name.endswith(":count")]
        self._op_column = {op: 2 * len(TRANSITIONS) + 6 * i for i, op in enumerate(ops)}
        self._channels = [
            None if t.channels is None else (t.channels.fixed, kept(t.channels.parts, graph, space))
            for t in structure.tensors
        ]

    def count(self, codes: Codes) -> Counted:
        """What the policies add up to."""
        found = look_up(self.tables, self.model, codes)
        state = _State(len(codes), len(self.structure.tensors), len(self.names), found)
        for index in range(self.structure.inputs):
            state.make(index, np.full(len(codes), PLAIN, dtype=np.uint8))
        for step in self.structure.steps:
            if step.layer >= 0:
                self._layer(state, step, codes)
            else:
                self._operator(state, step, codes)
        return Counted(state.layers, state.glue, state.times)

    def _layer(self, state: _State, step: Step, codes: Codes) -> None:
        values, formats = state.tables[step.layer]
        state.convert(step.inputs[0], formats[:, 0].astype(np.uint8), self._elements(step.inputs[0], codes))
        state.layers += values
        state.glue[:, : 2 * len(TRANSITIONS)] += values[:, WIDTH - 2 * len(TRANSITIONS) :]
        state.times[:, step.layer] = values[:, 0]
        state.make(step.output, formats[:, 1].astype(np.uint8))

    def _operator(self, state: _State, step: Step, codes: Codes) -> None:
        common, made = np.full((2, len(codes)), PLAIN | BLOCKED | INT8, dtype=np.uint8)
        for tensor in step.inputs:
            common &= state.have[tensor]
            made &= state.made[tensor]
        wanted = np.full(len(codes), PLAIN, dtype=np.uint8)
        if step.op in _KEEPS_BLOCKS:
            wanted[common & BLOCKED > 0] = BLOCKED
        if step.op in _KEEPS_INT8:
            wanted[made == INT8] = INT8
        largest: Floats = np.zeros(len(codes))
        for tensor in step.inputs:
            elements = self._elements(tensor, codes)
            state.convert(tensor, wanted, elements)
            largest = np.maximum(largest, elements)
        self._add(state, step, wanted, np.maximum(largest, self._elements(step.output, codes)))
        state.make(step.output, wanted)

    def _add(self, state: _State, step: Step, formats: NDArray[np.uint8], elements: Floats) -> None:
        for position, fmt in enumerate(_FORMATS):
            rows = formats == fmt
            column = self._op_column[step.op] + 2 * position
            state.glue[:, column] += rows
            state.glue[:, column + 1] += rows * elements

    def _elements(self, tensor: int, codes: Codes) -> Floats:
        info, channels = self.structure.tensors[tensor], self._channels[tensor]
        if channels is None:
            return np.full(len(codes), float(info.elements))
        return np.asarray(count(channels, codes) * (info.elements / max(info.width, 1)), dtype=np.float64)


class _State:
    """Formats of every activation, and the sums so far."""

    def __init__(self, rows: int, tensors: int, features: int, tables: Sequence[tuple[Floats, Ints]]) -> None:
        self.tables = tables
        self.have: list[NDArray[np.uint8]] = [np.zeros(rows, dtype=np.uint8) for _ in range(tensors)]
        self.made = list(self.have)
        self.glue = np.zeros((rows, features))
        self.times = np.zeros((rows, len(tables)))
        self.layers: Floats = np.zeros((rows, WIDTH))

    def make(self, tensor: int, formats: NDArray[np.uint8]) -> None:
        """`tensor` is written, in these formats."""
        self.have[tensor] = self.made[tensor] = formats

    def convert(self, tensor: int, wanted: NDArray[np.uint8], elements: Floats) -> None:
        """Make `tensor` available in the wanted format, counting the conversion where it was not."""
        have = self.have[tensor]
        missing = (have & wanted) == 0
        if not missing.any():
            return
        for target in _FORMATS:
            rows = missing & (wanted == target)
            if not rows.any():
                continue
            for source in _FORMATS:
                if source != target:
                    here = rows & (have & source > 0)
                    column = 2 * transition(source, target)
                    self.glue[:, column] += here
                    self.glue[:, column + 1] += here * elements
                    rows &= ~here
        self.have[tensor] = have | wanted


@dataclass(frozen=True)
class Glue:
    """Seconds per feature of `Flow.names`, summed over the kinds of operator of the runtime."""

    weights: Floats
    learned: tuple[str, ...]

    @classmethod
    def fit(cls, features: Floats, times_s: dict[str, Floats], totals_s: Floats) -> Glue:
        """Learn from models: (models, features) counts, per operator kind (models,) seconds, and (models,) whole latencies."""
        scale = np.maximum(features.max(axis=0, initial=0.0), 1e-30)
        weights = np.zeros(features.shape[1])
        for times in times_s.values():
            weights += _share(features / scale, times / totals_s, totals_s) / scale
        return cls(weights, tuple(times_s))

    def predict(self, features: Floats) -> Floats:
        """(count,) seconds between the layers."""
        return np.asarray(features @ self.weights, dtype=np.float64)


def _share(design: Floats, shares: Floats, totals_s: Floats, ridge: float = 1e-2) -> Floats:
    """Non-negative weights of one operator kind, errors relative to the whole model, with a small ridge."""
    rows = design / totals_s[:, None]
    size = np.maximum(np.linalg.norm(rows, axis=0), 1e-30)
    penalty = ridge * np.eye(design.shape[1])
    solution, _ = nnls(np.vstack([rows / size, penalty]), np.concatenate([shares, np.zeros(design.shape[1])]))
    return np.asarray(solution / size, dtype=np.float64)
