"""Profiles on disk: JSON lines, appended, one per candidate as it is measured, closed by a line that holds the interleaved rounds.

{"schema": 1, "kind": "probe", "group", "name", "work", "seconds", "error"}    what a small model told of the device
{"schema": 1, "kind": "device", "device_key", "environment", "capabilities"}   whose file it is; closes the probes
{"schema": 1, "kind": "candidate", "key", "policy", "size_bytes", "nodes", "places"}
{"schema": 1, "kind": "failure", "key", "policy", "reason"}                    a model that the runtime could not run
{"schema": 1, "kind": "profile", "key", "environment", "measurement", ...}     closes the candidates of one model
{"schema": 1, "kind": "few", "device_key", "environment", "told", "measured"}  whole models alone, and what they taught
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automc.devices.device import Capabilities, NodeTime
from automc.devices.lines import append_lines, read_lines
from automc.devices.measure import Measurement
from automc.policy import Policy
from automc.protocols import SILENT, Observer

if TYPE_CHECKING:
    from automc.predict.profile import Profile, ProfiledModel

__all__ = [
    "append",
    "keep_candidate",
    "keep_failure",
    "read_candidates",
    "read_profile",
    "records",
    "write_profile",
]


def write_profile(path: Path, profile: Profile, observer: Observer = SILENT) -> None:
    """Append the closing line of a profile, and those of its candidates that are not there yet."""
    head = {
        "device_key": profile.device_key,
        "environment": dict(profile.environment),
        "capabilities": dataclasses.asdict(profile.capabilities),
        "batch_size": profile.batch_size,
        "measurement": profile.measurement.to_json(),
        "seconds": profile.seconds,
        "candidates": len(profile.candidates),
        "label": profile.label,
        "failed": [list(pair) for pair in profile.failed],
    }
    known = read_candidates(path, profile.key)
    fresh = [candidate for candidate in profile.candidates if known.get(candidate.policy.digest) != candidate]
    lines = [("candidate", {"key": profile.key, **_candidate_json(candidate)}) for candidate in fresh]
    append(path, [*lines, ("profile", {"key": profile.key, **head})], observer)


def keep_candidate(path: Path, key: str, candidate: ProfiledModel, observer: Observer = SILENT) -> None:
    """Append a candidate of the profile `key`."""
    append(path, [("candidate", {"key": key, **_candidate_json(candidate)})], observer)


def keep_failure(path: Path, key: str, policy: Policy, reason: str, observer: Observer = SILENT) -> None:
    """Append why a policy has no candidate."""
    append(path, [("failure", {"key": key, "policy": policy.to_json(), "reason": reason})], observer)


def append(path: Path, lines: Sequence[tuple[str, Mapping[str, Any]]], observer: Observer = SILENT) -> None:
    """Append (kind, record) lines. Where nothing can be written the next run measures again, and `observer` is told."""
    try:
        append_lines(path, lines)
    except OSError as error:
        observer.message(f"the device profile could not be kept in {path}: {error}", "warning")


def read_candidates(path: Path, key: str) -> dict[str, ProfiledModel]:
    """What is known of the profile `key`, by policy digest, whether it was closed or broken off."""
    found = [_candidate(record) for record in records(path) if record["kind"] == "candidate" and record["key"] == key]
    return {candidate.policy.digest: candidate for candidate in found}


def read_profile(path: Path, key: str, observer: Observer = SILENT) -> Profile | None:
    """The last complete profile of `key`, or None. Lines that cannot be read are left out, and `observer` is told."""
    from automc.predict.profile import Profile

    candidates: dict[str, ProfiledModel] = {}
    found = None
    for record in records(path, observer):
        if record.get("key") != key:
            continue
        if record["kind"] == "candidate":
            candidate = _candidate(record)
            candidates[candidate.policy.digest] = candidate
        elif record["kind"] == "profile":
            measurement = Measurement.from_json(record["measurement"])
            measured = tuple(candidates[digest] for digest in measurement.rounds_s if digest in candidates)
            if len(measured) == record["candidates"]:
                found = Profile(
                    key, record["device_key"], record["environment"], Capabilities.from_json(record["capabilities"]),
                    record["batch_size"], measured, measurement, record["seconds"], record.get("label", ""),
                    tuple((digest, reason) for digest, reason in record.get("failed", ())),
                )  # fmt: skip
    return found


_FIELDS = {
    "probe": ("group", "name", "work", "seconds", "error"),
    "device": ("device_key", "environment", "capabilities"),
    "candidate": ("key", "policy", "size_bytes", "nodes", "places"),
    "failure": ("key", "policy", "reason"),
    "profile": (
        "key",
        "device_key",
        "environment",
        "capabilities",
        "batch_size",
        "measurement",
        "seconds",
        "candidates",
    ),
}
"""What a line of a kind has to tell."""


def records(path: Path, observer: Observer = SILENT) -> Iterator[dict[str, Any]]:
    """The lines of a device file that can be read, none without what its kind has to tell; how many could not is told to `observer`."""
    damaged = 0
    for record in read_lines(path):
        if record is None or not record.keys() >= set(_FIELDS.get(record["kind"], ())):
            damaged += 1
        else:
            yield record
    if damaged:
        observer.message(f"{path} has {damaged} damaged line(s); the rest of it is used.", "warning")


def _candidate_json(candidate: ProfiledModel) -> dict[str, Any]:
    return {
        "policy": candidate.policy.to_json(),
        "size_bytes": candidate.size_bytes,
        "nodes": [node.to_json() for node in candidate.nodes],
        "places": [list(place) if place else None for place in candidate.places],
    }


def _candidate(record: dict[str, Any]) -> ProfiledModel:
    from automc.predict.profile import ProfiledModel

    places = tuple((place[0], place[1]) if place else None for place in record["places"])
    nodes = tuple(NodeTime.from_json(node) for node in record["nodes"])
    return ProfiledModel(Policy.from_json(record["policy"]), record["size_bytes"], nodes, places)
