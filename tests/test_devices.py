"""The measuring protocol on simulated clocks, and ONNX Runtime on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from automc.devices import cpu
from automc.devices.cpu import Cpu
from automc.devices.device import Capabilities, capabilities_path, digest
from automc.devices.exclusive import Company, alone, locked, pinned
from automc.devices.measure import COMPARING, Measurement, Protocol, fixed_work, interleave
from automc.devices.probe import conv_model, probe_blocks
from automc.errors import InputError
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.predict.attribute import attribute


class Machine:
    """A simulated clock; models take their time, more while the machine is busy."""

    def __init__(self, seconds: dict[str, float], busy: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.busy = busy
        self.visits: list[str] = []
        self.runs = {name: self._run(name, time_s) for name, time_s in seconds.items()}

    def _run(self, name: str, time_s: float) -> Callable[[], None]:
        def run() -> None:
            self.visits.append(name)
            self.now += time_s * self.busy(self.now)

        return run

    def sentinel(self) -> float:
        self.now += 1e-3
        return 1e-3 * self.busy(self.now)

    def measure(self, **options: float) -> Measurement:
        protocol = Protocol(**options)  # type: ignore[arg-type]
        return interleave(self.runs, protocol, sentinel=self.sentinel, clock=lambda: self.now)


def test_medians_of_a_quiet_machine() -> None:
    machine = Machine({"dense": 0.1, "small": 0.04})
    measured = machine.measure(rounds=12)
    assert measured.median_s("dense") == pytest.approx(0.1)
    assert measured.interval_s("small") == pytest.approx((0.04, 0.04))
    assert measured.noise_floor == pytest.approx(0.0, abs=1e-12)
    assert not measured.noisy
    assert machine.now < 2.5  # 12 rounds of 0.14 s and the warm-up


def test_rounds_visit_every_model_in_changing_order() -> None:
    machine = Machine({"a": 0.1, "b": 0.1, "c": 0.1})
    machine.measure(rounds=10)
    rounds = np.array(machine.visits[6:]).reshape(10, 3)
    assert all(sorted(visited) == ["a", "b", "c"] for visited in rounds.tolist())
    assert len({tuple(visited) for visited in rounds.tolist()}) > 1


def test_disturbed_rounds_are_measured_again() -> None:
    quiet = Machine({"m": 0.1}).measure(rounds=6)
    machine = Machine({"m": 0.1}, busy=lambda now: 2.0 if 0.4 < now < 0.9 else 1.0)
    measured = machine.measure(rounds=6)
    assert measured.rounds_s["m"] == pytest.approx(quiet.rounds_s["m"])
    assert not measured.noisy
    assert len(measured.sentinel_s) > len(quiet.sentinel_s)


def test_what_a_neighbour_costs_is_taken_out_where_models_are_compared() -> None:
    seconds = {str(i): 0.02 * (1 + 0.01 * i) for i in range(12)}
    rng = np.random.default_rng(0)
    loads = rng.random(10_000)  # of a neighbour on the same core, for 0.1 s each; the sentinel suffers most
    machine = Machine(seconds, busy=lambda now: 1.0 + 0.5 * loads[int(now / 0.1)])
    machine.sentinel = lambda: 1e-3 * machine.busy(machine.now) ** 1.6  # type: ignore[method-assign]
    measured = machine.measure(rounds=12, retries=0, min_time_s=0.02)

    def error(measurement: Measurement) -> float:
        ratios = np.log([measurement.median_s(name) / time_s for name, time_s in seconds.items()])
        return float(np.std(ratios))

    assert error(measured.steadied) < 0.3 * error(measured)
    assert measured.steadied.noise_floor < 0.5 * measured.noise_floor
    assert 0.9 < measured.steadied.median_s("0") / measured.median_s("0") < 1.4
    assert measured.steadied.steadied == measured.steadied
    assert Measurement.from_json(measured.to_json()).steadied == measured.steadied
    names = ["0", "1"]
    assert measured.continued(measured, names).beside_s["1"] == 2 * measured.beside_s["1"]


def test_steadying_leaves_a_quiet_machine_alone() -> None:
    rng = np.random.default_rng(0)
    rounds = {str(i): tuple(np.exp(rng.normal(0, 0.005, 12))) for i in range(20)}
    beside = {name: tuple(1e-3 * np.exp(rng.normal(0, 0.005, 12))) for name in rounds}
    measured = Measurement(rounds, beside_s=beside)
    assert all(measured.steadied.median_s(name) == pytest.approx(measured.median_s(name), rel=5e-4) for name in rounds)
    assert Measurement(rounds).steadied.rounds_s == rounds


def test_rounds_go_on_until_models_can_be_told_apart() -> None:
    rng = np.random.default_rng(0)

    def machine() -> Machine:
        return Machine({"a": 0.1, "b": 0.1}, busy=lambda _: float(np.exp(rng.normal(0, 0.05))))

    assert len(machine().measure(rounds=4, precision=0.001, retries=0).rounds_s["a"]) in range(12, 17)
    assert len(machine().measure(rounds=4, retries=0).rounds_s["a"]) == 4
    assert len(machine().measure(rounds=1, retries=0).rounds_s["a"]) == 1
    assert len(Machine({"a": 0.1, "b": 0.1}).measure(rounds=4, precision=0.001).rounds_s["a"]) == 4
    assert len(machine().measure(rounds=4, precision=0.001, retries=0, time_limit_s=1.5).rounds_s["a"]) in range(5, 12)


def test_disturbed_rounds_that_are_kept_are_told() -> None:
    half = Machine({"m": 0.1}, busy=lambda now: 2.0 if now % 1.0 < 0.5 else 1.0)
    measured = half.measure(rounds=8, precision=0.0, retries=3, min_time_s=0.02)
    assert measured.noisy
    assert len(measured.rounds_s["m"]) == 32
    few = Machine({"m": 0.1}, busy=lambda now: 2.0 if now % 1.0 < 0.12 else 1.0 + 0.01 * np.sin(now))
    measured = few.measure(rounds=8, precision=1e-9, retries=8, min_time_s=0.02)
    assert not measured.noisy
    assert 24 <= len(measured.rounds_s["m"]) <= 32
    assert max(measured.rounds_s["m"]) < 0.15


def test_a_machine_that_stays_busy_is_marked_noisy() -> None:
    machine = Machine({"m": 0.1}, busy=lambda now: 1.0 if now < 0.3 else 1.5)
    measured = machine.measure(rounds=6, retries=2)
    assert measured.noisy
    assert len(measured.rounds_s["m"]) == 6


def test_interrupted_runs_count_by_their_processor_time() -> None:
    machine = Machine({"m": 0.1}, busy=lambda now: 1.0 if now < 0.25 else 3.0)
    worked = 0.0

    def run() -> None:
        nonlocal worked
        machine.runs["m"]()
        worked += 0.1

    clocks = {"clock": lambda: machine.now, "cpu_clock": lambda: worked}
    measured = interleave({"m": run}, Protocol(rounds=6), sentinel=lambda: 1e-3, **clocks)
    assert measured.median_s("m") == pytest.approx(0.1)
    assert measured.noisy
    assert "processor time" in measured.notes[0]


def test_the_time_limit_ends_the_rounds() -> None:
    machine = Machine({"m": 1.0})
    assert len(machine.measure(rounds=50, time_limit_s=9).rounds_s["m"]) in range(7, 10)
    assert len(Machine({"m": 1.0}).measure(rounds=50, time_limit_s=0).rounds_s["m"]) == 6
    compared = Machine({"m": 1.0}).measure(rounds=8, time_limit_s=0, **COMPARING)
    assert len(compared.rounds_s["m"]) == 3
    assert compared.notes == ("only 3 of 8 rounds: the time limit of 0 s was reached",)
    assert Machine({"m": 1.0}).measure(rounds=3, time_limit_s=0).notes == ()


@pytest.mark.parametrize("rounds", [2, 3, 4, 5, 6, 7, 8, 9, 11, 12])
def test_few_rounds_have_an_interval_that_keeps_its_claim(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    drawn = 100 + rng.normal(size=(600, rounds))
    found = [Measurement({"m": tuple(values)}, seed=i).interval_s("m") for i, values in enumerate(drawn.tolist())]
    assert (
        np.mean([low <= 100 <= high for low, high in found]) > 0.92
    )  # at a true 95 % less than that happens once in 1,000
    assert all(low <= np.median(values) <= high for (low, high), values in zip(found, drawn, strict=True))


def test_short_models_run_often_enough() -> None:
    machine = Machine({"m": 0.001})
    machine.measure(rounds=2, min_time_s=0.02)
    assert len(machine.visits) == 2 + 2 * 20


def test_noise_floor_and_interval_follow_the_noise() -> None:
    rng = np.random.default_rng(0)
    noisy = Measurement({str(i): tuple(np.exp(rng.normal(0, 0.05, 12))) for i in range(20)})
    calm = Measurement({str(i): tuple(np.exp(rng.normal(0, 0.005, 12))) for i in range(20)})
    assert 5 < noisy.noise_floor / calm.noise_floor < 20
    low, high = noisy.interval_s("0")
    assert low < noisy.median_s("0") < high
    assert Measurement.from_json(noisy.to_json()) == noisy


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="nothing"):
        interleave({})


def test_the_lock_excludes_and_says_so(tmp_path: Path) -> None:
    with locked(tmp_path) as note:
        assert note == ""
        said = []

        def other() -> None:
            with locked(tmp_path, timeout_s=0.2) as refused:
                said.append(refused)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "another measurement" in said[0]
    with locked(tmp_path, timeout_s=0.2) as note:
        assert note == ""


def test_a_place_that_cannot_hold_a_lock_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with locked(tmp_path / "file") as note:
        assert "no lock" in note
    with alone(tmp_path / "file") as company:
        assert company == Company((note,), noisy=False)


def test_what_is_measured_beside_another_measurement_is_marked_noisy(tmp_path: Path) -> None:
    options: dict[str, Any] = {"sentinel": lambda: 1e-3, "lock_dir": tmp_path, "pin": False, "lock_timeout_s": 0.0}
    with locked(tmp_path):
        beside = interleave({"m": lambda: None}, Protocol(rounds=3, min_time_s=0.0), **options)
    assert beside.noisy
    assert beside.notes == ("another measurement held the lock for 0 s",)
    after = interleave({"m": lambda: None}, Protocol(rounds=3, min_time_s=0.0), **options)
    assert (after.noisy, after.notes) == (False, ())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin")
def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pinned() as note:
        assert note == ""
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_the_sentinel_is_short() -> None:
    assert 1e-6 < fixed_work() < 0.1


def test_capabilities_of_an_older_file_are_read_without_what_they_no_longer_tell() -> None:
    told = {**dataclasses.asdict(Capabilities(8, 4)), "weight_bits_exact": [8]}
    assert Capabilities.from_json(told) == Capabilities(8, 4)


_ARM = "processor\t: 0\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU variant\t: 0x{}\nCPU part\t: 0x{}\nCPU revision\t: {}\n"


def _machine(monkeypatch: pytest.MonkeyPatch, system: Path, kind: str, cpuinfo: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: kind)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(cpu, "_SYSTEM", system)
    monkeypatch.setattr(cpu, "_cpuinfo", cpuinfo.splitlines)


@pytest.mark.parametrize(
    ("cpuinfo", "told"),
    [
        (_ARM.format(0, "d08", 3), "cores 0x41/0xd08/0x0/3, 1800 MHz"),
        (_ARM.format(4, "d0b", 1) * 2, "cores 0x41/0xd0b/0x4/1, 1800 MHz"),
        (
            _ARM.format(4, "d0b", 1) + "\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
            "Raspberry Pi 5 Model B Rev 1.0, BCM2835, cores 0x41/0xd0b/0x4/1, 1800 MHz",
        ),
        (_ARM.format(0, "d05", 0) + _ARM.format(3, "d0b", 0), "cores 0x41/0xd05/0x0/0 0x41/0xd0b/0x3/0, 1800 MHz"),
    ],
)
def test_arm_boards_whose_processors_have_no_name_are_told_apart(
    cpuinfo: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = tmp_path / "devices/system/cpu/cpu0/cpufreq"
    clock.mkdir(parents=True)
    (clock / "cpuinfo_max_freq").write_text("1800000\n")
    _machine(monkeypatch, tmp_path, "aarch64", cpuinfo)
    assert cpu.processor() == told


def test_a_mac_says_which_processor_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sysctl(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command == ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.CompletedProcess(command, 0, "Apple M2\n", "")

    _machine(monkeypatch, tmp_path, "arm64", "")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", sysctl)
    assert cpu.processor() == "Apple M2"


def test_a_board_that_only_the_device_tree_names_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "firmware/devicetree/base").mkdir(parents=True)
    (tmp_path / "firmware/devicetree/base/model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    _machine(monkeypatch, tmp_path, "aarch64", "")
    assert cpu.processor() == "NVIDIA Jetson Orin Nano"
    _machine(monkeypatch, tmp_path / "nothing", "aarch64", "")
    assert cpu.processor() == "aarch64"


def test_the_key_of_an_x86_machine_is_of_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, tmp_path, "x86_64", "model\t\t: 85\nmodel name\t: Xeon X\nflags\t: avx512_vnni\n" * 2)
    assert cpu.key_of("cpu", "1.2", 1) == f"cpu-{digest('Xeon X', 'x86_64', 'True', '1.2', '1')}"


def test_capabilities_are_read_from_json_as_they_were() -> None:
    own = Capabilities(8, 4, sparsity=("2:4",), bits=((8, 8), (4, 8)))
    told = Capabilities.from_json(json.loads(json.dumps(dataclasses.asdict(own))))
    assert told == own
    assert hash(told) == hash(own)


class TestCpu:
    """ONNX Runtime on this machine."""

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path))

    def test_key_and_environment(self) -> None:
        assert Cpu().key == Cpu(1).key != Cpu(2).key
        assert Cpu(2).environment()["threads"] == "2"
        with pytest.raises(InputError, match="0 threads"):
            Cpu(0)

    def test_capabilities_are_probed_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = Cpu().capabilities()
        assert first.channel_block in (1, 4, 8, 16, 32)
        assert first.channel_block % first.channel_multiple == 0
        assert first.reduce_range is not cpu.has_vnni()
        monkeypatch.setattr(cpu, "probe_blocks", lambda *_: pytest.fail("probed twice"))
        assert Cpu().capabilities() == first

    def test_a_damaged_probe_is_repeated(self, tmp_path: Path) -> None:
        path = capabilities_path(Cpu().key)
        path.parent.mkdir()
        path.write_text("{")
        assert (Cpu().capabilities().channel_block, Cpu().capabilities().channel_multiple) == probe_blocks(Cpu())

    def test_runs_and_refuses(self, tmp_path: Path) -> None:
        model = conv_model(3, 5, side=4)
        (tmp_path / "m.onnx").write_bytes(model)
        x = np.ones((1, 3, 4, 4), np.float32)
        from_bytes, from_file = Cpu().session(model).run(x)[0], Cpu().session(tmp_path / "m.onnx").run(x)[0]
        assert from_bytes.shape == (1, 5, 4, 4)
        np.testing.assert_array_equal(from_bytes, from_file)
        with pytest.raises(InputError, match="cannot load"):
            Cpu().session(b"nonsense")

    def test_measures_the_larger_model_as_slower(self) -> None:
        models = {"large": conv_model(64, 64, 32), "small": conv_model(16, 16, 8)}
        x = {"large": np.ones((1, 64, 32, 32), np.float32), "small": np.ones((1, 16, 8, 8), np.float32)}
        medians = {n: Cpu().measure({n: m}, [x[n]], 5, min_time_s=0.002).median_s(n) for n, m in models.items()}
        assert medians["large"] > 3 * medians["small"]

    def test_every_layer_kernel_is_found_in_the_optimised_graph(self, tmp_path: Path) -> None:
        choices = [("a", Prune(24)), ("a", LowRank(12)), ("b", LowRank(8, "tucker")), ("b", Quantize(8, 8))]
        model = synthetic.build(Policy.of([*choices, ("c", Quantize(8, 8)), ("fc", Quantize(8, 8))]))
        nodes = Cpu().node_times(model, synthetic.inputs(), repeats=3)
        places = attribute(model, nodes, [layer.name for layer in synthetic.graph().layers])
        factors = [("stem", 0), ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("c", 0), ("d", 0), ("fc", 0)]
        assert sorted(place for place in places if place) == sorted(factors)
        assert all(node.time_s >= 0 for node in nodes)
        written = {place: node.outputs[0].shape for node, place in zip(nodes, places, strict=True) if place}
        assert written["fc", 0] == (synthetic.BATCH, 10)
        assert not list(tmp_path.glob("**/nodes*"))
