"""LearnedPredictor: policy codes to costs, with intervals and an error that was measured on models it had not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from automc.graph import LayerGraph
from automc.narrow import Narrowing
from automc.policy import Policy
from automc.predict.calibration import Corrections, conformal
from automc.predict.kernel_model import KernelModel, distinct
from automc.predict.kernels import Layouts
from automc.predict.model import FittedModel, Samples, Setting
from automc.predict.profile import Profile, told_of
from automc.predict.roofline import Floats
from automc.protocols import Costs
from automc.result import PredictorReport
from automc.space import Codes, SearchSpace

__all__ = ["LearnedPredictor"]

_FOLDS = 6
_CHUNK = 2048
"""Policies priced at a time: what a walk holds of them stays in a processor's cache."""


@dataclass(frozen=True)
class LearnedPredictor:
    """Prices policies of one space on one device. Latency is of one batch, `macs` per sample, size of the ONNX file.

    Attributes:
        half_width: of the 95 % interval far from any measured policy, in log ratio.
        anchors: policies measured since the fit: their codes in the space of the fit, and seconds.
        narrowing: from the codes that `predict` takes to those of the space of the fit; None where they are the same.
        watts: above idle, which times the latency is the energy; None where energy is not asked for.
        dense_s: what the dense model took when the device was profiled; None where it was not measured then.
        pace: how many times as long as then models take; see `paced`.
        origin: how and when the profile was measured, as certificates say it.
    """

    model: FittedModel
    report: PredictorReport
    half_width: float
    anchors: tuple[tuple[tuple[int, ...], float], ...] = ()
    narrowing: Narrowing | None = None
    watts: float | None = None
    dense_s: float | None = None
    pace: float = 1.0
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, profile: Profile, graph: LayerGraph, space: SearchSpace, dense_onnx: bytes, batch_size: int
    ) -> LearnedPredictor:
        """Learn from a profile; errors and intervals come from candidates held out in turn.

        Raises:
            InputError: the dense model is not readable, or the profile is of another space.
        """
        layouts = Layouts(profile.capabilities.channel_block, profile.capabilities.channel_multiple)
        setting = Setting.of(dense_onnx, graph, space, layouts, batch_size)
        samples = Samples.of(profile, setting)
        model = FittedModel(samples, setting)
        errors, kernel_errors = _held_out(samples, setting, model.kernel_model)
        report = PredictorReport(
            mape=_mape(errors),
            kernel_mape=_mape(kernel_errors),
            noise_floor=profile.noise_floor,
            kernels=len(model.kernel_model.exact),
            models=len(samples.codes),
            coverage=_coverage(model),
        )
        dense_s = next((profile.latency_s(c) for c in profile.candidates if not len(c.policy)), None)
        told = told_of(profile.measurement, profile.environment.get("measured_at", ""))
        origin = {**told, "notes": "; ".join(filter(None, ["not measured, priced by a profile", told["notes"]]))}
        return cls(model, report, max(conformal(errors), profile.noise_floor), dense_s=dense_s, origin=origin)

    def predict(self, codes: Codes) -> Costs:
        """Costs of (count, domains) codes."""
        rows = self._widened(codes)
        parts = [self._predict(rows[i : i + _CHUNK]) for i in range(0, max(len(rows), 1), _CHUNK)]
        fields = ("latency_s", "latency_low_s", "latency_high_s", "size_bytes", "macs")
        seconds, low, high, size, macs = (np.concatenate([getattr(part, name) for part in parts]) for name in fields)
        return Costs(seconds, low, high, size, macs, None if self.watts is None else self.watts * seconds)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are priced, in the order of the columns of `layers_s`."""
        return tuple(layer.name for layer in self.model.setting.graph.priced)

    def layers_s(self, codes: Codes) -> Floats:
        """(count, layers) seconds of each layer's kernels, without what stands between layers."""
        return self.pace * self.model.price(self._widened(codes)).layers_s

    def layers_j(self, codes: Codes) -> Floats | None:
        """(count, layers) joules of each layer's kernels at the device's power; None where energy is not asked for."""
        return None if self.watts is None else self.watts * self.layers_s(codes)

    def narrowed(self, space: SearchSpace) -> LearnedPredictor:
        """The same predictor for codes of `space`, all of whose choices the space of the fit offers."""
        return replace(self, narrowing=Narrowing.of(space, self.model.setting.space))

    def corrected(self, measured: Sequence[tuple[Policy, float]]) -> LearnedPredictor:
        """The predictor after more whole-model measurements, (policy, seconds): exact there, and nearer to the truth around.

        A policy that is measured again counts with its last value.

        Raises:
            InputError: a policy that is not in the space.
        """
        codes = self.model.setting.space.encode(policy for policy, _ in measured)
        fresh = {tuple(row): float(seconds) for row, (_, seconds) in zip(codes.tolist(), measured, strict=True)}
        return replace(self, anchors=tuple({**dict(self.anchors), **fresh}.items()))

    def paced(self, dense_s: float) -> LearnedPredictor:
        """The predictor on a day on which the dense model takes `dense_s`: every model takes as much longer or shorter as that one.

        Of the change, what the noise of the profile explains is left out (positive-part shrinkage, James and Stein 1961). Others slow down
        by up to twice as much as the dense model, or not at all, so intervals grow by the whole of it.
        """
        if self.dense_s is None:
            return self
        change = float(np.log(dense_s / self.dense_s))
        if abs(change) <= self.report.noise_floor:
            return replace(self, pace=1.0)
        return replace(self, pace=float(np.exp(change - self.report.noise_floor**2 / change)))

    def _widened(self, codes: Codes) -> Codes:
        """(count, domains of the fit) the codes in the space of the fit, validated."""
        return self.narrowing.widen(codes) if self.narrowing else self.model.setting.space.check(codes)

    def _predict(self, codes: Codes) -> Costs:
        priced = self.model.price(codes)
        latency, width = self.pace * priced.latency_s, np.full(len(codes), self.half_width + abs(np.log(self.pace)))
        if self._corrections is not None and len(codes):
            shift, left = self._corrections.at(priced.layers_s)
            latency = latency * np.exp(shift)
            width = np.maximum(width * left, self.report.noise_floor)
            for row, seconds in self.anchors:
                latency[(codes == np.array(row)).all(axis=1)] = seconds
        low, high = latency * np.exp(-width), latency * np.exp(width)
        return Costs(latency, low, high, priced.size_bytes, priced.macs)

    @cached_property
    def _corrections(self) -> Corrections | None:
        if not self.anchors:
            return None
        codes = np.array([row for row, _ in self.anchors], dtype=np.int64)
        priced = self.model.price(codes)
        seconds = np.array([seconds for _, seconds in self.anchors])
        return Corrections.of(priced.layers_s, np.log(seconds / (self.pace * priced.latency_s)))


def _mape(errors: Floats) -> float | None:
    """Mean absolute error as a share of what was measured, of logs of measured over predicted; None where nothing could be held out."""
    return float(np.mean(np.abs(np.expm1(-errors)))) if len(errors) else None


def _held_out(samples: Samples, setting: Setting, whole: KernelModel) -> tuple[Floats, Floats]:
    """Log of measured over predicted: of each model, and of kernels in no training model, predicted without them.

    Only how smooth residuals are is taken from the `whole` model. Where there is a single model, nothing can be held out.
    """
    count = len(samples.codes)
    order = np.random.default_rng(0).permutation(count)
    folds = [fold.tolist() for fold in np.array_split(order, min(_FOLDS, count)) if len(fold)]
    if len(folds) < 2:
        return np.zeros(0), np.zeros(0)
    errors, kernel_errors = np.zeros(count), [np.zeros(0)]
    for fold in folds:
        rest = sorted(set(range(count)) - set(fold))
        model = FittedModel(samples.take(rest), setting, whole)
        held = samples.take(fold)
        errors[fold] = np.log(held.latency_s / model.price(held.codes).latency_s)
        kernels, times = distinct(*held.all_kernels())
        unseen = ~model.kernel_model.is_exact(kernels)
        kernel_errors.append(np.log(times / model.kernel_model.predict(kernels, use_exact=False))[unseen])
    return errors, np.concatenate(kernel_errors)


def _coverage(model: FittedModel) -> float:
    """Share of the dense latency in kernels whose class has coefficients of its own, and in glue that was observed."""
    dense = model.setting.space.dense[None]
    counted = model.ledger.count(dense)
    total = float(counted.layers[0, 0] + model.glue.predict(counted.glue)[0])
    bound = 0.0
    for table in model.ledger.tables:
        kernels = table.kernels(int(table.choices.keys(dense)[0]))
        bound += float(model.kernel_model.predict(kernels)[~model.kernel_model.learned(kernels)].sum())
    return 1.0 - bound / max(total, 1e-12)
