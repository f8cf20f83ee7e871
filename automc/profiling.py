"""Measure a device before anything is searched for: probes first, then candidates of a model. What a kernel takes depends on shapes,
not on what weights are worth, so nothing is solved for: channels go by their norm, and a search that follows finds the same profile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
from torch import Tensor, nn

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.criteria import Pruning
from automc.devices.device import ON_GPU, ON_PROCESSOR, Array, Device, device_path
from automc.devices.energy import find_meter
from automc.devices.exclusive import overheard
from automc.devices.probe_models import probe_set
from automc.devices.probes import Probed
from automc.export.floating import export_float
from automc.export.integer import Closure
from automc.export.onnx import build_onnx
from automc.joules import Joules
from automc.offer import Offer, offer
from automc.policy import Policy
from automc.predict.device_file import keep_device, probed
from automc.predict.predictor import LearnedPredictor
from automc.predict.profile import Profile, await_idle, profile_model
from automc.predict.store import append, records
from automc.prepare import exactly
from automc.protocols import Observer
from automc.result import PredictorReport

__all__ = ["Subject", "probe_device", "profile_subject"]


@dataclass(frozen=True)
class Subject:
    """A model to profile a device with.

    Attributes:
        example: inputs (batch, ...) of one batch; what they hold makes no difference.
        device: whose capabilities decide what the space offers.
        names: the keywords that the model takes its inputs by, none where it takes them in order.
        label: what people call the model.
    """

    model: nn.Module
    example: tuple[Tensor, ...]
    device: Device
    space: str = "default"
    names: tuple[str, ...] = ()
    label: str = ""

    @classmethod
    def of_batch(cls, model: nn.Module, inputs: Sequence[Tensor], batch_size: int, device: Device, space: str = "default", names: tuple[str, ...] = (), label: str = "") -> Subject:  # fmt: skip
        """The subject with exactly `batch_size` of the inputs."""
        return cls(model, exactly(inputs, batch_size), device, space, names, label)

    @cached_property
    def offered(self) -> Offer:
        """What the model offers on the device."""
        return offer(self.model, self.example, self.device, space=self.space, names=self.names)

    @cached_property
    def dense_onnx(self) -> bytes:
        """The dense model's file."""
        return bytes(export_float(self.offered.traced.model, self.example).SerializeToString())

    def builder(self) -> Callable[[Policy], bytes]:
        """From a policy to the file of a model of its shapes."""
        traced, reduce_range = self.offered.traced, self.device.capabilities().reduce_range
        stats = calibrate(traced, [self.example], len(self.example[0]), memory_bytes=0)
        pruning = Pruning("l1", compensate=False)
        closure = Closure(onnx.load_from_string(self.dense_onnx))
        stitcher = Stitcher(traced, stats, self.example, reduce_range=reduce_range, closure=closure, pruning=pruning)
        return lambda policy: build_onnx(stitcher.apply(policy), self.example, reduce_range=reduce_range)


def probe_device(device: Device, observer: Observer, *, again: bool = False, wait_s: float = 0.0) -> list[Probed]:
    """What the probes say of a device; those that were answered before are read, unless `again`. `wait_s`: how long to wait for idle cores."""
    path = device_path(device.key)
    known = {} if again else {(found.group, found.name): found for found in probed(path)}
    missing = [probe for probe in probe_set() if (probe.group, probe.name) not in known]
    if missing:
        observer.stage("probe the device", float(len(missing)))
        busy = await_idle(device, lambda: missing[0].model, missing[0].arrays(), wait_s)
        with overheard() as heard:
            keep_device(path, device, missing, observer)
        _warn("The probes", [*busy, *heard], observer)
    return probed(path, observer)


def profile_subject(
    subject: Subject, observer: Observer, *, time_limit_s: float = 200.0, wait_s: float = 0.0, seed: int = 0, again: bool = False
) -> tuple[Profile, PredictorReport]:  # fmt: skip
    """All candidates of a subject that the time allows, measured or (unless `again`) read, and how well they predict each other.

    Raises:
        InputError: the model cannot be run on the example.
        AutomcError: no candidate could be built.
    """
    observer.stage("trace the model", None)
    arrays = [tensor.numpy() for tensor in subject.example]
    offered, dense = subject.offered, subject.dense_onnx
    profile = profile_model(
        subject.device, subject.builder(), offered.graph, offered.space, arrays, dense,
        time_limit_s=time_limit_s, seed=seed, observer=observer, complete=True, again=again, label=subject.label, wait_s=wait_s,
    )  # fmt: skip
    _keep_energy(subject, profile, arrays, observer)
    observer.stage("fit the predictor", None)
    learned = LearnedPredictor.fit(profile, offered.graph, offered.space, dense, len(subject.example[0]))
    return profile, learned.report


def _warn(what: str, notes: Sequence[str], observer: Observer) -> None:
    if notes:
        observer.message(f"{what} may be off: {'; '.join(notes)}.", "warning")


def _keep_energy(subject: Subject, profile: Profile, arrays: list[Array], observer: Observer) -> None:
    """What the dense model takes by the machine's counters, once; where there are none, that is said."""
    path = device_path(subject.device.key)
    on_board = subject.device.name in ON_PROCESSOR or subject.device.name.startswith(ON_GPU)
    if not on_board or any(r["kind"] == "energy" and r["key"] == profile.key for r in records(path)):
        return
    meter, why = find_meter(subject.device.name)
    if meter is None:
        observer.message(why)
        return
    observer.stage("measure the energy", None)
    joules = Joules(subject.device, arrays, meter, None)
    with overheard() as heard:
        energy = joules.measure(subject.dense_onnx)
    _warn("The energy", heard, observer)
    if energy is None:
        observer.message(joules.unclear, "warning")
        return
    append(path, [("energy", {"key": profile.key, "label": subject.label, **energy.to_json()})], observer)
