"""Profile a device on a model: whole compressed candidates, timed kernel by kernel and as a whole, kept as raw rounds."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from automc import __version__
from automc.devices.device import Array, Capabilities, Device, NodeTime, device_path, digest
from automc.devices.exclusive import overheard
from automc.devices.measure import COMPARING, Measurement
from automc.errors import AutomcError, MissingError
from automc.graph import LayerGraph
from automc.policy import Policy
from automc.predict.attribute import Place, attribute
from automc.predict.sampling import stratified
from automc.predict.store import (
    append,
    keep_candidate,
    keep_failure,
    read_candidates,
    read_profile,
    records,
    write_profile,
)
from automc.protocols import SILENT, Observer
from automc.space import SearchSpace

__all__ = [
    "EXPORTS",
    "Profile",
    "ProfiledModel",
    "Shelf",
    "await_idle",
    "facts_of",
    "measure_policies",
    "now",
    "profile_key",
    "profile_model",
    "subject",
    "told_of",
]

MAX_CANDIDATES = 48
MIN_CANDIDATES = 8
_KERNEL_REPEATS = 4
_MOST_REPEATS = 32
_KERNEL_S = 0.15
"""Running time of a candidate whose kernels are timed, and once more as long for the runs without: short models run as often as _MOST_REPEATS."""
_ROUNDS = 8
EXPORTS = "5"
"""Raised when exported files change so that runtimes run other kernels, or when they are timed or told apart in another way: older profiles do not count."""
_BUILD_SHARE = 0.6
"""Share of the time limit for building candidates and timing their kernels; the rest is for the interleaved rounds."""


@dataclass(frozen=True)
class ProfiledModel:
    """One compressed model as measured: its kernels, and which layer (and factor) each of them is."""

    policy: Policy
    size_bytes: int
    nodes: tuple[NodeTime, ...]
    places: tuple[Place | None, ...]


@dataclass(frozen=True)
class Profile:
    """What was measured of one model on one device. `measurement.rounds_s` is keyed by policy digest.

    Attributes:
        label: what people call the model; "" where nobody said.
        failed: (policy digest, reason) of candidates that could not be built, or that the runtime could not run.
    """

    key: str
    device_key: str
    environment: Mapping[str, str]
    capabilities: Capabilities
    batch_size: int
    candidates: tuple[ProfiledModel, ...]
    measurement: Measurement
    seconds: float
    label: str = ""
    failed: tuple[tuple[str, str], ...] = ()

    def latency_s(self, candidate: ProfiledModel) -> float:
        """The measured latency of a candidate's whole model."""
        return self.measurement.steadied.median_s(candidate.policy.digest)

    @property
    def noise_floor(self) -> float:
        """What these latencies repeat to, as a fraction."""
        return self.measurement.steadied.noise_floor


def profile_model(
    device: Device,
    build: Callable[[Policy], bytes],
    graph: LayerGraph,
    space: SearchSpace,
    inputs: Sequence[Array],
    dense_onnx: bytes,
    *,
    time_limit_s: float = 45.0,
    seed: int = 0,
    observer: Observer = SILENT,
    complete: bool = False,
    again: bool = False,
    label: str = "",
    wait_s: float = 0.0,
) -> Profile:
    """The profile of a model on a device: read from the cache where there is one, otherwise measured and kept there.

    `inputs` are those of one batch, batch first. Fewer candidates are measured where time is short, at least MIN_CANDIDATES (or the whole
    space, where it is smaller). Candidates are kept as they are measured, so that a profile that was broken off goes on where it ended.

    Args:
        complete: measure the candidates too that an earlier profile had no time for; where there are fewer in the end, that one stays.
        again: measure all of them anew, also where a profile is kept; the new one takes its place.
        label: what people call the model.
        wait_s: how long to wait for idle cores.

    Raises:
        AutomcError: no candidate could be built; the reason is the first one's.
    """
    key = profile_key(device, space, inputs, dense_onnx)
    path = device_path(device.key)
    cached = None if again else read_profile(path, key, observer)
    if cached is not None and not complete:
        return cached
    policies = space.decode(stratified(space, MAX_CANDIDATES, seed))
    if cached is not None and len(cached.candidates) + len(cached.failed) >= len(policies):
        return cached
    if not any(record["kind"] == "device" for record in records(path)):
        append(path, [("device", facts_of(device))], observer)  # also what is broken off has an owner
    shelf = Shelf({} if again else read_candidates(path, key), path, key, observer)
    profile = measure_policies(
        device, build, graph, policies, inputs, key,
        time_limit_s=time_limit_s, seed=seed, observer=observer, shelf=shelf, wait_s=wait_s,
    )  # fmt: skip
    if cached is not None and len(profile.candidates) < len(cached.candidates):
        observer.message(
            f"There was time for {len(profile.candidates)} candidates: the profile of {len(cached.candidates)} candidates from before is kept.",
            "warning",
        )
        return cached
    profile = replace(profile, label=label)
    write_profile(path, profile, observer)
    return profile


def measure_policies(
    device: Device,
    build: Callable[[Policy], bytes],
    graph: LayerGraph,
    policies: Sequence[Policy],
    inputs: Sequence[Array],
    key: str,
    *,
    time_limit_s: float,
    seed: int = 0,
    observer: Observer = SILENT,
    shelf: Shelf | None = None,
    wait_s: float = 0.0,
) -> Profile:
    """The policies' models, first kernel by kernel, then whole and interleaved; as many as the time allows.

    What the `shelf` holds is not timed kernel by kernel again, and what is measured is put there. `wait_s`, which does not count as time,
    is how long to wait for idle cores, before the kernels and before the whole models.

    Raises:
        AutomcError: none of them could be built; the reason is the first one's.
    """
    observer.stage("profile the device", 2.0 * len(policies))
    shelf = shelf or Shelf()
    missing = next((policy for policy in policies if policy.digest not in shelf.known), None)
    busy = await_idle(device, partial(build, missing), inputs, wait_s) if missing is not None else ()
    begin = time.monotonic()
    deadline = begin + _BUILD_SHARE * time_limit_s
    with overheard() as heard:
        built, failed = _build(device, build, graph, policies, inputs, deadline, observer, shelf)
    left = max(time_limit_s - (time.monotonic() - begin), 2.0)
    models = {candidate.policy.digest: model for candidate, model in built}
    options = {**COMPARING, "time_limit_s": left, "seed": seed, "wait_s": wait_s}
    measurement = device.measure(models, inputs, _ROUNDS, **options)
    measurement = measurement.disturbed([*busy, *heard])
    observer.advance(float(len(policies)))
    return Profile(
        key, device.key, {**device.environment(), "measured_at": now()}, device.capabilities(), len(inputs[0]),
        tuple(candidate for candidate, _ in built), measurement, time.monotonic() - begin, failed=failed,
    )  # fmt: skip


def await_idle(device: Device, build: Callable[[], bytes], inputs: Sequence[Array], wait_s: float) -> tuple[str, ...]:
    """Wait for idle cores wherever the device is, and time a model to know; sentences on what kept them busy, none where they are idle.

    Raises:
        MissingError: the device itself is not there.
    """
    if not wait_s:
        return ()
    try:
        found = device.measure({"first": build()}, inputs, 1, retries=3, min_time_s=0.0, wait_s=wait_s)
    except MissingError:
        raise
    except Exception:  # a model that cannot be built or run is said where it is measured
        return ()
    return (found.notes or ("the machine was busy",)) if found.noisy else ()


def now() -> str:
    """The time of a measurement, as it stands in records."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def told_of(measured: Measurement, measured_at: str) -> dict[str, str]:
    """How and when something was measured, as certificates say it."""
    return {"noisy": str(measured.noisy).lower(), "notes": "; ".join(measured.notes), "measured_at": measured_at}


def facts_of(device: Device) -> dict[str, Any]:
    """Who a device is, as its file says it."""
    return {
        "device_key": device.key,
        "environment": {**device.environment(), "measured_at": now()},
        "capabilities": dataclasses.asdict(device.capabilities()),
    }


def profile_key(device: Device, space: SearchSpace, inputs: Sequence[Array], dense_onnx: bytes) -> str:
    """Identifies device, model, batch and space: what a profile may be reused for."""
    return digest(device.key, subject(space, inputs, dense_onnx))


def subject(space: SearchSpace, inputs: Sequence[Array], dense_onnx: bytes) -> str:
    """Identifies model, batch and space, on whatever device."""
    shapes = json.dumps([list(array.shape) for array in inputs])
    domains = [[d.target, d.knob, [spec and dataclasses.asdict(spec) for spec in d.choices]] for d in space.domains]
    return digest(__version__, EXPORTS, dense_onnx, shapes, json.dumps(domains))


@dataclass
class Shelf:
    """Candidates that were measured before, by policy digest, and the file to which new ones go."""

    known: Mapping[str, ProfiledModel] = field(default_factory=dict)
    path: Path | None = None
    key: str = ""
    observer: Observer = SILENT

    def put(self, candidate: ProfiledModel) -> None:
        """Keep a candidate."""
        if self.path is not None:
            keep_candidate(self.path, self.key, candidate, self.observer)

    def put_failure(self, policy: Policy, reason: str) -> None:
        """Keep why there is no candidate."""
        if self.path is not None:
            keep_failure(self.path, self.key, policy, reason, self.observer)


def _build(
    device: Device,
    build: Callable[[Policy], bytes],
    graph: LayerGraph,
    policies: Sequence[Policy],
    inputs: Sequence[Array],
    deadline: float,
    observer: Observer,
    shelf: Shelf,
) -> tuple[list[tuple[ProfiledModel, bytes]], tuple[tuple[str, str], ...]]:
    names = [layer.module for layer in graph.priced]
    built: list[tuple[ProfiledModel, bytes]] = []
    failures: list[tuple[Policy, Exception]] = []
    for policy in policies:
        if len(built) >= MIN_CANDIDATES and time.monotonic() > deadline:
            break
        try:
            model = build(policy)
            candidate = shelf.known.get(policy.digest)
            if candidate is None:
                nodes = device.node_times(model, inputs, _repeats(built))
                candidate = ProfiledModel(policy, len(model), tuple(nodes), tuple(attribute(model, nodes, names)))
                shelf.put(candidate)
        except MissingError:  # the device itself is not there
            raise
        except Exception as error:  # one candidate that cannot be built or run is said and left out
            failures.append((policy, error))
            shelf.put_failure(policy, str(error))
            observer.message(f"A candidate could not be profiled: {error}", "warning")
            continue
        built.append((candidate, model))
        observer.advance()
    if not built:
        raise AutomcError(f"No candidate could be profiled: {failures[0][1]}") from failures[0][1]
    return built, tuple((policy.digest, str(error)) for policy, error in failures)


def _repeats(built: Sequence[tuple[ProfiledModel, bytes]]) -> int:
    """How often to run the next candidate, by the time that the last one took: the shorter the kernels, the coarser the clock."""
    last_s = sum(node.time_s for node in built[-1][0].nodes) if built else _KERNEL_S
    return int(min(max(_KERNEL_S / max(last_s, 1e-9), _KERNEL_REPEATS), _MOST_REPEATS))
