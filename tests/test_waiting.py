"""A busy machine: what is waited for before anything is measured, and what is said where the wait was in vain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest

from automc.devices.cpu import Cpu, measured
from automc.devices.device import NodeTime
from automc.devices.measure import Measurement, Protocol, interleave
from automc.devices.probe_models import probe_set
from automc.devices.quiet import wait_until_quiet
from automc.job import Silent
from automc.profiling import Subject, probe_device, profile_subject


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))


def subject() -> Subject:
    return Subject.of_batch(networks.make("plain"), (networks.images(2),), 1, Cpu(1), label="plain")


def looks(*shares: float) -> Iterator[dict[int, float]]:
    yield from ({0: share, 1: 0.1} for share in shares)


def test_a_busy_machine_is_waited_for_and_then_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    seconds = iter(range(100))
    clock = lambda: float(next(seconds))  # noqa: E731
    quiet_later = looks(0.1, 0.2, 0.9)
    assert wait_until_quiet(10.0, look=lambda: next(quiet_later), clock=clock) == ""
    assert list(quiet_later) == []
    assert "busy with other work (90%)" in wait_until_quiet(3.0, look=lambda: {0: 0.1, 1: 0.1}, clock=clock)
    assert wait_until_quiet(3.0, threads=2, look=lambda: {0: 1.0, 1: 0.1}, clock=clock) != ""
    assert wait_until_quiet(3.0, look=dict, clock=clock) == ""
    assert "busy with other work (90%)" in wait_until_quiet(3.0, look=lambda: {0: 0.1, 1: 0.1, 2: 1.0}, clock=clock)


def test_as_many_cores_are_waited_for_as_there_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, set[int]]] = []

    def note(timeout_s: float, threads: int) -> str:
        seen.append((threads, os.sched_getaffinity(0)))
        return ""

    monkeypatch.setattr("automc.devices.measure.wait_until_quiet", note)
    for threads in (1, 4):
        measured({"m": lambda: None}, Protocol(rounds=2, wait_s=5.0), threads, 0)
    assert seen == [(1, os.sched_getaffinity(0)), (4, os.sched_getaffinity(0))]  # before it is pinned to one of them


class Watched(Cpu):
    """Notes what is done in which order."""

    def __init__(self) -> None:
        super().__init__(1)
        self.done: list[str] = []

    def measure(self, models: Any, *arguments: Any, **options: Any) -> Measurement:
        measured = super().measure(models, *arguments, **options)
        self.done.append(f"{len(models)} whole")
        return measured

    def node_times(self, *arguments: Any, **options: Any) -> list[NodeTime]:
        self.done.append("kernels")
        return super().node_times(*arguments, **options)


@pytest.mark.parametrize("busy", ["", "busy with other work"])
def test_kernels_and_probes_wait_too(busy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(timeout_s: float, threads: int) -> str:
        device.done.append(f"wait {timeout_s:g} s")
        return busy if len(device.done) < 4 else ""

    for limit in ("MAX_CANDIDATES", "MIN_CANDIDATES"):
        monkeypatch.setattr(f"automc.predict.profile.{limit}", 2)
    probes = [probe for probe in probe_set() if probe.group == "gemm"][:1]
    monkeypatch.setattr("automc.profiling.probe_set", lambda: probes)
    monkeypatch.setattr("automc.devices.measure.wait_until_quiet", wait)
    device, said = Watched(), Said()
    device.capabilities()  # which are felt out by kernels too
    device.done = []
    probe_device(device, said, wait_s=7.0)
    assert device.done == ["wait 7 s", "1 whole", "kernels"]
    assert any("busy with other work" in message for message in said.messages) == bool(busy)
    device.done = []
    profile, _ = profile_subject(replace(subject(), device=device), said, time_limit_s=0.0, wait_s=7.0)
    assert device.done == ["wait 7 s", "1 whole", "kernels", "kernels", "wait 7 s", "2 whole"]
    if busy:
        assert profile.measurement.noisy
    assert (busy in profile.measurement.notes) == bool(busy)
    device.done = []
    profile_subject(replace(subject(), device=device), said, time_limit_s=0.0, wait_s=7.0)
    assert device.done == []


def test_kernels_that_were_timed_beside_another_measurement_mark_their_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    note = "another measurement held the lock for 60 s"
    held = [True, True, True]  # a probe, and the kernels of two candidates

    @contextmanager
    def locked(directory: Path, *, timeout_s: float) -> Iterator[str]:
        yield note if held and held.pop() else ""

    for limit in ("MAX_CANDIDATES", "MIN_CANDIDATES"):
        monkeypatch.setattr(f"automc.predict.profile.{limit}", 2)
    probes = [probe for probe in probe_set() if probe.group == "gemm"][:1]
    monkeypatch.setattr("automc.profiling.probe_set", lambda: probes)
    Cpu(1).capabilities()
    monkeypatch.setattr("automc.devices.exclusive.locked", locked)
    said = Said()
    probe_device(Cpu(1), said)
    assert f"The probes may be off: {note}." in said.messages
    profile, _ = profile_subject(subject(), Silent(), time_limit_s=0.0)
    assert profile.measurement.noisy
    assert note in profile.measurement.notes
    assert held == []


def test_a_measurement_on_a_busy_machine_is_marked_noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "automc.devices.measure.wait_until_quiet", lambda timeout_s, threads: f"busy for {timeout_s:g} s"
    )
    calm = {"sentinel": lambda: 1e-3, "lock_dir": tmp_path, "pin": False}
    measured = interleave({"m": lambda: None}, Protocol(rounds=2, wait_s=5.0), **calm)  # type: ignore[arg-type]
    assert measured.noisy
    assert "busy for 5 s" in measured.notes
    assert not interleave({"m": lambda: None}, Protocol(rounds=2), **calm).noisy  # type: ignore[arg-type]
