"""Energy by a made-up powercap tree and a simulated clock; budgets on it, measured or predicted from a stated power."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networks
import numpy as np
import pytest
import torch
import yaml
from test_engine import OPTIONS, data, trained

import automc
from automc.answering import Known
from automc.cli.options import JOB_OPTIONS
from automc.cli.recipe import read_recipe
from automc.devices import energy
from automc.devices.cpu import Cpu
from automc.devices.device import device_path
from automc.devices.energy import Energy, PowerCap, find_meter, measure_energy, stated_watts
from automc.devices.exclusive import overhear
from automc.devices.probe import conv_model
from automc.devices.torch import Torch, TorchSession
from automc.errors import BudgetUnreachableError, InputError, RunConflictError
from automc.faults import find_setting_faults
from automc.job import Silent
from automc.joules import Joules
from automc.predict.device_file import DeviceFile
from automc.predict.words import learned
from automc.prepare import _watts
from automc.profiling import Subject, profile_subject
from automc.recipe import Job
from automc.resolve import certify_budget
from automc.rundir import RunDir


class Package:
    """A machine whose counters grow by 4 W idle and 10 W busy, under a clock that only moves when it sleeps or runs."""

    def __init__(self, folder: Path, wrap_uj: int = 10**12) -> None:
        self.now, self.uj, self.wrap_uj = 0.0, 0.0, wrap_uj
        self.idle_w = [4.0]
        self.zone = folder / "intel-rapl:0"
        self.zone.mkdir(parents=True)
        (self.zone / "max_energy_range_uj").write_text(f"{wrap_uj}\n")
        (folder / "intel-rapl:0:0").mkdir()  # a part of the package, counted already
        (folder / "intel-rapl").mkdir()
        self._spend(0.0, 0.0)

    def sleep(self, seconds: float) -> None:
        self._spend(seconds, self.idle_w.pop(0) if len(self.idle_w) > 1 else self.idle_w[0])

    def run(self) -> None:
        self._spend(0.25, 10.0)

    def _spend(self, seconds: float, watts: float) -> None:
        self.now += seconds
        self.uj += 1e6 * seconds * watts
        (self.zone / "energy_uj").write_text(f"{int(self.uj) % self.wrap_uj}\n")


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.delenv(energy.WATTS, raising=False)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path / "powercap")


def measure(package: Package, **options: float) -> Energy:
    meter, why = find_meter()
    assert meter is not None, why
    return measure_energy(meter, package.run, clock=lambda: package.now, sleep=package.sleep, **options)


def test_idle_power_is_subtracted(package: Package) -> None:
    found = measure(package)
    assert found.joules == pytest.approx(0.25 * (10 - 4))
    assert (found.idle_w, found.busy_w, found.power_w) == pytest.approx((4.0, 10.0, 6.0))
    assert (found.runs, found.window_s) == (20, 5.0)
    assert found.meter == "powercap, 1 package(s)"
    with pytest.raises(InputError, match="too short"):
        measure(package, window_s=1.0)


def test_windows_that_do_not_differ_are_taken_once_more(package: Package) -> None:
    package.idle_w = [12.0, 4.0]
    found = measure(package)
    assert found.is_clear
    assert found.joules == pytest.approx(1.5)
    package.idle_w = [12.0, 9.95, 4.0]
    assert not measure(package).is_clear
    assert package.idle_w == [4.0]


@pytest.mark.parametrize(
    "still", [Energy(0.0, 0.0, 0.0, 20, 5.0, "a counter"), Energy(0.0, 10.0, 9.0, 20, 5.0, "a counter")]
)
def test_a_counter_that_says_nothing_measures_nothing(
    package: Package, monkeypatch: pytest.MonkeyPatch, still: Energy
) -> None:
    monkeypatch.setattr("automc.joules.measure_energy", lambda meter, run: still)
    model, inputs = conv_model(8, 8), [np.ones((1, 8, 14, 14), np.float32)]
    cost = automc.Cost(latency_s=0.1)
    joules = Joules.of(Cpu(1), inputs)
    for ask in (lambda: joules.told(cost, model), lambda: _watts(joules, model, Silent())):
        with pytest.raises(InputError, match=r"powercap, 1 package\(s\) shows no more power .*AUTOMC_WATTS=12.5"):
            ask()
    monkeypatch.setenv(energy.WATTS, "8")
    joules = Joules.of(Cpu(1), inputs)
    told = joules.told(cost, model)
    assert (told.energy_j, told.source["energy_j"]) == (pytest.approx(0.8), "predicted")
    watts, after = _watts(joules, model, Silent())
    assert (watts, after.meter) == (8.0, None)


def test_a_profile_keeps_no_energy_of_a_counter_that_says_nothing(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("MAX_CANDIDATES", "MIN_CANDIDATES"):
        monkeypatch.setattr(f"automc.predict.profile.{limit}", 4)
    monkeypatch.setattr("automc.joules.measure_energy", lambda meter, run: Energy(0.0, 0.0, 0.0, 20, 5.0, "a counter"))
    subject = Subject.of_batch(networks.make("plain"), (networks.images(1),), 1, Cpu(1), label="plain")
    profile_subject(subject, Silent(), time_limit_s=2.0)
    assert '"energy"' not in device_path(subject.device.key).read_text()


def test_counters_that_wrap_are_made_up_for(tmp_path: Path) -> None:
    package = Package(tmp_path / "powercap", wrap_uj=60_000_000)
    assert measure(package).joules == pytest.approx(1.5)
    meter = PowerCap([package.zone])
    package.sleep(6.0)
    assert meter.joules() == pytest.approx(24.0)
    package.sleep(6.0)
    assert meter.joules() == pytest.approx(48.0)


def zone(folder: Path, name: str | None) -> Path:
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text("0\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    if name:
        (folder / "name").write_text(f"{name}\n")
    return folder


def counted(zones: dict[str, str | None], joules: dict[str, float], powercap: Path) -> tuple[str, float]:
    for folder, name in zones.items():
        zone(powercap / folder, name)
    meter, why = find_meter()
    assert meter is not None, why
    for folder, value in joules.items():
        (powercap / folder / "energy_uj").write_text(f"{int(1e6 * value)}\n")
    return meter.name, meter.joules()


def test_a_package_counts_once_whatever_else_counts_it(tmp_path: Path) -> None:
    zones: dict[str, str | None] = {
        "intel-rapl:0": "package-0",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    joules = {"intel-rapl:0": 10.0, "intel-rapl:1": 4.0, "intel-rapl:2": 20.0, "intel-rapl-mmio:0": 10.0}
    assert counted(zones, joules, tmp_path / "powercap") == ("powercap, 2 package(s)", pytest.approx(14.0))


def test_the_second_driver_counts_a_package_that_the_first_does_not_tell(tmp_path: Path) -> None:
    zones: dict[str, str | None] = {"intel-rapl-mmio:0": "package-0", "intel-rapl:0": "psys"}
    joules = {"intel-rapl-mmio:0": 10.0, "intel-rapl:0": 15.0}
    assert counted(zones, joules, tmp_path / "powercap") == ("powercap, 1 package(s)", pytest.approx(10.0))


@pytest.mark.parametrize("name", ["psys", None])
def test_a_machine_without_packages_is_counted_by_what_it_has(tmp_path: Path, name: str | None) -> None:
    told = counted({"intel-rapl:0": name}, {"intel-rapl:0": 15.0}, tmp_path / "powercap")
    assert told[1] == pytest.approx(15.0)


def test_a_machine_without_counters_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter, why = find_meter()
    assert meter is None
    assert "has no counters" in why
    Package(tmp_path / "powercap")

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        meter, why = find_meter()
    assert meter is None
    assert "no permission to read" in why
    assert "chmod a+r" in why
    (tmp_path / "powercap" / "intel-rapl:0" / "energy_uj").write_text("broken")
    assert "cannot be measured: invalid literal" in find_meter()[1]


class Nvml(SimpleNamespace):
    """As much of pynvml as is called: a counter of millijoules that grows by 50 J with every reading of it."""

    def __init__(self, gpus: dict[str, int]) -> None:
        super().__init__(read=[], gpus=gpus)

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return self.gpus[uuid]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self.read.append(handle)
        return 50_000 * len(self.read)


def test_a_gpu_is_counted_by_nvml_and_other_devices_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter, why = find_meter("torch-cuda")
    assert meter is None
    assert "pip install nvidia-ml-py" in why
    assert find_setting_faults(Job(budget=("30mJ",), device="torch-cuda-fp16")) != []
    nvml = Nvml({"GPU-abc": 5})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert find_setting_faults(Job(budget=("30mJ",), device="torch-cuda-fp16")) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    meter, _ = find_meter("torch-compile-cuda")
    assert meter is not None
    assert meter.joules() - meter.joules() == -50.0
    assert set(nvml.read) == {0, 3}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc")
    meter, _ = find_meter("torch-cuda")
    assert meter is not None
    assert (meter.name, nvml.read[-1]) == ("NVML, GPU GPU-abc", 5)
    assert find_meter("eyeriss") == (None, "eyeriss has no counters of energy here.")


def test_a_stated_power_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stated_watts() is None
    monkeypatch.setenv(energy.WATTS, "12.5")
    assert stated_watts() == 12.5
    for wrong in ("much", "-3", "0", "nan"):
        monkeypatch.setenv(energy.WATTS, wrong)
        with pytest.raises(InputError, match="is not a power in watts"):
            stated_watts()


def test_energy_budgets_need_a_counter_or_a_stated_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [fault] = find_setting_faults(Job(budget=("30mJ",), device="cpu"))
    assert re.search(r"no energy figures.* no counters in .*AUTOMC_WATTS=12\.5\), or give a budget on latency", fault)
    [fault] = find_setting_faults(Job(objective=("energy",), device="cpu"))
    assert re.search(
        r"no energy figures.* no counters in .*AUTOMC_WATTS=12\.5\), or leave --objective energy out", fault
    )
    with pytest.raises(InputError, match=r"no counters.*AUTOMC_WATTS=12.5"):
        Joules.of(Cpu(1), [])
    monkeypatch.setenv(energy.WATTS, "12.5")
    assert find_setting_faults(Job(budget=("30mJ",), device="cpu")) == []
    monkeypatch.delenv(energy.WATTS)
    Package(tmp_path / "powercap")
    assert find_setting_faults(Job(budget=("30mJ",), device="cpu")) == []
    [fault] = find_setting_faults(Job(budget=("30mJ",), device="ssh:pi@pi"))
    assert "ssh:pi@pi has no counters of energy here. State" in fault


def test_an_energy_budget_is_refused_for_want_of_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_zones: object) -> None:
        raise PermissionError

    Package(tmp_path / "powercap")
    monkeypatch.setattr(energy, "PowerCap", refuse)
    [fault] = find_setting_faults(Job(budget=("30mJ",), device="cpu"))
    assert re.search(r"no permission to read .*energy_uj \(an administrator.*AUTOMC_WATTS=12\.5", fault)


def test_a_search_within_a_stated_power_is_labelled_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(energy.WATTS, "8")
    options = {**OPTIONS, "recover": "0", "trials": 4, "profile": "3s"}
    result = automc.compress(trained(), data=data(), runs=str(tmp_path), budget="90%energy", **options)
    best, dense = result.summary.best, result.summary.dense
    assert best is not None
    for finalist in (best, dense):
        assert finalist.cost.source["energy_j"] == "predicted"
        assert finalist.cost.source["latency_s"] == "measured"
    assert best.cost.energy_j == pytest.approx(8 * (best.cost.latency_s or 0.0))
    assert result.certificate.energy_j == best.cost.energy_j
    assert best.cost.energy_j <= result.summary.limits["energy_j"]
    assert dense.cost.energy_j == pytest.approx(8 * (dense.cost.latency_s or 0.0))
    assert result.summary.limits["energy_j"] == pytest.approx(0.9 * (dense.cost.energy_j or 0.0))
    assert (result.certificate.watts, result.certificate.dense_energy_j) == (8.0, dense.cost.energy_j)

    config = tmp_path / result.summary.name / "config.yaml"
    assert yaml.safe_load(config.read_text())["watts"] == 8.0
    fields = read_recipe(config, {str(option.name): option for option in JOB_OPTIONS})
    assert fields["budget"] == ("90%energy",)
    assert "watts" not in fields

    monkeypatch.setenv(energy.WATTS, "16")
    again = {**options, "name": result.summary.name}
    run = RunDir.open(tmp_path, result.summary.name)
    with pytest.raises(InputError, match=r"8 W above idle, and AUTOMC_WATTS is 16. Set AUTOMC_WATTS=8"):
        certify_budget(run, Known.read(run), ["95%energy"], Silent())
    with pytest.raises(RunConflictError, match=r"watts = 8\.0.*16\.0"):
        automc.compress(trained(), data=data(), runs=str(tmp_path), budget="90%energy", **again)


def test_a_share_of_the_energy_is_of_what_the_counter_says_beside_the_finalists(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = itertools.chain([2.0, 2.0], itertools.repeat(1.0))  # the machine takes half as much from the search on

    def measure(meter: Any, run: Any) -> Energy:
        overhear(["another measurement held the lock"])
        return Energy(next(told), 4.0, 10.0, 20, 5.0, "a counter")

    monkeypatch.setattr("automc.joules.measure_energy", measure)
    options = {**OPTIONS, "recover": "0", "trials": 2, "profile": "3s", "name": "counted"}
    with pytest.raises(BudgetUnreachableError):
        automc.compress(trained(), data=data(), runs=str(tmp_path / "runs"), budget="90%energy", **options)
    summary = RunDir(tmp_path / "runs" / "counted").summary()
    assert summary.limits["energy_j"] == pytest.approx(0.9)
    assert all(f.noisy and "another measurement held the lock" in f.notes for f in summary.finalists)
    assert (summary.dense.cost.energy_j, summary.dense.cost.source["energy_j"]) == (1.0, "measured")


def test_a_counter_makes_the_energy_measured(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Energy(0.75, 4.0, 10.0, 20, 5.0, "a counter")
    monkeypatch.setattr("automc.joules.measure_energy", lambda meter, run: told)
    joules = Joules.of(Cpu(1), [networks.images(1).numpy()])
    subject = Subject.of_batch(networks.make("plain"), (networks.images(1),), 1, Cpu(1))
    cost = joules.told(automc.Cost(latency_s=0.1), subject.dense_onnx)
    assert (cost.energy_j, cost.source["energy_j"]) == (0.75, "measured")


@pytest.mark.parametrize("threads", [1, 2])
def test_what_the_counter_is_read_around_is_what_the_device_times(
    package: Package, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    seen: list[tuple[int, int]] = []
    run_session = TorchSession.run

    def run(session: TorchSession, *inputs: Any) -> list[Any]:
        seen.append((torch.get_num_threads(), len(os.sched_getaffinity(0))))
        return run_session(session, *inputs)

    def measured(meter: object, run: Any) -> Energy:
        warm.append(len(seen))
        run()
        return Energy(0.75, 4.0, 10.0, 1, 5.0, "a counter")

    warm: list[int] = []
    monkeypatch.setattr(TorchSession, "run", run)
    monkeypatch.setattr("automc.joules.measure_energy", measured)
    before, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    torch.set_num_threads(3 - threads)
    try:
        joules = Joules.of(Torch(threads), [np.ones((1, 8, 14, 14), np.float32)])
        joules.measure(conv_model(8, 8))
        assert torch.get_num_threads() == 3 - threads
    finally:
        torch.set_num_threads(before)
    assert warm[0] > 0
    assert seen[-1] == (threads, 1 if threads == 1 else cores)


def test_a_profile_keeps_the_energy_and_says_it(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_CANDIDATES", "MIN_CANDIDATES"):
        monkeypatch.setattr(f"automc.predict.profile.{limit}", 8)
    told = Energy(0.0125, 4.0, 10.0, 20, 5.0, "a counter")
    monkeypatch.setattr("automc.joules.measure_energy", lambda meter, run: told)
    subject = Subject.of_batch(networks.make("plain"), (networks.images(1),), 1, Cpu(1), label="plain")
    for _ in range(2):
        profile_subject(subject, Silent(), time_limit_s=2.0)
    path = device_path(subject.device.key)
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds.count("energy") == 1
    device = DeviceFile.read(path)
    assert device is not None
    assert any("12.50 mJ a batch above idle as measured by a counter (4.0 W idle" in line for line in learned(device))
