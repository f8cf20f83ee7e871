"""One fit: kernels, glue and calibration learned from a set of profiled candidates, priced over codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from automc.devices.device import NodeTime
from automc.graph import LayerGraph
from automc.predict.attribute import Place
from automc.predict.calibration import Calibration
from automc.predict.choices import LayerChoices
from automc.predict.glue import Glue, operators_s
from automc.predict.kernel_model import KernelModel
from automc.predict.kernels import COLUMNS, Ints, Kernels, Layouts
from automc.predict.layers import WIDTH, LayerTable
from automc.predict.ledger import Counted, Ledger
from automc.predict.profile import Profile, ProfiledModel
from automc.predict.roofline import Floats
from automc.predict.scaling import in_keeping
from automc.predict.size import SizeModel
from automc.predict.structure import Structure, read_structure
from automc.predict.tally import Prices
from automc.space import Codes, SearchSpace

__all__ = ["FittedModel", "Priced", "Samples", "Setting"]


_INT8, _COLD, _FUSED = (COLUMNS.index(name) for name in ("int8", "cold", "fused"))
_CONVERSIONS = frozenset({"DequantizeLinear", "QuantizeLinear", "Reorder", "Transpose"})


@dataclass(frozen=True)
class Setting:
    """What a fit is for: the model, its space, the batch, the runtime's layouts."""

    graph: LayerGraph
    space: SearchSpace
    structure: Structure
    layouts: Layouts
    batch_size: int

    @classmethod
    def of(cls, dense_onnx: bytes, graph: LayerGraph, space: SearchSpace, layouts: Layouts, batch_size: int) -> Setting:
        """Without the layers that the exported model does not run as such; what stands for them is between layers.

        Raises:
            InputError: the dense model is not readable.
        """
        structure = read_structure(dense_onnx, graph)
        if structure.absent:
            graph = replace(graph, others=tuple(layer for layer in graph.others if layer.name not in structure.absent))
            structure = read_structure(dense_onnx, graph)
        return cls(graph, space, structure, layouts, batch_size)

    def choices(self) -> list[LayerChoices]:
        """One per layer."""
        clipped = [self.structure.clipped(index) for index in range(len(self.graph.priced))]
        pairs = zip(self.graph.priced, clipped, strict=True)
        return [LayerChoices.of(layer, self.graph, self.space, clipped=clips) for layer, clips in pairs]


@dataclass(frozen=True)
class Samples:
    """Profiled candidates as arrays.

    Attributes:
        codes: (models, domains).
        latency_s: (models,) whole models as measured.
        kernels: per model the measured kernels and their (count,) seconds.
        glue_s: kind of operator -> (models,) seconds of what belongs to no layer.
        size_bytes: (models,).
    """

    codes: Codes
    latency_s: Floats
    kernels: tuple[tuple[Kernels, Floats], ...]
    glue_s: dict[str, Floats]
    size_bytes: Floats

    @classmethod
    def of(cls, profile: Profile, setting: Setting) -> Samples:
        """Kernel times are scaled to be in keeping with what the whole model took, which was measured more carefully."""
        latency = np.array([profile.latency_s(candidate) for candidate in profile.candidates])
        codes = setting.space.encode(candidate.policy for candidate in profile.candidates)
        tables = [LayerTable(choices, setting.layouts, setting.batch_size) for choices in setting.choices()]
        times = in_keeping(profile.candidates, latency)
        kernels = [_measured(c, row, tables, t) for c, row, t in zip(profile.candidates, codes, times, strict=True)]
        glue = operators_s(profile.candidates, times, latency)
        sizes = np.array([candidate.size_bytes for candidate in profile.candidates], dtype=np.float64)
        return cls(codes, latency, tuple(kernels), glue, sizes)

    def take(self, rows: Sequence[int]) -> Samples:
        """Some of the models."""
        picked = list(rows)
        glue = {op: times[picked] for op, times in self.glue_s.items()}
        kernels = tuple(self.kernels[row] for row in picked)
        return Samples(self.codes[picked], self.latency_s[picked], kernels, glue, self.size_bytes[picked])

    def all_kernels(self) -> tuple[Kernels, Floats]:
        """Every measured kernel, and (count,) its seconds."""
        rows = np.concatenate([kernels.rows for kernels, _ in self.kernels])
        return Kernels(rows), np.concatenate([times for _, times in self.kernels])


@dataclass(frozen=True)
class Priced:
    """(count,) latency, size and macs; (count, layers) seconds per layer."""

    latency_s: Floats
    size_bytes: Floats
    macs: Floats
    layers_s: Floats


class FittedModel:
    """Prices codes by what `samples` taught."""

    def __init__(self, samples: Samples, setting: Setting, like: KernelModel | None = None) -> None:
        self.setting = setting
        self.kernel_model = KernelModel.fit(*samples.all_kernels(), setting.layouts, setting.batch_size, like)
        layouts, batch = setting.layouts, setting.batch_size
        tables = [LayerTable(choice, layouts, batch) for choice in setting.choices()]
        self.ledger = Ledger(setting.structure, setting.graph, setting.space, tables, self.kernel_model)
        counted = self.ledger.count(samples.codes)
        excess = np.array(
            [times.sum() - self.kernel_model.predict(kernels).sum() for kernels, times in samples.kernels]
        )
        self.glue = Glue.fit(counted.glue, {**samples.glue_s, "(neighbours)": excess}, samples.latency_s)
        self.calibration = Calibration.fit(self._terms(counted.layers, counted.glue), samples.latency_s)
        self.size = SizeModel.fit(counted.layers[:, 3], self._parts(counted), samples.size_bytes)
        self.prices = self._prices()

    def price(self, codes: Codes) -> Priced:
        """Price (count, domains) codes."""
        bill = self.ledger.bill(codes, self.prices)
        latency_s, size_bytes, macs = bill.rows().T
        return Priced(latency_s, size_bytes, macs, bill.times_s)

    def _prices(self) -> Prices:
        """The same linear models, per part."""
        kernels, glue, nodes, constant = self.calibration.weights
        size, added, int8, between, decoding = self.size.weights
        layer_s, layer_bytes = np.zeros((2, WIDTH))
        layer_s[:2] = kernels, nodes
        layer_bytes[[1, 3, 4, 5]] = added, 1.0, int8, decoding
        feature_s = glue * self.glue.weights
        feature_s[self.ledger.count_columns] += nodes
        feature_bytes = np.zeros(len(feature_s))
        feature_bytes[self.ledger.int8_columns] = between
        constants = float(constant), float(size - added * len(self.setting.graph.priced))
        return Prices.of(layer_s, layer_bytes, feature_s, feature_bytes, constants)

    def _parts(self, counted: Counted) -> Floats:
        """(count, 4) kernels beyond the dense model's, integer kernels, integer tensors between layers, nodes that decode weights."""
        added = counted.layers[:, 1] - len(self.setting.graph.priced)
        between = counted.glue[:, self.ledger.int8_columns].sum(axis=1)
        return np.stack([added, counted.layers[:, 4], between, counted.layers[:, 5]], axis=1)

    def _terms(self, layers: Floats, glue: Floats) -> Floats:
        nodes = layers[:, 1] + glue[:, self.ledger.count_columns].sum(axis=1)
        return np.stack([layers[:, 0], self.glue.predict(glue), nodes, np.ones(len(layers))], axis=1)


def _measured(
    candidate: ProfiledModel, code: Codes, tables: Sequence[LayerTable], times_s: Floats
) -> tuple[Kernels, Floats]:
    """The kernels of a candidate as the policy says, by the (nodes,) seconds of all; whether they are integer as the runtime ran them."""
    rows, times = [np.zeros((0, len(COLUMNS)), dtype=np.int64)], list[float]()
    expected: dict[Place, Ints] = {}
    for table in tables:
        spec, kernels = table.choices.spec, table.kernels(int(table.choices.keys(code[None])[0]))
        expected.update({(spec.module, spec.call + i): row for i, row in enumerate(kernels.rows)})
    known, latest = {module for module, _ in expected}, dict[str, int]()
    for index, (node, place) in enumerate(zip(candidate.nodes, candidate.places, strict=True)):
        if place is None or place[0] not in known:
            continue
        if place in expected:
            row = expected[place][None].copy()
            int8 = _is_int8(node)
            cold = int8 and not (index and _is_int8(candidate.nodes[index - 1]))
            fused = row[0, _FUSED] and not int8 and not _is_quantized(candidate.nodes[index + 1 :])
            row[0, [_INT8, _COLD, _FUSED]] = int8, cold, fused
            rows.append(row)
            latest[place[0]] = len(times)
            times.append(float(times_s[index]))
        elif place[0] in latest:
            # The runtime has more kernels than are told apart, such as of a recurrent layer of several levels.
            times[latest[place[0]]] += float(times_s[index])
    return Kernels(np.concatenate(rows)), np.maximum(np.array(times), 1e-9)


def _is_int8(node: NodeTime) -> bool:
    """Whether a kernel computes on integers; conversions do not count."""
    return bool(node.inputs) and node.inputs[0].dtype in ("uint8", "int8") and node.op not in _CONVERSIONS


def _is_quantized(behind: Sequence[NodeTime]) -> bool:
    """Whether the nodes behind a kernel begin with a quantisation of what it wrote, be it reordered first."""
    ops = [node.op for node in behind[:2]]
    return ops[:1] == ["QuantizeLinear"] or ops == ["ReorderOutput", "QuantizeLinear"]
