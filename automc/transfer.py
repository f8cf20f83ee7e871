"""A new device from few whole-model measurements, by what profiles of the same model on other devices taught (`automc.predict.fewshot`).

The features of a policy are what each known device is predicted to take for it, in logarithms, and its MACs and size. A known device is
exactly one of them, so the prior holds blends of known devices, and a new one is a blend, a constant, and what is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from automc.devices.device import Device, device_path
from automc.devices.measure import COMPARING, Measurement
from automc.errors import InputError
from automc.narrow import Narrowing
from automc.policy import Spec
from automc.predict.device_file import DeviceFile, known_devices
from automc.predict.fewshot import CLAIMABLE, FewShot, Prior
from automc.predict.kernels import Layouts
from automc.predict.model import FittedModel, Samples, Setting
from automc.predict.profile import Profile, facts_of, profile_key
from automc.predict.roofline import Floats
from automc.predict.sampling import stratified
from automc.predict.store import append, read_profile
from automc.predict.targets import Recorded, device_measures
from automc.profiling import Subject
from automc.protocols import Observer
from automc.result import measured_under
from automc.space import Codes, Domain, SearchSpace

__all__ = ["MIN_SHOTS", "Transfer", "transfer"]

MIN_SHOTS = 5
_ROUNDS = 8
_PRIOR_POLICIES = 500
"""Policies by whose predicted latencies the known devices are compared."""


@dataclass(frozen=True)
class Transfer:
    """What few measurements taught of a device.

    Attributes:
        known: names of the devices that the prior is of.
        shots: whole candidates measured, the dense model among them.
        error: root mean square leave-one-out error of the log latency.
        noise_floor: what the measurements repeat to.
        dense_s, low_s: the dense model as measured; the least predicted latency of a sampled policy.
        noisy, notes: whether the machine was busy with other work, and what the protocol could not have; see `Measurement`.
    """

    label: str
    known: tuple[str, ...]
    shots: int
    error: float
    noise_floor: float
    dense_s: float
    low_s: float
    noisy: bool = False
    notes: tuple[str, ...] = ()

    @property
    def may_claim(self) -> bool:
        """Whether the leave-one-out error allows to promise anything."""
        return self.error <= CLAIMABLE

    def told(self) -> str:
        """Sentences for people."""
        return " ".join([self._told(), *measured_under(self.noisy, self.notes)])

    def _told(self) -> str:
        start = (
            f"{self.label}: {self.shots} measurements and a prior of {len(self.known)} devices ({', '.join(self.known)})"
            f" predict each other to {100 * self.error:.1f} %, left out in turn (the measurements repeat to {100 * self.noise_floor:.1f} %)"
        )
        if self.may_claim:
            return f"{start}: {1e3 * self.dense_s:.3g} ms dense, down to about {1e3 * self.low_s:.3g} ms in this space."
        return (
            f"{start}. That is more than {100 * CLAIMABLE:.0f} %: nothing may be claimed of other models of this device."
            " Measure more, or take a full profile."
        )


def transfer(subject: Subject, shots: int, observer: Observer, *, seed: int = 0, wait_s: float = 0.0) -> Transfer:
    """Measure `shots` candidates of the subject on its device, whole, and fit the prior of the known devices to them.

    Raises:
        InputError: fewer than MIN_SHOTS, a device that cannot be measured, or fewer than two known devices with a profile of this model.
    """
    if shots < MIN_SHOTS:
        raise InputError(f"{shots} measurements are too few.", remedy="Take --few 20, and not less than 5.")
    if not device_measures(subject.device):
        raise InputError(f"{subject.device.name} cannot be measured from here.", remedy="Use --device ssh:USER@HOST.")
    observer.stage("read the known devices", None)
    profiles = _known_profiles(subject)
    if len(profiles) < 2:
        raise InputError(
            f"A prior needs two other devices with a profile of this model; {len(profiles)} found.",
            remedy="Run `automc profile` with the same model, input and space for other devices or --threads, or without --few for this one.",
        )
    codes = stratified(subject.offered.space, shots, seed)
    measured = _measured(subject, codes, observer, seed, wait_s)
    latency_s = np.array([measured.median_s(policy.digest) for policy in subject.offered.space.decode(codes)])
    observer.stage("fit the prior", None)
    known, describe = _prior(subject, profiles, seed)
    found = FewShot.fit(known, describe(codes), latency_s)
    sampled = found.predict(describe(_sampled(subject.offered.space, seed)))
    names = tuple(file.name for file, _, _ in profiles)
    told = Transfer(
        subject.label, names, len(codes), found.error, measured.noise_floor, float(latency_s[0]), float(sampled.min()),
        measured.noisy, measured.notes,
    )  # fmt: skip
    _keep(subject.device, subject.offered.space, codes, latency_s, told, observer)
    return told


def _known_profiles(subject: Subject) -> list[tuple[DeviceFile, Profile, SearchSpace]]:
    """Profiles of the same model, batch and kind of space on other devices."""
    arrays = [tensor.numpy() for tensor in subject.example]
    spaces: dict[Any, SearchSpace] = {}
    found = []
    for file in known_devices():
        if file.key == subject.device.key or not file.heads:
            continue
        there = Recorded(file)
        if there.capabilities() not in spaces:
            spaces[there.capabilities()] = replace(subject, device=there).offered.space
        space = spaces[there.capabilities()]
        profile = read_profile(file.path, profile_key(there, space, arrays, subject.dense_onnx))
        if profile is not None:
            found.append((file, profile, space))
    return found


def _measured(subject: Subject, codes: Codes, observer: Observer, seed: int, wait_s: float) -> Measurement:
    build, policies = subject.builder(), subject.offered.space.decode(codes)
    observer.stage("measure the device", float(len(policies)))
    models = {}
    for policy in policies:
        models[policy.digest] = build(policy)
        observer.advance()
    inputs = [tensor.numpy() for tensor in subject.example]
    return subject.device.measure(models, inputs, _ROUNDS, **COMPARING, seed=seed, wait_s=wait_s).steadied


def _prior(subject: Subject, profiles: Sequence[tuple[DeviceFile, Profile, SearchSpace]], seed: int) -> Any:
    """The prior, and what describes codes of the subject's space to it."""
    space = subject.offered.space
    united = _united([space, *(there for _, _, there in profiles)])
    graph, batch = subject.offered.graph, len(subject.example[0])
    widen = Narrowing.of(space, united).widen
    models = []
    for _, profile, _ in profiles:
        can = profile.capabilities
        layouts = Layouts(can.channel_block, can.channel_multiple)
        setting = Setting.of(subject.dense_onnx, graph, united, layouts, batch)
        models.append(FittedModel(Samples.of(profile, setting), setting))

    def raw(codes: Codes) -> Floats:
        priced = [model.price(widen(codes)) for model in models]
        columns = [*(each.latency_s for each in priced), priced[0].macs, priced[0].size_bytes]
        return np.log(np.stack(columns, axis=1))

    sampled = raw(_sampled(space, seed))
    center = sampled.mean(0)
    return Prior.of(sampled - center, np.exp(sampled[:, : len(models)].T)), lambda codes: raw(codes) - center


def _sampled(space: SearchSpace, seed: int) -> Codes:
    return space.sample(_PRIOR_POLICIES, np.random.default_rng(seed))


def _united(spaces: Sequence[SearchSpace]) -> SearchSpace:
    """A space that offers every choice of any of them."""
    choices: dict[tuple[str, str], dict[Spec | None, None]] = {}
    for space in spaces:
        for domain in space.domains:
            choices.setdefault((domain.target, domain.knob), {}).update(dict.fromkeys(domain.choices))
    return SearchSpace(tuple(Domain(target, knob, tuple(specs)) for (target, knob), specs in choices.items()))


def _keep(
    device: Device, space: SearchSpace, codes: Codes, latency_s: Floats, told: Transfer, observer: Observer
) -> None:
    shots = [
        [policy.to_json(), seconds] for policy, seconds in zip(space.decode(codes), latency_s.tolist(), strict=True)
    ]
    facts = {
        **facts_of(device),
        "told": asdict(told),
        "sentence": told.told(),
        "measured": shots,
    }
    append(device_path(device.key), [("few", facts)], observer)
