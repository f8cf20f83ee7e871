"""Finalists measured on the device, interleaved with the dense model: what is promised is what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import nn

from automc.budget import Budget
from automc.compression.carriers import detach
from automc.compression.quantize import float_model
from automc.compression.recurrent import bake
from automc.devices.energy import Energy
from automc.devices.exclusive import overheard
from automc.devices.measure import Measurement
from automc.evaluate.running import Deployed
from automc.evaluate.worth import Judge
from automc.export.verify import verify
from automc.macs import count_macs
from automc.policy import Policy
from automc.predict.profile import now, told_of
from automc.predict.targets import device_measures
from automc.prepare import Prepared
from automc.result import Certificate, Finalist
from automc.trial import Cost, Source

__all__ = ["Candidate", "Certified", "Certifier", "Failed", "settled"]

Stage = Literal["dense", "finalist", "recovered"]
_COUNTED: Mapping[str, Source] = {"size_bytes": "measured", "macs": "counted"}
_SOURCE: Mapping[str, Source] = {"latency_s": "measured", **_COUNTED}

MOST_REPEATS = 2
"""How often a model is measured on whose interval spans the limit."""


@dataclass(frozen=True)
class Candidate:
    """A compressed model that may be handed over.

    Attributes:
        predicted: what it was expected to cost before anything like it had been measured.
        before_recovery: its (validation, test) score before recovery, if it was recovered.
    """

    policy: Policy
    model: nn.Module
    predicted: Cost | None = None
    stage: Stage = "finalist"
    before_recovery: tuple[float, float | None] | None = None


@dataclass(frozen=True)
class Certified:
    """A measured candidate, with its file and its certificate."""

    candidate: Candidate
    finalist: Finalist
    certificate: Certificate
    onnx: bytes


@dataclass(frozen=True)
class Failed:
    """A candidate that could not be exported, measured or scored, and why."""

    candidate: Candidate
    reason: str


class Certifier:
    """Exports, measures and scores finalists against one budget."""

    def __init__(self, prepared: Prepared, budget: Budget, batch_size: int, seed: int) -> None:
        self.prepared = prepared
        self.budget = budget
        self.batch_size = batch_size
        self.seed = seed
        self._judge = Judge(prepared.traced.model, prepared.data, prepared.score, logits=prepared.logits)
        self.dense: Finalist = self._dense()
        self._dense_energy: Energy | None = None
        self._heard: list[str] = []

    def certify(self, candidates: Sequence[Candidate]) -> list[Certified | Failed]:
        """Measure candidates and the dense model in the same rounds, and score the exported files.

        A candidate that cannot be exported, measured or scored is reported as such, and costs the others nothing.

        Raises:
            Exception: the dense model cannot be measured.
        """
        with overheard() as self._heard:
            self._dense_energy = self._energy_again()
        built: dict[str, tuple[Candidate, bytes]] = {}
        failed: list[Certified | Failed] = []
        for candidate in candidates:
            try:
                built[f"{candidate.policy.digest}-{candidate.stage}"] = candidate, self._export(candidate)
            except Exception as error:
                failed.append(Failed(candidate, f"{type(error).__name__}: {error}"))
        if not built:
            return failed
        models = {"dense": self.prepared.dense_onnx, **{name: onnx for name, (_, onnx) in built.items()}}
        decided: Mapping[str, Measurement | str | None] = dict.fromkeys(built)
        if device_measures(self.prepared.device):
            decided = self._measured(models)
        return [*failed, *(self._try(c, name, onnx, decided[name]) for name, (c, onnx) in built.items())]

    def _measured(self, models: Mapping[str, bytes]) -> dict[str, Measurement | str]:
        """Model -> its rounds and the dense model's; where not all can be measured, each by itself, and why one cannot.

        Raises:
            Exception: the dense model cannot be measured either.
        """
        names = [name for name in models if name != "dense"]
        try:
            return {**self._settled(models, names)}
        except Exception:
            self._rounds({"dense": models["dense"]})
        found: dict[str, Measurement | str] = {}
        for name in names:
            try:
                found |= self._settled({"dense": models["dense"], name: models[name]}, [name])
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
        return found

    def _settled(self, models: Mapping[str, bytes], names: Sequence[str]) -> dict[str, Measurement]:
        return settled(self._rounds(models), names, self._latency_limit, partial(self._again, models))

    def _rounds(self, models: Mapping[str, bytes]) -> Measurement:
        return self.prepared.device.measure(models, [t.numpy() for t in self.prepared.example], seed=self.seed)

    def _again(self, models: Mapping[str, bytes], names: Sequence[str], time: int) -> Measurement:
        chosen = {name: models[name] for name in ("dense", *names)}
        inputs = [tensor.numpy() for tensor in self.prepared.example]
        return self.prepared.device.measure(chosen, inputs, seed=self.seed + time)

    def _latency_limit(self, measured: Measurement) -> float:
        return next((limit.value for limit in self._limits(measured) if limit.metric == "latency_s"), math.inf)

    def _price(self, policy: Policy) -> Cost:
        return self.prepared.predictor.predict(self.prepared.space.encode([policy]))[0]

    def _export(self, candidate: Candidate) -> bytes:
        onnx = self.prepared.build(candidate.model)
        self.prepared.device.session(onnx)
        return onnx

    def _try(
        self, candidate: Candidate, name: str, onnx: bytes, measured: Measurement | str | None
    ) -> Certified | Failed:
        if isinstance(measured, str):
            return Failed(candidate, measured)
        try:
            return self._certified(candidate, name, onnx, measured)
        except Exception as error:
            return Failed(candidate, f"{type(error).__name__}: {error}")

    def _energy_again(self) -> Energy | None:
        """What the counter says of the dense model, where finalists are held against a share of its energy."""
        limit, joules = self.budget.limit("energy_j"), self.prepared.joules
        return joules.measure(self.prepared.dense_onnx) if joules and limit and limit.relative else None

    def _limits(self, measured: Measurement | None) -> Budget:
        """The budget in absolute values; shares of the dense model's cost are of what was measured beside the finalists."""
        return self.budget.resolve(self._dense_now(measured))

    def _dense_now(self, measured: Measurement | None) -> Cost:
        """The dense model's cost by some rounds, its energy by the counter just before them or by their latency; as priced without rounds."""
        cost, joules = self.dense.cost, self.prepared.joules
        if measured is None:
            return cost
        cost = cost.with_measured_latency(measured.median_s("dense"), measured.interval_s("dense"))
        if self._dense_energy is not None:
            return cost.with_energy(self._dense_energy.joules, "measured")
        return cost if joules is None or joules.meter is not None else joules.stated(cost)

    def _certified(self, candidate: Candidate, name: str, onnx: bytes, measured: Measurement | None) -> Certified:
        """A candidate by the rounds that it was measured in, or as priced where nothing can be measured from here."""
        limits, dense = self._limits(measured), self._dense_now(measured)
        with overheard() as heard:
            cost = self._cost(candidate, onnx, measured, name)
        if measured is not None:
            measured = measured.disturbed([*self._heard, *heard])
        (latency_s, interval_s), (dense_s, dense_interval_s) = _latency(cost), _latency(dense)
        error = verify(self.prepared.device.session(onnx), candidate.model, self.prepared.example)
        validation, test = self.scores(onnx)
        holds, away = limits.holds(cost), self._judge.divergence(candidate.model)
        finalist = Finalist(
            policy=candidate.policy,
            cost=cost,
            predicted_latency_s=None if candidate.predicted is None else candidate.predicted.latency_s,
            validation=validation,
            test=test,
            holds=holds,
            stage=candidate.stage,
            before_recovery=candidate.before_recovery,
            noisy=measured is not None and measured.noisy,
            notes=measured.notes if measured is not None else (),
            divergence=away,
            worth=self._judge.worth(validation, away),
        )
        certificate = Certificate(
            limits={limit.metric: limit.value for limit in limits},
            batch_size=self.batch_size,
            latency_s=latency_s,
            latency_interval_s=interval_s,
            dense_latency_s=dense_s,
            dense_latency_interval_s=dense_interval_s,
            size_bytes=len(onnx),
            holds=holds,
            noise_floor=measured.noise_floor if measured else self.prepared.predictor.report.noise_floor,
            environment=self._environment(measured),
            export_error=error,
            rounds_s={key: measured.rounds_s[key] for key in (name, "dense")} if measured else {},
            source=cost.source["latency_s"],
            energy_j=cost.energy_j,
            energy_source=cost.source.get("energy_j"),
            dense_energy_j=dense.energy_j,
            watts=self.prepared.joules.watts
            if self.prepared.joules and cost.source.get("energy_j") == "predicted"
            else None,
        )
        return Certified(candidate, finalist, certificate, onnx)

    def _environment(self, measured: Measurement | None) -> Mapping[str, str]:
        """The device, and how and when it was measured: in some rounds now, or in the profile that prices it."""
        state = self.prepared.predictor.origin if measured is None else told_of(measured, now())
        return {**self.prepared.device.environment(), **state}

    def _cost(self, candidate: Candidate, onnx: bytes, measured: Measurement | None, name: str) -> Cost:
        size_bytes, macs = float(len(onnx)), _macs(candidate.model, self.prepared)
        if measured is None:
            priced = self._price(candidate.policy)
            return replace(priced, size_bytes=size_bytes, macs=macs, source={**priced.source, **_COUNTED})
        median_s, interval_s = measured.median_s(name), measured.interval_s(name)
        cost = Cost(median_s, None, size_bytes, macs, interval_s, _SOURCE)
        return cost if self.prepared.joules is None else self.prepared.joules.told(cost, onnx)

    def scores(self, onnx: bytes) -> tuple[float, float | None]:
        """(validation, test) score of an exported model, run by the device's runtime; test None where there is none."""
        deployed = Deployed(
            self.prepared.device.session(onnx),
            self.batch_size,
            self.prepared.traced.outputs,
            self.prepared.data.input_names,
        )
        data = self.prepared.data
        validation = float(self.prepared.score(deployed, data.validation))
        return validation, None if data.test is None else float(self.prepared.score(deployed, data.test))

    def _dense(self) -> Finalist:
        validation, test = self.scores(self.prepared.dense_onnx)
        cost = self.prepared.dense_cost
        measured = replace(
            cost,
            size_bytes=float(len(self.prepared.dense_onnx)),
            macs=_macs(self.prepared.traced.model, self.prepared),
            source={**cost.source, **_COUNTED},
        )
        holds = self.budget.resolve(measured).holds(measured)
        predicted = self._price(Policy())
        worth = self._judge.worth(validation, 0.0)
        return Finalist(
            Policy(), measured, predicted.latency_s, validation, test, holds, "dense", divergence=0.0, worth=worth
        )


def _latency(cost: Cost) -> tuple[float, tuple[float, float]]:
    """The latency of a cost and its interval, as wide as nothing where there is none."""
    latency_s = cost.latency_s or 0.0
    return latency_s, cost.latency_interval_s or (latency_s, latency_s)


def settled(
    measured: Measurement,
    names: Sequence[str],
    limit_s: Callable[[Measurement], float],
    again: Callable[[Sequence[str], int], Measurement],
) -> dict[str, Measurement]:
    """Model -> its rounds and the dense model's; one whose interval spans the limit is measured on, to know on which side it is.

    Args:
        limit_s: the latency that some rounds are held against: a share of the dense latency is of the one in the same rounds.
        again: measures the dense model and the named ones once more, the n-th time.
    """
    found = dict.fromkeys(names, measured)
    for time in range(1, MOST_REPEATS + 1):
        undecided = []
        for name, rounds in found.items():
            low, high = rounds.interval_s(name)
            if low <= limit_s(rounds) < high:
                undecided.append(name)
        if not undecided:
            break
        more = again(undecided, time)
        found |= {name: found[name].continued(more, ("dense", name)) for name in undecided}
    return found


def _macs(model: nn.Module, prepared: Prepared) -> float:
    """Multiply-accumulates of one sample, by the model as it stands, factors and all."""
    plain = float_model(model)
    detach(plain)
    bake(plain)
    return count_macs(plain, [tensor[:1] for tensor in prepared.example])
