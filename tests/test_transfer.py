"""A new device by few measurements: what devices with a profile of the same model teach, and when nothing may be claimed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import synthetic

from automc.cli.main import main
from automc.devices.device import Array, Model, NodeTime
from automc.devices.measure import Measurement
from automc.errors import InputError
from automc.job import Silent
from automc.predict.device_file import find_device_file
from automc.predict.profile import profile_model
from automc.predict.words import learned
from automc.profiling import Subject
from automc.transfer import transfer


class Kin(synthetic.ClosedFormDevice):
    """A device on which kernels take `work` times as long as on the closed-form one, and nodes cost `node_s` more."""

    noisy = False
    notes: tuple[str, ...] = ()

    def __init__(self, name: str, work: float, node_s: float, luck: float = 0.0) -> None:
        super().__init__(noise=0.002)
        self.name = self.key = name
        self.work, self.node_s, self.luck = work, node_s, luck

    def environment(self) -> dict[str, str]:
        return {"device": self.name, "processor": self.name}

    def node_times(self, model: Model, inputs: Sequence[Array], repeats: int = 5) -> list[NodeTime]:
        nodes = synthetic.closed_form_nodes(model)
        return [replace(node, time_s=self.work * node.time_s + self.node_s) for node in nodes]

    def measure(
        self, models: Mapping[str, Model], inputs: Sequence[Array], rounds: int = 12, **options: Any
    ) -> Measurement:
        rng = np.random.default_rng(0)
        totals = {name: sum(node.time_s for node in self.node_times(model, inputs)) for name, model in models.items()}
        lucky = {name: total * np.exp(rng.normal(0, self.luck)) for name, total in totals.items()}
        values = {name: tuple(t * np.exp(rng.normal(0, self.noise, rounds))) for name, t in lucky.items()}
        return Measurement(values, self.noisy, self.notes)


def subject(device: Kin) -> Subject:
    return Subject.of_batch(networks.make("plain"), (networks.images(2),), 1, device, label="plain")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Three devices with a profile of the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("automc.predict.profile.MAX_CANDIDATES", 16)
        for device in (Kin("phone", 8.0, 1e-6), Kin("board", 3.0, 2e-5), Kin("server", 0.5, 3e-6)):
            mine = subject(device)
            arrays = [tensor.numpy() for tensor in mine.example]
            profile_model(mine.device, mine.builder(), mine.offered.graph, mine.offered.space, arrays, mine.dense_onnx)
        yield


@pytest.mark.usefixtures("known")
def test_a_device_between_known_ones_is_predicted_from_few_measurements() -> None:
    told = transfer(subject(Kin("new", 2.0, 8e-6)), 12, Silent())
    assert sorted(told.known) == ["board", "phone", "server"]
    assert told.shots == 12
    assert told.may_claim
    assert told.error < 0.06
    assert told.low_s < told.dense_s
    assert "12 measurements and a prior of 3 devices" in "\n".join(learned(find_device_file("new")))


@pytest.mark.usefixtures("known")
def test_a_device_like_none_may_not_be_claimed_of() -> None:
    told = transfer(subject(Kin("moody", 2.0, 8e-6, luck=0.5)), 10, Silent())
    assert not told.may_claim
    assert "nothing may be claimed" in told.told()


@pytest.mark.usefixtures("known")
def test_a_busy_machine_is_said_and_kept() -> None:
    device = Kin("busy", 2.0, 8e-6)
    device.noisy, device.notes = True, ("not pinned to a core",)
    told = transfer(subject(device), 10, Silent())
    assert (told.noisy, told.notes) == (device.noisy, device.notes)
    said = "The machine was busy while this was measured: measure again before relying on it. Not pinned to a core."
    assert told.told().endswith(said)
    assert said in "\n".join(learned(find_device_file("busy")))
    device.noisy, device.notes = False, ()
    assert "busy" not in transfer(subject(device), 10, Silent()).told()


def test_without_known_devices_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="two other devices"):
        transfer(subject(Kin("new", 1.0, 0.0)), 10, Silent())
    with pytest.raises(InputError, match="too few"):
        transfer(subject(Kin("new", 1.0, 0.0)), 2, Silent())


@pytest.mark.usefixtures("known")
def test_the_command_line_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("automc.predict.targets.open_device", lambda text, threads: Kin("new", 2.0, 8e-6))
    monkeypatch.setattr("automc.cli.profile._subject", lambda fields, dims, device: subject(device))
    assert main(["profile", "--few", "10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shots"] == 10
    assert told["may_claim"]
    assert main(["profile", "--few", "10", "--probes-only"]) == 2
    assert "--few measures a model" in capsys.readouterr().err
