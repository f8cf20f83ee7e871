"""SimulatedPredictor: policy codes to the costs of a closed form. It is exact of the simulation, and measured of nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from automc.devices.simulated import Accelerator, Work
from automc.graph import LayerGraph
from automc.narrow import Narrowing
from automc.policy import Policy
from automc.predict.choices import LayerChoices
from automc.predict.kernels import COLUMNS, KINDS, Kernels, Layouts
from automc.predict.layers import LayerTable
from automc.predict.predictor import LearnedPredictor
from automc.predict.roofline import Floats
from automc.protocols import Costs
from automc.result import PredictorReport
from automc.space import Codes, SearchSpace

__all__ = ["Pricer", "SimulatedPredictor", "work_of"]

DENSE_BITS = 16


@dataclass(frozen=True)
class SimulatedPredictor:
    """Prices policies of one space on a simulated accelerator; layers alone count, what lies between them is free.

    Attributes:
        file_bytes: of the dense file, beyond the weights of its layers.
        narrowing: from the codes that `predict` takes to those of `space`; None where they are the same.
    """

    accelerator: Accelerator
    graph: LayerGraph
    space: SearchSpace
    batch_size: int
    file_bytes: float
    narrowing: Narrowing | None = None

    @classmethod
    def of(
        cls, accelerator: Accelerator, graph: LayerGraph, space: SearchSpace, dense_onnx: bytes, batch_size: int
    ) -> SimulatedPredictor:
        """The predictor of a model's space."""
        held = sum(
            4.0 * (layer.weight_count + (layer.out_channels if layer.bias else 0))
            for layer in graph.priced
            if layer.stored
        )
        return cls(accelerator, graph, space, batch_size, max(len(dense_onnx) - held, 0.0))

    @property
    def report(self) -> PredictorReport:
        """Nothing was measured, so nothing is off."""
        return PredictorReport(mape=0.0, kernel_mape=0.0, noise_floor=0.0, kernels=0, models=0)

    @property
    def origin(self) -> Mapping[str, str]:
        """That nothing was measured, as certificates say it."""
        return {"notes": "not measured, simulated"}

    def predict(self, codes: Codes) -> Costs:
        """Costs of (count, domains) codes, every figure simulated."""
        rows = self.space.check(self.narrowing.widen(codes) if self.narrowing else codes)
        latency_s, energy_j, macs, size = self._by_layer(rows).sum(0).T
        return Costs(latency_s, latency_s, latency_s, size + self.file_bytes, macs, energy_j, source="simulated")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are priced, in the order of the columns of `layers_s`."""
        return tuple(layer.name for layer in self.graph.priced)

    def layers_s(self, codes: Codes) -> Floats:
        """(count, layers) seconds of each layer."""
        return self._column(codes, 0)

    def layers_j(self, codes: Codes) -> Floats | None:
        """(count, layers) joules of each layer."""
        return self._column(codes, 1)

    def narrowed(self, space: SearchSpace) -> SimulatedPredictor:
        """The same predictor for codes of `space`, all of whose choices the wider space offers."""
        return replace(self, narrowing=Narrowing.of(space, self.space))

    def corrected(self, measured: Sequence[tuple[Policy, float]]) -> SimulatedPredictor:
        """The same: a simulation cannot be put right by itself."""
        return self

    def _column(self, codes: Codes, column: int) -> Floats:
        rows = self.space.check(self.narrowing.widen(codes) if self.narrowing else codes)
        return np.ascontiguousarray(self._by_layer(rows)[:, :, column].T)

    def _by_layer(self, rows: Codes) -> Floats:
        """(layers, count, 4) seconds, joules, macs and bytes."""
        found = np.zeros((len(self._choices), len(rows), 4))
        for layer, (choices, known) in enumerate(zip(self._choices, self._known, strict=True)):
            keys, where = np.unique(choices.keys(rows), return_inverse=True)
            fresh = [key for key in keys.tolist() if key not in known]
            known.update(zip(fresh, self._costs(choices, fresh) if fresh else (), strict=True))
            found[layer] = np.array([known[key] for key in keys.tolist()]).reshape(len(keys), 4)[where.reshape(-1)]
        return found

    @cached_property
    def _choices(self) -> list[LayerChoices]:
        return [LayerChoices.of(layer, self.graph, self.space) for layer in self.graph.priced]

    @cached_property
    def _known(self) -> list[dict[int, Floats]]:
        """Per layer the (4,) costs of the choices met so far."""
        return [{} for _ in self.graph.priced]

    def _costs(self, choices: LayerChoices, keys: Sequence[int]) -> Floats:
        """(keys, 4) seconds, joules, macs and bytes of a layer."""
        kernels = [choices.kernels(key) for key in keys]
        bits = [choices.rounding(key) for key in keys]
        counts = [len(each) for each in kernels]
        weight_bits = np.repeat([DENSE_BITS if b is None else b.weight_bits for b in bits], counts)
        activation_bits = np.repeat(
            [DENSE_BITS if b is None else min(b.activation_bits, DENSE_BITS) for b in bits], counts
        )
        rows = Kernels(np.concatenate([each.rows for each in kernels]))
        work = work_of(rows, self.batch_size, weight_bits, activation_bits)
        table = LayerTable(choices, Layouts(), self.batch_size)
        table.add(np.array(keys), kernels, self.accelerator.latency_s(work))
        starts = np.cumsum([0, *counts[:-1]])
        energy_j = np.add.reduceat(self.accelerator.energy_j(work), starts)
        seconds, _, macs, size = table.values[:, :4].T
        return np.stack([seconds, energy_j, macs, size], axis=1)


def work_of(kernels: Kernels, batch_size: int, weight_bits: Floats, activation_bits: Floats) -> Work:
    """The work of kernels, (count,) bits each, for a batch.

    A transposed convolution multiplies each position that it reads by all its weights, and adds up what falls on one that it writes.
    """
    columns = {name: kernels[name].astype(np.float64) for name in COLUMNS}
    groups = np.maximum(columns["groups"], 1.0)
    here, there = batch_size * columns["in_positions"], batch_size * columns["out_positions"]
    depthwise, transposed = (kernels["kind"] == KINDS.index(kind) for kind in ("depthwise", "transposed"))
    inputs = np.where(depthwise, columns["cout"], columns["cin"])
    depth = np.where(depthwise, 1.0, columns["cin"] / groups) * np.where(transposed, 1.0, columns["window"])
    width = columns["cout"] * np.where(transposed, columns["window"], 1.0)
    return Work(
        depth=depth,
        columns=width / groups,
        passes=_floats(batch_size * kernels.turns * groups),
        weights=depth * width,
        inputs=_floats(here * inputs),
        outputs=there * columns["cout"],
        weight_bits=_floats(weight_bits),
        activation_bits=_floats(activation_bits),
    )


def _floats(values: object) -> Floats:
    return np.asarray(values, dtype=np.float64)


Pricer: TypeAlias = LearnedPredictor | SimulatedPredictor
"""What prices the policies of a search."""
