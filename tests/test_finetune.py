"""`automc finetune`: a model of a finished run is trained on, certified again, and kept where it is better."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
from test_engine import OPTIONS, data, trained
from torch import nn

import automc
from automc.cli.main import main
from automc.errors import InputError, RunConflictError, UnknownNameError
from automc.evaluate.data import Data
from automc.job import Silent
from automc.rundir import RunDir

ray = pytest.importorskip("ray")
SEARCH: dict[str, Any] = {
    **OPTIONS,
    "trials": 4,
    "profile": "2s",
    "recover": "0",
    "device": "eyeriss",
    "budget": "15%",
    "objective": ("size",),
    "batch_size": 16,
}


@pytest.fixture(scope="module", autouse=True)
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from automc.execute.ray import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        connect(None, 1)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    automc.compress(trained(), data=data(), runs=str(folder), **SEARCH)
    return folder


def tune(runs: Path, name: str = "run", **options: Any) -> automc.Tuned:
    given = {"model": trained(), "data": data(), "epochs": 12, "trainings": 1, **options}
    return automc.finetune(name, runs=str(runs), **given)


class Impatient(Silent):
    """Presses Ctrl-C after the first round. Like a terminal, it cannot be sent to other processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        if "trainings" in note:
            raise KeyboardInterrupt


class Listening(Silent):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


def histories(folder: Path) -> dict[str, int]:
    """Checkpoint -> rounds trained."""
    found = {}
    for path in folder.glob("finetune/*/*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            found[path.name] = len(json.loads(file.metadata()["training"])["history"])
    return found


def headings(report: Path) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", report.read_text())


def no_worse(point: dict[str, Any], other: dict[str, Any]) -> bool:
    """In score, latency and size, which the front is drawn in."""
    costs = ((point["cost"][metric], other["cost"][metric]) for metric in ("latency_s", "size_bytes"))
    return point["score"] >= other["score"] and all(a <= b for a, b in costs)


def test_a_better_model_takes_the_place_of_the_winner(runs: Path) -> None:
    run = RunDir.open(runs, "run")
    before, front = run.summary().best, run.front()
    sections = headings(run.report)
    assert {"Where the time goes, layer by layer", "What each choice alone hurts"} <= set(sections)
    assert before is not None
    with pytest.raises(KeyboardInterrupt):
        tune(runs, observer=Impatient())
    assert max(histories(run.path).values()) >= 1
    assert run.summary().best == before

    tuned = tune(runs)
    best = run.summary().best
    assert best is not None
    assert tuned.is_kept
    assert best == tuned.after
    assert best.merit > before.merit
    assert best.divergence is not None
    assert before.divergence is not None
    assert best.divergence < before.divergence
    assert all(training["history"] for training in run.trainings())
    assert best.holds
    assert best.before_recovery == (before.validation, before.test)
    assert best.policy == before.policy
    assert run.best.certificate().latency_s == best.cost.latency_s
    assert run.trials()[-1].stage == "recovered"
    assert run.trials()[-1].worth == best.worth
    assert all(any(no_worse(point, other) for point in run.front()) for other in front)
    assert (run.path / "best" / "model.onnx").read_bytes() == run.model_path(best).read_bytes()
    assert "before recovery" in run.report.read_text()
    assert headings(run.report) == sections
    assert not (run.path / "finetune").exists()

    again = automc.compress(trained(), data=data(), runs=str(runs), **SEARCH).summary.best
    assert again is not None
    assert (again.policy, again.stage) == (best.policy, "recovered")
    assert again.merit == pytest.approx(best.merit)


@pytest.mark.slow
def test_a_trial_of_the_search_is_tuned_without_labels_or_training_samples(runs: Path) -> None:
    run = RunDir.open(runs, "run")
    winner = run.summary().best
    assert winner is not None
    number = next(t.number for t in run.trials() if t.policy != winner.policy and t.stage == "search")
    listening = Listening()
    unlabelled = Data(None, data().calibration, data().validation, data().test, name=data().name)
    automc.compress(trained(), data=unlabelled, runs=str(runs), **{**SEARCH, "name": "bare"})
    tuned = tune(runs, "bare", data=unlabelled, point=str(number), time="15s", epochs=None, observer=listening)
    assert any("no training samples" in message for message in listening.messages)
    assert tuned.after.policy == RunDir.open(runs, "bare").trials()[number].policy


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"point": "worst"}, "has no point 'worst'"),
        ({"point": "9999"}, "best, knee, or the number of a trial"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"workers": 999}, "999 workers of 1 CPUs need 999, and this machine"),
        ({"workers": 999, "address": "127.0.0.1:6379"}, "999 workers of 1 CPUs need 999, and the Ray cluster has 1"),
        ({"time": "4MB"}, "not a duration"),
        ({"time": "0"}, "no time"),
        ({"time": 0}, "no time"),
        ({"rate": 1}, "There is no option 'rate'"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(432, 5))},
            "The model is not what the run 'run' was made with",
        ),
        ({"data": replace(data(), name="other")}, "The data is not what the run"),
    ],
)
def test_a_slip_is_told_in_a_sentence_and_changes_nothing(runs: Path, options: dict[str, Any], said: str) -> None:
    before = (runs / "run" / "summary.json").read_bytes()
    with pytest.raises(InputError, match=said):
        tune(runs, **options)
    assert (runs / "run" / "summary.json").read_bytes() == before


def test_runs_that_cannot_be_tuned(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'run'"):
        tune(runs, "rum")
    RunDir.create(tmp_path / "going", {"model": None}).close()
    with pytest.raises(InputError, match="has not ended"):
        tune(tmp_path, "going")
    assert main(["finetune", "--run", "going", "--runs", str(tmp_path)]) == 2
    assert "automc search" in capsys.readouterr().err


def test_a_run_that_is_being_written_is_left_alone(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(self: RunDir) -> None:
        raise RunConflictError("Another search is writing the run 'run'.")

    monkeypatch.setattr(RunDir, "lock", taken)
    with pytest.raises(RunConflictError):
        tune(runs)


@pytest.mark.slow
def test_a_search_fine_tunes_its_winner(tmp_path: Path) -> None:
    options = {**SEARCH, "finetune_epochs": 2}
    summary = automc.compress(trained(), data=data(), runs=str(tmp_path), **options).summary
    assert summary.best is not None
    assert summary.seconds["finetune"] > 0
    before = max(f.merit for f in summary.finalists if f.stage == "finalist" and f.holds)
    assert any(finalist.stage == "recovered" for finalist in summary.finalists)
    assert summary.best.merit >= before
    assert RunDir.open(tmp_path, "run").trainings()
    assert not (tmp_path / "run" / "finetune").exists()
