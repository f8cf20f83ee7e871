"""Profiles on disk: JSON lines, appended, one per candidate as it is measured, closed by a line that holds the interleaved rounds.

{"schema": 1, "kind": "probe", "group", "name", "work", "seconds", "error"}    what a small model told of the device
{"schema": 1, "kind": "device", "device_key", "environment", "capabilities"}   whose file it is; closes the probes
{"schema": 1, "kind": "candidate", "key", "policy", "size_bytes", "nodes", "places"}
{"schema": 1, "kind": "failure", "key", "policy", "reason"}                    a model that the runtime could not run
{"schema": 1, "kind": "profile", "key", "environment", "measurement", ...}     closes the candidates of one model
{"schema": 1, "kind": "few", "device_key", "environment", "told", "measured"}  whole models alone, and what they taught
{"schema": 1, "kind": "energy", "key", "label", "joules", "idle_w", "busy_w", "runs", "window_s", "meter"}
{"schema": 1, "kind": "space", "capabilities"}                                 what a kit's candidates were drawn for
{"schema": 1, "kind": "name", "name"}                                          what people call the device
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from automc.devices.device import Capabilities, NodeTime
from automc.devices.lines import append_lines, read_lines
from automc.devices.measure import Measurement
from automc.errors import InputError
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
        observer.message(f"The device profile could not be kept in {path}: {error}", "warning")


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


_NUMBER = (int, float)
_DEVICE = {"device_key": str, "environment": dict, "capabilities": dict}
_POLICY = {"key": str, "policy": dict}
_FIELDS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "probe": {"group": str, "name": str, "work": _NUMBER, "seconds": (*_NUMBER, NoneType), "error": str},
    "device": _DEVICE,
    "candidate": {**_POLICY, "size_bytes": int, "nodes": list, "places": list},
    "failure": {**_POLICY, "reason": str},
    "profile": {
        **_DEVICE, "key": str, "batch_size": int, "measurement": dict, "seconds": _NUMBER, "candidates": int,
    },
    "few": {**_DEVICE, "sentence": str},
    "energy": {
        "key": str, "label": str, "meter": str, "runs": int, **dict.fromkeys(("joules", "idle_w", "busy_w", "window_s"), _NUMBER),
    },
    "space": {"capabilities": dict},
    "name": {"name": str},
}  # fmt: skip
"""What a line of a kind has to tell, and its types."""
_OPTIONAL: Mapping[str, type] = {"failed": list, "label": str, "subject": str}


def records(path: Path, observer: Observer = SILENT) -> Iterator[dict[str, Any]]:
    """The lines of a device file that can be read, none without what its kind has to tell; how many could not is told to `observer`."""
    damaged = 0
    for record in read_lines(path):
        if record is None or not _is_whole(record):
            damaged += 1
        else:
            yield record
    if damaged:
        observer.message(f"{path} has {damaged} damaged line(s); the rest of it is used.", "warning")


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a line tells what its kind has to tell; lines of kinds that are not known here are nobody's concern."""
    needed = _FIELDS.get(record["kind"], {}) if isinstance(record["kind"], str) else None
    if needed is None or not all(isinstance(record.get(name), kinds) for name, kinds in needed.items()):
        return False
    if not record.keys() >= needed.keys():
        return False
    if not all(isinstance(record[name], kind) for name, kind in _OPTIONAL.items() if name in record):
        return False
    try:
        if not all(isinstance(fact, str) for fact in record.get("environment", {}).values()):
            return False
        if "policy" in needed:
            Policy.from_json(record["policy"])
        if record["kind"] == "candidate":
            return all(_is_node(node) for node in record["nodes"])
        if record["kind"] == "profile":
            return _is_measurement(record["measurement"]) and all(len(pair) == 2 for pair in record.get("failed", ()))
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return False
    return True


def _is_node(node: Sequence[Any]) -> bool:
    return len(node) == 5 and isinstance(node[2], _NUMBER) and isinstance(node[3], list) and isinstance(node[4], list)


def _is_measurement(data: Mapping[str, Any]) -> bool:
    """Whether every model has the same number of rounds, one or more, and each is a number."""
    measured = Measurement.from_json(data)
    sides = [*measured.rounds_s.values(), *measured.beside_s.values()]
    same = measured.beside_s.keys() in (set(), measured.rounds_s.keys())
    even = len({len(rounds) for rounds in sides}) == 1 and len(sides[0]) > 0
    return same and even and all(isinstance(seconds, _NUMBER) for rounds in sides for seconds in rounds)


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
