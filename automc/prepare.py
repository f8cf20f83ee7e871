"""Everything that comes before the search: load, trace, calibrate, profile, price, and feel out each single choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor, nn

from automc import __version__
from automc.budget import Budget
from automc.calibrate import Lazily, calibrate, diagonal_layers
from automc.clock import Clock
from automc.compression.apply import Stitcher
from automc.compression.criteria import FALLBACK, Pruning, fallbacks
from automc.compression.evidence import Evidence
from automc.devices.device import Device, cache_dir, digest
from automc.devices.exclusive import overheard
from automc.devices.simulated import Simulated
from automc.errors import InputError
from automc.evaluate.data import Data, gather
from automc.evaluate.divergence import sensitivities
from automc.evaluate.fast import fast_evaluator
from automc.evaluate.models import model_digest
from automc.evaluate.score import Score, outputs_are_logits
from automc.evaluate.worth import price_of_a_nat
from automc.export.floating import export_float
from automc.export.integer import Closure
from automc.export.onnx import build_onnx
from automc.export.verify import verify_dense
from automc.features import layer_features
from automc.joules import Joules
from automc.narrow import narrow
from automc.offer import Offer, offer
from automc.policy import Policy
from automc.predict.predictor import LearnedPredictor
from automc.predict.profile import profile_model
from automc.predict.simulated import Pricer, SimulatedPredictor
from automc.predict.targets import device_measures
from automc.protocols import Evaluator, Observer, Predictor, Problem
from automc.space import SearchSpace
from automc.tables import Tables
from automc.tracing.trace import Traced
from automc.trial import Cost

__all__ = ["CALIBRATION_SAMPLES", "Prepared", "export_dense", "exactly", "prepare"]

CALIBRATION_SAMPLES = 1024
RANGE_SAMPLES = 128
SENSITIVITY_SAMPLES = 128
VERIFY_BATCHES = 4
NOTICEABLE_PACE = 0.05
"""Change of the machine's speed since its profile that people are told of, as a share."""


@dataclass
class Prepared:
    """A model and device ready to be searched.

    Attributes:
        example: inputs of one batch of the deployment's size.
        logits: the outputs are logits of classes, to be compared by their softmax.
        ranges: calibration inputs that set the ranges of integer layers.
        dense_cost: the dense model's cost, its latency measured.
        joules: how energy is known, where the budget limits it and the device is not simulated.
    """

    data: Data
    score: Score
    traced: Traced
    stitcher: Stitcher
    device: Device
    space: SearchSpace
    example: tuple[Tensor, ...]
    ranges: tuple[Tensor, ...]
    dense_onnx: bytes
    dense_cost: Cost
    predictor: Pricer
    sensitivity: list[NDArray[np.float64]]
    logits: bool
    joules: Joules | None = None

    def build(self, model: nn.Module) -> bytes:
        """The ONNX file of a compressed model, as deployed on this device."""
        return _builder(self.device, self.example)(model)

    def evaluator(self, dense_score: float, observer: Observer) -> Evaluator:
        """The fastest evaluator that scores the dense model as deployed with `dense_score`, on the validation samples."""
        nat = price_of_a_nat(self.data, self.score, logits=self.logits)
        return fast_evaluator(self.stitcher, self.space, self.data.validation, self.score, dense_score, observer, nat)

    def problem(self, budget: Budget, predictor: Predictor, dense_score: float, n_trials: int) -> Problem:
        """What agents are told, without objectives and options; `budget` is resolved."""
        return Problem(
            space=self.space, budget=budget, predictor=predictor, sensitivity=self.sensitivity, dense_score=dense_score,
            n_trials=n_trials, features=layer_features(self.traced.graph, self.space),
        )  # fmt: skip


def prepare(
    model: nn.Module,
    data: Data,
    score: Score,
    device: Device,
    *,
    batch_size: int,
    space: str,
    pruning: Pruning | None = None,
    seed: int,
    profile_s: float,
    observer: Observer,
    clock: Clock,
    budget: Budget | None = None,
    quiet: Callable[[], object] = lambda: None,
    tables: Tables | None = None,
) -> Prepared:
    """Trace and calibrate the model, profile the device on it, and measure how much each single choice hurts.

    Factorisations that are predicted to gain nothing in latency, or in what else the budget limits, are not offered. `quiet` is
    called before the dense model is timed: it returns once nothing that was started aside loads the machine any more. `tables` are those
    of an earlier search of the same model and data: the losses of single choices are taken from there where it had the same choices.

    Raises:
        InputError: the model or the data cannot be used, or the criterion cannot rank any of the model's channels.
        UnknownNameError: no search space of that name.
    """
    clock.start("trace")
    observer.stage("trace the model", None)
    example = exactly(gather(data.calibration, batch_size), batch_size)
    offered = offer(model, example, device, space=space, names=data.input_names)
    traced = offered.traced
    clock.start("calibrate")
    observer.stage("calibrate", None)
    inputs, ranges = gather(data.calibration, CALIBRATION_SAMPLES), gather(data.calibration, RANGE_SAMPLES)
    dense = export_dense(traced, example, inputs, device)
    dense_onnx = dense.SerializeToString()
    logits = outputs_are_logits(data, score, traced.model(*example))
    evidence = Evidence(traced, inputs, logits=logits, seed=seed)
    stitcher = _stitcher(evidence, inputs, ranges, pruning or Pruning(seed=seed), device, dense, observer)
    clock.start("profile")
    build, arrays = _builder(device, example), [tensor.numpy() for tensor in example]
    predictor = _predictor(
        device, lambda policy: build(stitcher.apply(policy)), offered, arrays, dense_onnx, profile_s, seed, observer
    )
    predictor, joules = _energy(device, predictor, budget, arrays, dense_onnx, observer)
    searched = narrow(offered.space, predictor, budget, observer)
    if not len(searched):
        raise InputError(
            f"Nothing that the search space {space!r} offers is predicted to gain anything on {device.name}.",
            remedy="Take another --space.",
        )
    predictor = predictor.narrowed(searched)
    quiet()
    dense_cost = _dense_cost(device, predictor, searched, dense_onnx, arrays, observer)
    if isinstance(predictor, LearnedPredictor) and device_measures(device):
        predictor = _paced(predictor, dense_cost, observer)
    if joules is not None and device_measures(device):
        dense_cost = joules.told(dense_cost, dense_onnx)
    clock.start("sensitivities")
    losses = _known_losses(tables, searched)
    if losses is None:
        probe = [tensor[:SENSITIVITY_SAMPLES] for tensor in inputs]
        losses = sensitivities(stitcher, searched, probe, limit_s=profile_s / 2, logits=logits, observer=observer)
        stitcher.database.save()
    clock.stop()
    return Prepared(
        data=data, score=score, traced=traced, stitcher=stitcher, device=device, space=searched, example=example,
        ranges=ranges, dense_onnx=dense_onnx, dense_cost=dense_cost, predictor=predictor, sensitivity=losses,
        logits=logits, joules=joules,
    )  # fmt: skip


def _stitcher(
    evidence: Evidence,
    inputs: Sequence[Tensor],
    ranges: Sequence[Tensor],
    pruning: Pruning,
    device: Device,
    dense: onnx.ModelProto,
    observer: Observer,
) -> Stitcher:
    """What compresses the traced model, calibrated on `inputs` once that is needed; what it cannot look at is said."""
    traced, count, simulated = evidence.traced, len(inputs[0]), isinstance(device, Simulated)
    batches = [tuple(t[i : i + 64] for t in inputs) for i in range(0, count, 64)]
    for name in diagonal_layers(traced.graph):
        observer.message(f"{name} reads too much for a full covariance: only its diagonal is kept.")
    if silent := fallbacks(pruning, evidence):
        observer.message(f"{pruning.criterion!r} says nothing about {', '.join(silent)}: ranked by {FALLBACK!r}.")
    return Stitcher(
        traced, Lazily(lambda: calibrate(traced, batches, count)), ranges,
        reduce_range=device.capabilities().reduce_range,
        closure=None if simulated else Closure(dense),
        carries=not simulated,
        folder=cache_dir() / "databases" / digest(__version__, repr(pruning), model_digest(traced.model), *map(_bytes, inputs)),
        pruning=pruning, evidence=evidence,
    )  # fmt: skip


def _predictor(
    device: Device,
    build: Callable[[Policy], bytes],
    offered: Offer,
    arrays: list[NDArray[Any]],
    dense_onnx: bytes,
    profile_s: float,
    seed: int,
    observer: Observer,
) -> Pricer:
    """What prices policies: learned from a profile, or the closed form of a simulated device."""
    graph, space, batch_size = offered.graph, offered.space, len(arrays[0])
    if isinstance(device, Simulated):
        return SimulatedPredictor.of(device.accelerator, graph, space, dense_onnx, batch_size)
    profile = profile_model(
        device, build, graph, space, arrays, dense_onnx, time_limit_s=profile_s, seed=seed, observer=observer
    )
    return LearnedPredictor.fit(profile, graph, space, dense_onnx, batch_size)


def _paced(predictor: LearnedPredictor, dense_cost: Cost, observer: Observer) -> LearnedPredictor:
    """The predictor at the pace of today, by what the dense model takes."""
    paced = predictor.paced(dense_cost.latency_s or 0.0)
    if abs(paced.pace - 1.0) > NOTICEABLE_PACE:
        observer.message(
            f"Models take {paced.pace:.2f} x what they took when the device was profiled, by the dense one; predictions are scaled."
        )
    return paced


def _energy(
    device: Device,
    predictor: Pricer,
    budget: Budget | None,
    arrays: list[NDArray[Any]],
    dense_onnx: bytes,
    observer: Observer,
) -> tuple[Pricer, Joules | None]:
    """The predictor with energy where the budget limits it, and how that is known; None where it need not be, or is simulated."""
    if not budget or not budget.limit("energy_j") or not isinstance(predictor, LearnedPredictor):
        return predictor, None
    watts, joules = _watts(Joules.of(device, arrays), dense_onnx, observer)
    return replace(predictor, watts=watts), joules


def _watts(joules: Joules, dense_onnx: bytes, observer: Observer) -> tuple[float, Joules]:
    """The power above idle by which policies are priced, that of the dense model or the stated one, and how energy is known from here on.

    Raises:
        InputError: the counter says nothing clear of the dense model, and no power is stated.
    """
    observer.stage("measure the energy", None)
    with overheard() as heard:
        energy = joules.measure(dense_onnx)
    if energy is None:
        watts = joules.stated_w()
        if joules.meter is not None:
            observer.message(joules.unclear, "warning")
        observer.message(f"Energy is predicted as {watts:g} W above idle, as stated, times the latency.")
        return watts, replace(joules, meter=None)
    observer.message(
        f"Energy by {energy.meter}: {energy.idle_w:.1f} W idle, {energy.busy_w:.1f} W while the dense model runs,"
        f" windows of {energy.window_s:.1f} s; idle is subtracted."
    )
    for note in heard:
        observer.message(f"The energy may be off: {note}.", "warning")
    return energy.power_w, joules


def _builder(device: Device, example: Sequence[Tensor]) -> Callable[[nn.Module], bytes]:
    reduce_range, integers = device.capabilities().reduce_range, not isinstance(device, Simulated)
    return lambda model: build_onnx(model, example, reduce_range=reduce_range, integers=integers)


def export_dense(
    traced: Traced, example: Sequence[Tensor], inputs: Sequence[Tensor], device: Device
) -> onnx.ModelProto:
    """The dense model as ONNX for batches of the size of `example`; what it computes is compared with the model's on some of `inputs`.

    Raises:
        InputError: the model's code takes another way for them.
    """
    dense = export_float(traced.model, example)
    verify_dense(device.session(dense.SerializeToString()), traced.model, _spread(inputs, len(example[0])))
    return dense


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def exactly(inputs: Sequence[Tensor], batch_size: int) -> tuple[Tensor, ...]:
    """The inputs with exactly `batch_size` samples, repeated from the start where there are fewer."""
    return tuple(t.repeat(-(-batch_size // len(t)), *[1] * (t.dim() - 1))[:batch_size].contiguous() for t in inputs)


def _spread(inputs: Sequence[Tensor], batch_size: int) -> list[tuple[Tensor, ...]]:
    """A few batches of the deployment's size from all over the inputs."""
    starts = range(0, max(1, len(inputs[0]) - batch_size + 1), max(1, len(inputs[0]) // VERIFY_BATCHES))
    return [exactly([tensor[start:] for tensor in inputs], batch_size) for start in starts]


def _dense_cost(
    device: Device,
    predictor: Pricer,
    space: SearchSpace,
    dense_onnx: bytes,
    arrays: list[NDArray[Any]],
    observer: Observer,
) -> Cost:
    """The dense model's cost today: a cached profile may be of another day."""
    predicted = predictor.predict(space.encode([Policy()]))[0]
    if not device_measures(device):
        return predicted
    observer.stage("measure the dense model", None)
    measurement = device.measure({"dense": dense_onnx}, arrays)
    return predicted.with_measured_latency(measurement.median_s("dense"), measurement.interval_s("dense"))


def _known_losses(tables: Tables | None, space: SearchSpace) -> list[NDArray[np.float64]] | None:
    """Per domain (choices,) the losses of an earlier search that had the same choices; None where there was none."""
    if tables is None or tables.domains != space.domains:
        return None
    return [np.array(loss) for loss in tables.loss]
