"""Follow activations through the dense graph in the formats that they exist in: fp32, fp32 in channel blocks, int8.

Where a reader wants another format, a conversion of the tensor's elements is counted; operators are counted in the format they work in.
The rules are those of the exporter's quantise/dequantise (QDQ) models and of ONNX Runtime: a tensor that an integer layer writes or reads
is integer for all its readers; an operator that reads only such tensors writes one; a layer with fp32 weights runs on
integers when it reads an integer tensor and its activation is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from automc.graph import Channels, LayerGraph
from automc.predict.kernel_model import KernelModel
from automc.predict.kernels import BLOCKED, INT8, PLAIN, Ints, count, kept
from automc.predict.layers import TRANSITIONS, Formats, LayerTable, learn, transition
from automc.predict.roofline import Floats
from automc.predict.structure import Step, Structure
from automc.predict.tally import Bill, Prices, Sink, Tally
from automc.space import Codes, SearchSpace

__all__ = ["Counted", "Flow"]

Rows: TypeAlias = NDArray[np.bool_]
S = TypeVar("S", bound=Sink)

_FORMATS = {PLAIN: "plain", BLOCKED: "blocked", INT8: "int8"}
_NOTHING, _QUANTIZED = 0, 8
"""States of an operator besides the formats: part of the layer behind it, or fp32 between conversions from and to integers."""
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
    """Counts or prices what policies add up to, many at once.

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
        column = {kind: 2 * index for index, kind in enumerate(kinds)}
        self.by_state = {op: _by_state(op, column) for op in ops}
        met = [*(t.channels for t in structure.tensors), *(c for n in graph.layers for c in (n.inputs, n.outputs))]
        self.widths = {c: (c.fixed, kept(c.parts, graph, space)) for c in met if c is not None}
        tensors = range(len(structure.tensors))
        self.readers = [_readers(structure.steps, tensor, through=False) for tensor in tensors]
        self.behind = [_readers(structure.steps, tensor, through=True) for tensor in tensors]

    def count(self, codes: Codes) -> Counted:
        """What the policies add up to."""
        tally = _Walk(self, codes, Tally(len(codes), len(self.names), len(self.tables))).sink
        return Counted(tally.layers, tally.glue.T, tally.times_s.T)

    def bill(self, codes: Codes, prices: Prices) -> Bill:
        """What the policies cost."""
        return _Walk(self, codes, Bill(prices, len(codes), len(self.tables))).sink

    def only_layers_read(self, tensor: int) -> bool:
        """Whether nothing but layers reads a tensor."""
        return sum(tensor in step.inputs for step in self.structure.steps) == len(self.readers[tensor])


class _Walk(Generic[S]):
    """One pass over the steps for some codes: the formats of every tensor, and the sums so far, in `sink`."""

    def __init__(self, flow: Flow, codes: Codes, sink: S) -> None:
        self.flow, self.codes, self.sink = flow, codes, sink
        count, structure = len(codes), flow.structure
        self._widths: dict[Channels, Ints] = {}
        self._elements: dict[int, Floats] = {}
        self.keys = [self._keys(table) for table in flow.tables]
        learn(flow.tables, flow.model, self.keys)
        self.int8 = [table.choices.is_int8(codes) for table in flow.tables]
        self._some_int8 = [bool(rows.any()) for rows in self.int8]
        self.never = np.zeros(count, dtype=np.bool_)
        self.born: list[Formats] = [np.zeros(count, dtype=np.uint8)] * len(structure.tensors)
        self.native = list(self.born)
        self.have = list(self.born)
        for index in range(structure.inputs):
            self.write(index, np.full(count, PLAIN, dtype=np.uint8))
        for step in structure.steps:
            if step.layer >= 0:
                self.layer(step)
            else:
                self.operator(step)

    def layer(self, step: Step) -> None:
        """Run a layer; on integers also where its policy says fp32, if it reads and feeds nothing but integers."""
        table, keys, int8 = self.flow.tables[step.layer], self.keys[step.layer], self.int8[step.layer]
        source = step.inputs[0]
        implied = (self.native[source] == INT8) & self._any_int8(self.flow.behind[step.output]) & ~int8
        file = run = keys
        if implied.any():
            run = np.where(implied, table.choices.implied_key(keys), keys)
        odd = (implied | int8) & (self.born[source] != INT8)
        if table.choices.clipped:
            odd = odd | (self._any_int8(self.flow.behind[step.output]) & ~implied & ~int8)
        if odd.any():
            run = run + odd
        formats = table.formats[table.find(run)]
        self.convert(source, formats[:, 0])
        self.sink.layer(step.layer, table, run, file if implied.any() else run)
        self.write(step.output, formats[:, 1])

    def operator(self, step: Step) -> None:
        """Run another operator, in the format that its inputs allow."""
        natives = [self.native[tensor] for tensor in step.inputs]
        formats = np.full(len(self.codes), PLAIN, dtype=np.uint8)
        if step.op in _KEEPS_BLOCKS:
            formats[_all_are(natives, BLOCKED)] = BLOCKED
        if step.op in _KEEPS_INT8:
            formats[_all_are(natives, INT8)] = INT8
        quantized = self._any_int8(self.flow.readers[step.output]) & (formats != INT8)
        state = np.where(quantized, _QUANTIZED, formats)
        if step.op in _FOLDED and self.flow.only_layers_read(step.output):
            folded = ~quantized & (formats != INT8)
            formats = np.where(folded, natives[0], formats)
            state = np.where(folded, _NOTHING, state)
        for tensor in step.inputs:
            self.convert(tensor, formats)
        sizes = [self.elements(tensor) for tensor in (*step.inputs, step.output)]
        elements = sizes[0]
        for size in sizes[1:]:
            elements = elements if size is elements else np.maximum(elements, size)
        self.sink.operators(self.flow.by_state[step.op][state], elements)
        self.write(step.output, formats)

    def write(self, tensor: int, formats: Formats) -> None:
        """A tensor is made in these formats, and quantised where an integer layer reads it."""
        self.born[tensor] = self.native[tensor] = self.have[tensor] = formats
        readers = self.flow.readers[tensor]
        quantized = self._any_int8(readers) & (formats != INT8) if readers else self.never
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
        self.sink.operators(_CONVERSION[have * missing, wanted], self.elements(tensor))
        self.have[tensor] = have | wanted

    def elements(self, tensor: int) -> Floats:
        """(count,) elements of a tensor, batch included."""
        if tensor not in self._elements:
            info = self.flow.structure.tensors[tensor]
            width = np.full(len(self.codes), info.width) if info.channels is None else self._width(info.channels)
            self._elements[tensor] = np.asarray(width * (info.elements / max(info.width, 1)), dtype=np.float64)
        return self._elements[tensor]

    def _width(self, channels: Channels) -> Ints:
        if channels not in self._widths:
            self._widths[channels] = count(self.flow.widths[channels], self.codes)
        return self._widths[channels]

    def _keys(self, table: LayerTable) -> Ints:
        spec = table.choices.spec
        return table.choices.keys(self.codes, self._width(spec.inputs), self._width(spec.outputs))

    def _any_int8(self, layers: Sequence[int]) -> Rows:
        found = self.never
        for layer in layers:
            if self._some_int8[layer]:
                found = found | self.int8[layer]
        return found


def _all_are(formats: Sequence[Formats], wanted: int) -> Rows:
    found = formats[0] == wanted
    for other in formats[1:]:
        found = found & (other == wanted)
    return found


def _by_state(op: str, column: dict[str, int]) -> Ints:
    """The column of an operator in each state (a format, or quantised); -1 where it is none."""
    columns = np.full(_QUANTIZED + 1, -1, dtype=np.int64)
    for state, name in {**_FORMATS, _QUANTIZED: "quantized"}.items():
        columns[state] = column[f"{op}:{name}"]
    return columns


def _conversions() -> Ints:
    """(8, 8) column of the conversion from one of the formats at hand, the first of _FORMATS, to one; -1 where there is none."""
    columns = np.full((8, 8), -1, dtype=np.int64)
    for have in range(8):
        for target in _FORMATS:
            sources = [source for source in _FORMATS if have & source and source != target]
            if sources:
                columns[have, target] = 2 * transition(sources[0], target)
    return columns


_CONVERSION = _conversions()


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
