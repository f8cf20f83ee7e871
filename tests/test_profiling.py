"""Profiling a device: probes, candidates of a model, going on after a break, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest
import synthetic
import torch

from automc.cli.main import main
from automc.clock import Clock
from automc.devices.cpu import Cpu
from automc.devices.device import NodeTime, device_path
from automc.devices.measure import Measurement
from automc.devices.probe_models import probe_set
from automc.devices.probes import Probe, Probed, run_probes
from automc.errors import UnknownNameError
from automc.evaluate.data import Data
from automc.evaluate.score import Score
from automc.job import Silent
from automc.policy import Policy
from automc.predict.device_file import DeviceFile, find_device_file, known_devices
from automc.predict.predictor import LearnedPredictor
from automc.predict.profile import profile_model
from automc.predict.store import append, read_profile
from automc.predict.words import learned, summary
from automc.prepare import prepare
from automc.profiling import Subject, probe_device, profile_subject


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


class Interrupted(Silent):
    """Breaks off after a few candidates."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))


def subject() -> Subject:
    return Subject.of_batch(networks.make("plain"), (networks.images(2),), 1, Cpu(1), label="plain")


def kinds(path: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in path.read_text().splitlines()]


def test_probes_are_answered_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [probe for probe in probe_set() if probe.group in ("gemm", "convert")]
    monkeypatch.setattr("automc.profiling.probe_set", lambda: few)
    device = Cpu(1)
    first = probe_device(device, Silent())
    assert {(found.group, found.name) for found in first} == {(probe.group, probe.name) for probe in few}
    assert all(found.rate and found.rate > 0 for found in first)
    assert probe_device(device, Silent()) == first
    assert kinds(device_path(device.key)) == ["probe"] * len(few) + ["device"]
    probe_device(device, Silent(), again=True)
    assert len(kinds(device_path(device.key))) == 2 * (len(few) + 1)


def test_a_refusal_without_a_word_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise NotImplementedError

    device = Cpu(1)
    monkeypatch.setattr(device, "node_times", refuse)
    [found] = run_probes(device, [Probe("layer", "any", b"", (("float32", (1, 8)),), 1.0)])
    assert (found.seconds, found.error) == (None, "NotImplementedError")


def test_a_model_that_the_runtime_refuses_is_an_answer() -> None:
    broken = Probe("gemm", "fp8", b"not a model", (("float32", (2, 2)),), 1.0)
    [found] = run_probes(Cpu(1), [broken])
    assert found.seconds is None
    assert found.rate is None
    assert "load" in found.error
    assert Probed.from_json(found.to_json()) == found


def test_every_probe_runs_on_this_runtime() -> None:
    probes = {(probe.group, probe.name): probe for probe in probe_set()}
    assert len(probes) == len(probe_set())
    for probe in probes.values():
        nodes = Cpu(1).node_times(probe.model, probe.arrays(), 1)
        assert any(any(op in node.op for op in probe.ops or ("",)) for node in nodes), (probe.group, probe.name)


def test_a_profile_that_is_broken_off_goes_on_and_a_search_measures_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for limit in ("MAX_CANDIDATES", "MIN_CANDIDATES"):  # all of them, however slow the machine is
        monkeypatch.setattr(f"automc.predict.profile.{limit}", 9)
    path = device_path(Cpu(1).key)
    with pytest.raises(KeyboardInterrupt):
        profile_subject(subject(), Interrupted(4), time_limit_s=5.0)
    begun = kinds(path).count("candidate")
    assert begun == 4
    profile, report = profile_subject(subject(), Silent(), time_limit_s=5.0)
    assert kinds(path).count("candidate") == len(profile.candidates) == 9
    assert kinds(path)[-1] == "profile"
    assert report.models == len(profile.candidates)
    size = path.stat().st_size
    assert profile_subject(subject(), Silent())[0].candidates == profile.candidates
    samples = [(networks.images(8), torch.zeros(8, dtype=torch.long))]
    prepare(
        networks.make("plain"), Data(None, samples, samples, None, "few"), Score("none", lambda model, loader: 0.0), Cpu(1), batch_size=1,
        space="default", seed=0, profile_s=1.0, observer=Silent(), clock=Clock(),
    )  # fmt: skip
    assert path.stat().st_size == size


def test_a_profile_that_is_taken_again_replaces_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_CANDIDATES", "MIN_CANDIDATES"):
        monkeypatch.setattr(f"automc.predict.profile.{limit}", 3)
    path = device_path(Cpu(1).key)
    old, _ = profile_subject(subject(), Silent(), time_limit_s=2.0)
    assert profile_subject(subject(), Silent(), time_limit_s=2.0)[0] == old
    new, _ = profile_subject(subject(), Silent(), time_limit_s=2.0, again=True)
    assert kinds(path).count("candidate") == 6
    assert [candidate.policy for candidate in new.candidates] == [candidate.policy for candidate in old.candidates]
    assert new.measurement != old.measurement
    assert read_profile(path, old.key) == new


def test_a_shorter_profile_leaves_a_better_one_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automc.predict.profile.MAX_CANDIDATES", 5)
    monkeypatch.setattr("automc.predict.profile.MIN_CANDIDATES", 4)
    better, _ = profile_subject(subject(), Silent(), time_limit_s=0.0)
    monkeypatch.setattr("automc.predict.profile.MIN_CANDIDATES", 2)
    said = Said()
    assert profile_subject(subject(), said, time_limit_s=0.0)[0] == better
    assert read_profile(device_path(Cpu(1).key), better.key) == better
    told = "There was time for 2 candidates: the profile of 4 candidates from before is kept."
    assert told in said.messages
    shorter, _ = profile_subject(subject(), Silent(), time_limit_s=0.0, again=True)
    assert len(shorter.candidates) == 2
    assert read_profile(device_path(Cpu(1).key), better.key) == shorter


class Slowed(Cpu):
    """A machine that has become three times as slow since it was profiled."""

    def measure(self, *arguments: Any, **options: Any) -> Measurement:
        measured = super().measure(*arguments, **options)
        return replace(
            measured, rounds_s={name: tuple(3.0 * s for s in rounds) for name, rounds in measured.rounds_s.items()}
        )


def test_a_search_goes_by_the_speed_of_the_day() -> None:
    def predicted_s(device: Cpu, observer: Silent) -> tuple[float, float]:
        samples = [(networks.images(8), torch.zeros(8, dtype=torch.long))]
        prepared = prepare(
            networks.make("plain"), Data(None, samples, samples, None, "few"), Score("none", lambda model, loader: 0.0), device, batch_size=1,
            space="default", seed=0, profile_s=2.0, observer=observer, clock=Clock(),
        )  # fmt: skip
        costs = prepared.predictor.predict(prepared.space.encode([Policy()]))
        return float(costs.latency_s[0]), prepared.dense_cost.latency_s or 0.0

    before, _ = predicted_s(Cpu(1), Silent())
    said = Said()
    after, dense_s = predicted_s(Slowed(1), said)
    assert after > 1.5 * before
    assert after == pytest.approx(dense_s, rel=0.3)
    assert any("what they took when the device was profiled" in message for message in said.messages)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """The file of an invented device."""
    path = tmp_path / "cache" / "devices" / "cpu-abc.jsonl"
    environment = {"processor": "Cortex-A76", "runtime": "onnxruntime", "runtime_version": "1.0", "threads": "4"}
    answers = [
        Probed("gemm", "fp32", 1e9, 0.02),
        Probed("gemm", "fp16", 1e9, None, "no kernel"),
        Probed("layer", "3x3, fp32", 3.1e9, 0.1),
        Probed("layer", "3x3, int8", 3.1e9, 0.05),
        Probed("layer", "3x3, int8 alone", 3.1e9, 0.125),
        Probed("dispatch", "8", 8, 1e-4),
        Probed("dispatch", "72", 72, 2.28e-4),
    ]
    capabilities = {"channel_block": 8, "channel_multiple": 4}
    device = {"device_key": "cpu-abc", "environment": environment, "capabilities": capabilities}
    append(path, [*(("probe", answer.to_json()) for answer in answers), ("device", device), ("name", {"name": "pi"})])
    return path


def test_what_was_learned_is_said_in_words(known: Path) -> None:
    device = find_device_file("pi")
    text = "\n".join(learned(device))
    for part in (
        "pi: Cortex-A76, onnxruntime 1.0, 4 thread(s)",
        "50 G/s in fp32",
        "31 GFLOP/s on aligned 3x3; channels in blocks of 8",
        "2.0x on 3x3 (0.8x alone",
        "2.00 µs per operator",
        "Not run here: gemm fp16 (no kernel).",
    ):
        assert part in text
    assert summary(device) == "31 GFLOP/s on aligned 3x3, block 8, int8 2.0x on 3x3"


def test_devices_are_found_by_name_key_and_beginning(known: Path) -> None:
    assert [device.key for device in known_devices()] == ["cpu-abc"]
    assert find_device_file("cpu-a") == find_device_file("pi") == find_device_file("cpu-abc")
    with pytest.raises(UnknownNameError, match="'py'") as error:
        find_device_file("py")
    assert error.value.closest == "pi"


def test_a_truncated_file_is_used_as_far_as_it_goes_and_that_is_said(known: Path) -> None:
    whole = find_device_file("pi")
    with known.open("a") as file:
        file.write('{"schema": 1, "kind": "pro')
    cut = DeviceFile.read(known)
    assert cut is not None
    assert cut.probes == whole.probes
    assert any("1 damaged line" in line for line in learned(cut))
    append(known, [("name", {"name": "after the cut"})])
    assert find_device_file("after the cut").probes == whole.probes


_PROFILE = (
    '{"schema": 1, "kind": "profile", "key": "k", "device_key": "d", "environment": {}, "capabilities": {}, "batch_size": 1,'
    ' "measurement": %s, "seconds": 1, "candidates": 1}'
)


@pytest.mark.parametrize(
    "line",
    [
        '{"schema": 1, "kind": "candidate", "key": "x"}',
        '{"schema": 1, "kind": "probe"}',
        '{"schema": 1, "kind": "profile", "key": "x"}',
        '{"schema": 1, "kind": "probe", "group": "gemm", "name": "fp32", "work": 1, "seconds": "a", "error": ""}',
        '{"schema": 1, "kind": "device", "device_key": "d", "environment": null, "capabilities": {}}',
        '{"schema": 1, "kind": "device", "device_key": "d", "environment": {"processor": 1}, "capabilities": {}}',
        '{"schema": 1, "kind": "name"}',
        '{"schema": 1, "kind": "space"}',
        '{"schema": 1, "kind": "energy", "label": "x"}',
        '{"schema": 1, "kind": "few", "environment": {}}',
        '{"schema": 1, "kind": "candidate", "key": "k", "policy": {"schema": 1}, "size_bytes": 1, "nodes": [["n", "Conv", 1.0]], "places": []}',
        '{"schema": 1, "kind": "failure", "key": "k", "policy": {"schema": 9}, "reason": ""}',
        _PROFILE % "{}",
        _PROFILE % '{"rounds_s": {}, "noisy": false, "notes": [], "sentinel_s": []}',
        _PROFILE % '{"rounds_s": {"a": [1.0], "b": [1.0, 2.0]}, "noisy": false, "notes": [], "sentinel_s": []}',
        '{"schema": 1, "kind": []}',
        '{"schema": 99, "kind": "probe"}',
        "[]",
    ],
)
def test_a_line_that_tells_too_little_is_left_out_and_that_is_said(
    known: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = find_device_file("pi")
    with known.open("a") as file:
        file.write(line + "\n")
    [found] = known_devices(known.parent)
    assert (found.probes, found.heads, found.kernels) == (whole.probes, whole.heads, whole.kernels)
    assert any("1 damaged line" in said for said in learned(found))
    assert main(["devices"]) == 0
    told = capsys.readouterr()
    assert "Cortex-A76" in told.out
    assert f"Warning: {known} has 1 damaged line(s)" in " ".join(told.err.split())


def test_a_file_that_cannot_be_read_is_named_and_costs_the_others_nothing(
    known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known.with_name("cpu-folder.jsonl").mkdir()
    assert main(["devices"]) == 0
    told = capsys.readouterr()
    assert "Cortex-A76" in told.out
    assert "cpu-folder.jsonl cannot be read (Is a directory)" in " ".join(told.err.split())


def test_a_search_that_is_broken_off_while_it_profiles_leaves_a_device_that_is_listed() -> None:
    model = subject()
    with pytest.raises(KeyboardInterrupt):
        profile_subject(model, Interrupted(6), time_limit_s=5.0, seed=0)
    [found] = known_devices()
    assert found.environment == {**model.device.environment(), "measured_at": found.environment["measured_at"]}
    assert found.kernels > 0


def test_the_devices_are_listed_and_told(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"][0]["name"] == "pi"
    assert main(["devices"]) == 0
    assert "Cortex-A76" in capsys.readouterr().out
    assert main(["devices", "show", "pi"]) == 0
    assert "blocks of 8" in capsys.readouterr().out
    assert main(["devices", "show", "nowhere"]) == 2
    assert "There is no measured device called 'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "3xtwoxthree"], "is not a shape"),
        (["--model", "file.py:build"], "The shape of the model's input is not known"),
        (["--device", "cpx"], "Did you mean 'cpu'?"),
        (["--time", "long"], "is not a duration"),
        (["--emit-kit", "a.zip", "--from-kit", "b.jsonl"], "Give one of the two"),
        (["--strict"], "Give it with --from-kit"),
        (["--name", "pi"], "Give it with --from-kit"),
        (["--threads", "99999"], "processors"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("automc.profiling.probe_set", list)
    assert main(["profile", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_candidate_that_the_runtime_cannot_run_is_recorded_and_left_out(tmp_path: Path) -> None:
    class Picky(synthetic.ClosedFormDevice):
        def node_times(self, model: Any, inputs: Any, repeats: int = 5) -> list[NodeTime]:
            if len(model) < small:
                raise RuntimeError("no kernel for this")
            return super().node_times(model, inputs, repeats)

    graph, space, dense = synthetic.graph(), synthetic.space(), synthetic.build(Policy())
    small = len(dense) // 2
    made = profile_model(Picky(), synthetic.build, graph, space, synthetic.inputs(), dense)
    assert made.failed
    assert {reason for _, reason in made.failed} == {"no kernel for this"}
    path = tmp_path / "cache" / "devices" / f"{Picky.key}.jsonl"
    assert kinds(path).count("failure") == len(made.failed)
    assert read_profile(path, made.key) == made
    learned_from = LearnedPredictor.fit(made, graph, space, dense, synthetic.BATCH)
    smallest = learned_from.predict(space.cardinalities[None] - 1)  # of which nothing was measured
    assert 0 < smallest.latency_s[0] < learned_from.predict(space.dense[None]).latency_s[0]


def test_there_is_nothing_to_measure_on_a_simulated_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--device", "bitfusion", "--probes-only"]) == 4
    assert "bitfusion is simulated: there is nothing to measure" in capsys.readouterr().err
    assert known_devices() == []
