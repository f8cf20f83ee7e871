"""Follow activations through the dense graph in the formats that they exist in: fp32, fp32 in channel blocks, int8.

Where a reader wants another format, a conversion of the tensor's elements is counted; operators are counted in the format they work in.
The rules are those of the exporter's quantise/dequantise (QDQ) models and of ONNX Runtime: a tensor that an integer layer writes or reads
is integer for all its readers; an operator that reads only such tensors writes one; a layer with fp32 weights runs on
integers when it reads an integer tensor and its activation is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from automc.graph import LayerGraph
from automc.predict.kernel_model import KernelModel
from automc.predict.kernels import BLOCKED, INT8, PLAIN, count, kept
from automc.predict.layers import FILE_COLUMNS, TRANSITIONS, WIDTH, Formats, LayerTable, learn, transition
from automc.predict.roofline import Floats
from automc.predict.structure import Step, Structure
from automc.space import Codes, SearchSpace

__all__ = ["Counted", "Flow"]

Rows: TypeAlias = NDArray[np.bool_]

_FORMATS = {PLAIN: "plain", BLOCKED: "blocked", INT8: "int8"}
_UNARY = frozenset({"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh"})
_FOLDED = frozenset({"Pad"})
"""Operators that become part of the fp32 convolution which alone reads them."""
_FUSED = frozenset({"Clip", "Relu"})
_KEEPS_BLOCKS = frozenset({*_UNARY, "Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Sum"})
_KEEPS_INT8 = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Mul", "Pad", "Relu", "Reshape",
        "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """Sums over the graph for each policy: `layers` (count, layer table width), `glue` (count, features), `times_s` (count, layers)."""

    layers: Floats
    glue: Floats
    times_s: Floats


class Flow:
    """Counts what policies add up to, many at once.

    Attributes:
        names: of the columns of `Counted.glue`.
        count_columns: those of them that count operators.
        int8_columns: those of them that count integer tensors made between layers.
    """

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
        kinds = [*TRANSITIONS, *(f"{op}:{fmt}" for op in ops for fmt in (*_FORMATS.values(), "quantized"))]
        self.names = tuple(f"{kind}:{what}" for kind in kinds for what in ("count", "elements"))
        self.count_columns = list(range(0, len(self.names), 2))
        self.int8_columns = [i for i, name in enumerate(self.names) if name.endswith("int8:count")]
        self._column = {kind: 2 * index for index, kind in enumerate(kinds)}
        self._channels = [
            None if t.channels is None else (t.channels.fixed, kept(t.channels.parts, graph, space))
            for t in structure.tensors
        ]
        self._readers = [_readers(structure.steps, tensor, through=False) for tensor in range(len(structure.tensors))]
        self._behind = [_readers(structure.steps, tensor, through=True) for tensor in range(len(structure.tensors))]

    def count(self, codes: Codes) -> Counted:
        """What the policies add up to."""
        walk = _Walk(self, codes)
        for index in range(self.structure.inputs):
            walk.write(index, np.full(len(codes), PLAIN, dtype=np.uint8))
        for step in self.structure.steps:
            if step.layer >= 0:
                walk.layer(step)
            else:
                walk.operator(step)
        return Counted(walk.layers, walk.glue.T, walk.times.T)

    def elements(self, tensor: int, codes: Codes) -> Floats:
        """(count,) elements of a tensor, batch included."""
        info, channels = self.structure.tensors[tensor], self._channels[tensor]
        if channels is None:
            return np.full(len(codes), float(info.elements))
        return np.asarray(count(channels, codes) * (info.elements / max(info.width, 1)), dtype=np.float64)

    def column(self, kind: str) -> int:
        """The column that counts `kind`; the next one holds its elements."""
        return self._column[kind]

    def only_layers_read(self, tensor: int) -> bool:
        """Whether nothing but layers reads a tensor."""
        return sum(tensor in step.inputs for step in self.structure.steps) == len(self._readers[tensor])

    def readers(self, tensor: int) -> list[int]:
        """The layers that read a tensor."""
        return self._readers[tensor]

    def behind(self, tensor: int) -> list[int]:
        """The layers that read a tensor, or the activation function that alone reads it."""
        return self._behind[tensor]


class _Walk:
    """One pass over the steps for some codes: the formats of every tensor, and the sums so far."""

    def __init__(self, flow: Flow, codes: Codes) -> None:
        self.flow, self.codes = flow, codes
        count, tensors = len(codes), len(flow.structure.tensors)
        self.keys = learn(flow.tables, flow.model, codes)
        self.int8 = [table.choices.is_int8(codes) for table in flow.tables]
        self.born: list[Formats] = [np.zeros(count, dtype=np.uint8)] * tensors
        self.native = list(self.born)
        self.have = list(self.born)
        self.glue = np.zeros((len(flow.names), count))
        self.times = np.zeros((len(flow.tables), count))
        self.layers: Floats = np.zeros((count, WIDTH))

    def layer(self, step: Step) -> None:
        """Run a layer; on integers also where its policy says fp32, if it reads and feeds nothing but integers."""
        table, keys = self.flow.tables[step.layer], self.keys[step.layer]
        source = step.inputs[0]
        implied = (self.native[source] == INT8) & self._any_int8(self.flow.behind(step.output)) & ~self.int8[step.layer]
        cold = (implied | self.int8[step.layer]) & (self.born[source] != INT8)
        values, formats = table.lookup(np.where(implied, table.choices.int8_key(keys), keys) + cold)
        if implied.any():
            values[:, FILE_COLUMNS] = table.lookup(keys)[0][:, FILE_COLUMNS]
        self.convert(source, formats[:, 0])
        self.layers += values
        self.glue[: 2 * len(TRANSITIONS)] += values[:, WIDTH - 2 * len(TRANSITIONS) :].T
        self.times[step.layer] = values[:, 0]
        self.write(step.output, formats[:, 1])

    def operator(self, step: Step) -> None:
        """Run another operator, in the format that its inputs allow."""
        natives = [self.native[tensor] for tensor in step.inputs]
        formats = np.full(len(self.codes), PLAIN, dtype=np.uint8)
        if step.op in _KEEPS_BLOCKS:
            formats[np.all([native == BLOCKED for native in natives], axis=0)] = BLOCKED
        if step.op in _KEEPS_INT8:
            formats[np.all([native == INT8 for native in natives], axis=0)] = INT8
        quantized = self._any_int8(self.flow.readers(step.output)) & (formats != INT8)
        folded = np.full(len(self.codes), False)
        if step.op in _FOLDED and self.flow.only_layers_read(step.output):
            folded = ~quantized & (formats != INT8)
            formats = np.where(folded, natives[0], formats)
        for tensor in step.inputs:
            self.convert(tensor, formats)
        sizes = [self.flow.elements(tensor, self.codes) for tensor in (*step.inputs, step.output)]
        elements = np.max(sizes, axis=0)
        for code, name in _FORMATS.items():
            self._add(self.flow.column(f"{step.op}:{name}"), (formats == code) & ~folded & ~quantized, elements)
        self._add(self.flow.column(f"{step.op}:quantized"), quantized, elements)
        self.write(step.output, formats)

    def write(self, tensor: int, formats: Formats) -> None:
        """A tensor is made in these formats, and quantised where an integer layer reads it."""
        self.born[tensor] = self.native[tensor] = self.have[tensor] = formats
        quantized = self._any_int8(self.flow.readers(tensor)) & (formats != INT8)
        if quantized.any():
            native = np.where(quantized, INT8, formats).astype(np.uint8)
            self.convert(tensor, native)
            self.native[tensor] = self.have[tensor] = native

    def convert(self, tensor: int, wanted: Formats) -> None:
        """Make a tensor available in the wanted format, counting the conversion where it was not."""
        have = self.have[tensor]
        missing = (have & wanted) == 0
        if not missing.any():
            return
        elements = self.flow.elements(tensor, self.codes)
        for target in _FORMATS:
            rows = missing & (wanted == target)
            for source in _FORMATS if rows.any() else ():
                if source != target:
                    here = rows & (have & source > 0)
                    self._add(2 * transition(source, target), here, elements)
                    rows &= ~here
        self.have[tensor] = have | wanted

    def _add(self, column: int, rows: Rows, elements: Floats) -> None:
        if rows.any():
            self.glue[column] += rows
            self.glue[column + 1] += rows * elements

    def _any_int8(self, layers: Sequence[int]) -> Rows:
        if not layers:
            return np.zeros(len(self.codes), dtype=np.bool_)
        return np.any([self.int8[layer] for layer in layers], axis=0)


def _readers(steps: Sequence[Step], tensor: int, *, through: bool) -> list[int]:
    """The layers that read a tensor; `through` a fused activation function too."""
    found = []
    for step in steps:
        if tensor in step.inputs:
            if step.layer >= 0:
                found.append(step.layer)
            elif through and step.op in _FUSED:
                found += _readers(steps, step.output, through=True)
    return found
