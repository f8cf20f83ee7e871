"""Follow activations through the dense graph in the formats that they exist in: fp32, fp32 in channel blocks, int8.

Where a reader wants another format, a conversion of the tensor's elements is counted; operators are counted in the format they work in.
The rules are those of the exporter's quantise/dequantise (QDQ) models and of ONNX Runtime: a tensor that an integer layer writes or reads
is integer for all its readers; an operator that reads only such tensors writes one; a layer with fp32 weights is exported as
integers when it reads an integer tensor and its activation is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from automc.graph import LayerGraph
from automc.predict.choices import Sum, Sums, kept
from automc.predict.kernel_model import KernelModel
from automc.predict.kernels import BLOCKED, INT8, PLAIN
from automc.predict.layers import TRANSITIONS, Formats, LayerTable, find_rows, transition
from automc.predict.roofline import Floats
from automc.predict.structure import Step, Structure
from automc.predict.tally import Bill, Columns, Prices, Tally, Trail
from automc.space import Codes, SearchSpace

__all__ = ["Counted", "Ledger"]

Flags: TypeAlias = NDArray[np.uint8]

_FORMATS = {PLAIN: "plain", BLOCKED: "blocked", INT8: "int8"}
_WANTED = 8
"""Bit beside the formats: an integer layer reads the tensor."""
_TO_WANTED = np.uint8(1)
"""From INT8 to that bit."""
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


@dataclass(frozen=True)
class Rule:
    """How an operator other than a layer works, by the format that all its inputs have (0 where they differ) and _WANTED.

    Attributes:
        formats: (16,) what it writes.
        columns: (16,) of its count among the features; -1 where it becomes part of the layer behind it.
        volumes: of what it works on: the largest of these.
    """

    formats: Formats
    columns: Columns
    volumes: tuple[int, ...]


class Ledger:
    """Counts or prices what policies add up to, many at once.

    Attributes:
        names: of the columns of `Counted.glue`.
        count_columns: those of them that count operators.
        int8_columns: those of them that count integer tensors made between layers.
        sums: of every layer its key and whether it runs on integers, then the channels of the tensors.
        volumes: (different volumes,) which of those channels a tensor has, and how many elements each stands for.
        volume: of each tensor.
        readers: of each tensor the layers that read it; in `behind` those behind a fused activation function too.
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
        tensors = range(len(structure.tensors))
        self.readers = [_readers(structure.steps, tensor, through=False) for tensor in tensors]
        self.behind = [_readers(structure.steps, tensor, through=True) for tensor in tensors]
        widths: dict[object, Sum] = {
            info.channels or info.width: (info.width, ())
            if info.channels is None
            else (info.channels.fixed, kept(info.channels.parts, graph, space))
            for info in structure.tensors
        }
        choices = [table.choices for table in tables]
        self.sums = Sums([*(c.key for c in choices), *(c.runs_int8 for c in choices), *widths.values()])
        place = {width: 2 * len(tables) + i for i, width in enumerate(widths)}
        each = [(place[t.channels or t.width], t.elements / max(t.width, 1)) for t in structure.tensors]
        different = list(dict.fromkeys(each))
        self.volume = [different.index(volume) for volume in each]
        self.volumes = np.array([v[0] for v in different]), np.array([v[1] for v in different])
        column = {kind: 2 * index for index, kind in enumerate(kinds)}
        self.rules = [self._rule(step, column) for step in structure.steps]

    def count(self, codes: Codes) -> Counted:
        """What the policies add up to."""
        tally = Tally(_Walk(self, codes).trail, len(self.names))
        return Counted(tally.layers, tally.glue.T, tally.times_s.T)

    def bill(self, codes: Codes, prices: Prices) -> Bill:
        """What the policies cost."""
        return Bill(_Walk(self, codes).trail, prices)

    def _rule(self, step: Step, column: dict[str, int]) -> Rule | None:
        if step.layer >= 0:
            return None
        formats, columns = np.full(16, PLAIN, dtype=np.uint8), np.full(16, -1, dtype=np.int16)
        folds = step.op in _FOLDED and self._only_layers_read(step.output)
        for state in range(16):
            common = state % _WANTED
            keeps = {BLOCKED: step.op in _KEEPS_BLOCKS, INT8: step.op in _KEEPS_INT8}.get(common, False)
            formats[state] = common if keeps else PLAIN
            quantized = state >= _WANTED and formats[state] != INT8
            if folds and not quantized and formats[state] != INT8:
                formats[state] = common
            else:
                columns[state] = column[f"{step.op}:{'quantized' if quantized else _FORMATS[int(formats[state])]}"]
        largest: dict[int, int] = {}
        for volume in (self.volume[tensor] for tensor in (*step.inputs, step.output)):
            width = int(self.volumes[0][volume])
            largest[width] = max(largest.get(width, volume), volume, key=lambda v: float(self.volumes[1][v]))
        return Rule(formats, columns, tuple(largest.values()))

    def _only_layers_read(self, tensor: int) -> bool:
        return sum(tensor in step.inputs for step in self.structure.steps) == len(self.readers[tensor])


class _Walk:
    """One pass over the steps for some codes.

    Attributes:
        born: of each tensor (count,) the format that it is made in; `native` after it was quantised, `have` all that it was converted to.
        int8: (layers, count) INT8 where a layer's policy says so, else 0.
    """

    def __init__(self, ledger: Ledger, codes: Codes) -> None:
        structure, layers = ledger.structure, len(ledger.tables)
        self.ledger = ledger
        sums = ledger.sums.of(codes)
        self._run = list(find_rows(ledger.tables, ledger.model, sums[:layers]))
        self._columns, self._elements = list[Columns](), list[Floats]()
        self.trail = Trail(len(codes), ledger.tables, self._run, self._columns, self._elements)
        self.int8 = (INT8 * sums[layers : 2 * layers]).astype(np.uint8)
        self._some_int8 = [bool(rows.any()) for rows in self.int8]
        widths, each = ledger.volumes
        self.volumes = sums[widths] * each[:, None]
        plain = np.full(len(codes), PLAIN, dtype=np.uint8)
        self.born: list[Formats] = [plain] * len(structure.tensors)
        self.native, self.have = list(self.born), list(self.born)
        for index in range(structure.inputs):
            self.write(index, plain)
        for step, rule in zip(structure.steps, ledger.rules, strict=True):
            if rule is None:
                self.layer(step)
            else:
                self.operator(step, rule)

    def layer(self, step: Step) -> None:
        """Run a layer; on integers also where its policy says fp32, if it reads and feeds nothing but integers."""
        table, source, run = self.ledger.tables[step.layer], step.inputs[0], self._run[step.layer]
        integer, behind = self.int8[step.layer], self._integers(self.ledger.behind[step.output])
        if behind is not None:
            twin = table.twins[run]
            integer = integer | (behind & self.native[source] * (twin != run))
            run = np.where(integer, twin, run)
        if behind is not None or self._some_int8[step.layer]:
            odd = (integer & ~self.born[source]) != 0  # cold: behind a conversion
            if behind is not None and table.choices.clipped:
                odd |= (behind & ~integer) != 0  # its Clip is left to the quantisation behind it
            run = run + odd
        self._run[step.layer] = run
        formats = table.formats[run]
        self.convert(source, formats[:, 0])
        self.write(step.output, formats[:, 1])

    def operator(self, step: Step, rule: Rule) -> None:
        """Run another operator, in the format that its inputs allow."""
        state = self.native[step.inputs[0]]
        for tensor in step.inputs[1:]:
            state = state & self.native[tensor]
        if (integers := self._integers(self.ledger.readers[step.output])) is not None:
            state = state | (integers << _TO_WANTED)
        formats = rule.formats[state]
        for tensor in step.inputs:
            self.convert(tensor, formats)
        elements = self.volumes[rule.volumes[0]]
        for volume in rule.volumes[1:]:
            elements = np.maximum(elements, self.volumes[volume])
        self._note(rule.columns[state], elements)
        self.write(step.output, formats)

    def write(self, tensor: int, formats: Formats) -> None:
        """A tensor is made in these formats, and quantised where an integer layer reads it."""
        self.born[tensor] = self.native[tensor] = self.have[tensor] = formats
        if (integers := self._integers(self.ledger.readers[tensor])) is not None:
            native = np.where(integers, integers, formats)
            self.convert(tensor, native)
            self.native[tensor] = self.have[tensor] = native

    def convert(self, tensor: int, wanted: Formats) -> None:
        """Make a tensor available in the wanted format, counting the conversion where it was not."""
        have = self.have[tensor]
        if (have & wanted).all():
            return
        self._note(_CONVERSION[have, wanted], self.volumes[self.ledger.volume[tensor]])
        self.have[tensor] = have | wanted

    def _note(self, columns: Columns, elements: Floats) -> None:
        self._columns.append(columns)
        self._elements.append(elements)

    def _integers(self, layers: Sequence[int]) -> Flags | None:
        """(count,) INT8 where any of the layers' policies says so, else 0; None where that is nowhere."""
        found = None
        for layer in layers:
            if self._some_int8[layer]:
                found = self.int8[layer] if found is None else found | self.int8[layer]
        return found


def _conversions() -> Columns:
    """(8, 8) column of the conversion from one of the formats at hand, the first of _FORMATS, to one; -1 where there is none."""
    columns = np.full((8, 8), -1, dtype=np.int16)
    for have in range(8):
        for target in _FORMATS:
            sources = [source for source in _FORMATS if have & source]
            if sources and not have & target:
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
