"""The whole job on a small trained network and real measurements: record, certificate, resume, and what cannot be reached."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from networks import Residual, images
from torch import nn
from torch.nn import functional as F

import automc
from automc.budget import Budget
from automc.clock import Clock
from automc.compression.quantize import requantize
from automc.devices.cpu import Cpu
from automc.errors import BudgetUnreachableError, InputError, RunConflictError
from automc.evaluate.data import Data, TensorSplit
from automc.evaluate.score import Score
from automc.export.run import export_run
from automc.job import Job, run
from automc.prepare import prepare
from automc.recovery.recover import recover
from automc.result import Summary
from automc.rundir import RunDir

NOTE = "not pinned to a core"
OPTIONS = {"trials": 8, "recover": "2s", "tracking_uri": "", "batch_size": 64, "profile": "6s", "name": "run"}


def samples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of five classes: five fixed patterns under noise."""
    patterns = images(5, seed=99)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return patterns[labels] + 0.7 * images(count, seed=seed), labels


@lru_cache(maxsize=1)
def data() -> Data:
    splits = [TensorSplit(*samples(count, seed), 64) for seed, count in enumerate((256, 128, 128, 200), start=10)]
    return Data(*splits, name="patterns")


@lru_cache(maxsize=1)
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = Residual(pad=False).train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    x, y = samples(512, 1)
    for step in range(60):
        rows = torch.arange(64) + 64 * (step % 8)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def compress(folder: Path, **changes: object) -> automc.Compressed:
    return automc.compress(trained(), data=data(), runs=str(folder), **{"budget": "75%", **OPTIONS, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[automc.Compressed, Path]:
    folder, measure = tmp_path_factory.mktemp("runs"), Cpu.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cpu, "measure", lambda *args, **kw: dataclasses.replace(measure(*args, **kw), notes=(NOTE,)))
        return compress(folder), folder / "run"


def test_the_winner_holds_the_budget_as_measured_and_keeps_its_accuracy(
    finished: tuple[automc.Compressed, Path],
) -> None:
    result, _ = finished
    best, dense = result.summary.best, result.summary.dense
    assert best is not None
    assert result.certificate.holds
    assert result.certificate.latency_interval_s[1] <= result.certificate.limits["latency_s"]
    assert best.test is not None
    assert dense.test is not None
    assert best.test >= dense.test - 0.05
    assert best.notes == (NOTE,)
    assert result.certificate.environment["notes"] == NOTE


def test_everything_is_on_disk(finished: tuple[automc.Compressed, Path]) -> None:
    result, folder = finished
    run_dir = RunDir(folder)
    assert run_dir.summary() == Summary.from_json(json.loads(json.dumps(result.summary.to_json())))
    assert run_dir.best.policy() == result.policy
    assert run_dir.best.certificate() == result.certificate
    assert (folder / "best" / "model.onnx").read_bytes() == result.onnx
    assert (folder / "report.html").stat().st_size > 1000
    numbers = [trial.number for trial in run_dir.trials()]
    assert sorted(numbers) == list(range(len(numbers)))  # they end in another order than they begin
    assert {trial.stage for trial in run_dir.trials()} == {"search", "finalist", "recovered"}


def test_a_stranger_gets_the_reported_accuracy_from_the_file(finished: tuple[automc.Compressed, Path]) -> None:
    result, folder = finished
    session = onnxruntime.InferenceSession(folder / "best" / "model.onnx", providers=["CPUExecutionProvider"])
    x, y = samples(200, 13)
    right = 0
    for start in range(0, 192, 64):
        logits = session.run(None, {"input": x[start : start + 64].numpy()})[0]
        right += int((np.argmax(logits, 1) == y[start : start + 64].numpy()).sum())
    assert result.summary.best is not None
    assert result.summary.best.test == pytest.approx(right / 192, abs=0.02)


def test_the_returned_model_scores_like_the_file(finished: tuple[automc.Compressed, Path]) -> None:
    result, _ = finished
    x, y = samples(200, 13)
    with torch.no_grad():
        score = float((result.model(x).argmax(1) == y).float().mean())
    assert result.summary.best is not None
    assert result.summary.best.test == pytest.approx(score, abs=0.02)


@pytest.mark.parametrize("format", ["onnx", "pt2", "policy"])
def test_the_winner_can_be_taken_home(finished: tuple[automc.Compressed, Path], format: str, tmp_path: Path) -> None:
    _, folder = finished
    path = export_run(folder, budget=None, knee=False, format=format, out=tmp_path)
    assert path.parent == tmp_path
    if format == "onnx":
        assert path.read_bytes() == (folder / "best" / "model.onnx").read_bytes()
    elif format == "pt2":
        torch.export.load(path)
    else:
        assert automc.Policy.from_json(json.loads(path.read_text())) == finished[0].policy


def test_other_points_can_be_taken_home_and_impossible_ones_are_named(
    finished: tuple[automc.Compressed, Path], tmp_path: Path
) -> None:
    _, folder = finished
    assert export_run(folder, budget=None, knee=True, format="policy", out=tmp_path).is_file()
    assert export_run(folder, budget="100%", knee=False, format="policy", out=tmp_path).is_file()
    with pytest.raises(InputError, match="holds 1us"):
        export_run(folder, budget="1us", knee=False, format="onnx", out=tmp_path)


def test_a_finished_search_is_not_searched_again(
    finished: tuple[automc.Compressed, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = finished
    before = [trial for trial in RunDir(folder).trials() if trial.stage == "search"]
    scores = before_recovery(finished[0].summary)
    monkeypatch.delattr("automc.prepare.sensitivities")  # the losses of single choices are those of the first attempt
    result = compress(folder.parent, recover="0")
    assert result.summary.best is not None
    assert RunDir(folder).best.is_of(result.summary.best)
    assert result.onnx == (folder / "best" / "model.onnx").read_bytes()
    again = before_recovery(result.summary)
    assert again
    assert again.items() <= scores.items()
    after = [trial for trial in RunDir(folder).trials() if trial.stage == "search"]
    assert after[: len(before)] == before
    assert len({trial.policy.digest for trial in after}) == len(after)


def before_recovery(summary: Summary) -> dict[automc.Policy, object]:
    return {f.policy: f.before_recovery for f in summary.finalists if f.stage == "recovered"}


def test_another_search_under_the_same_name_is_refused(finished: tuple[automc.Compressed, Path]) -> None:
    _, folder = finished
    with pytest.raises(RunConflictError, match="budget"):
        compress(folder.parent, budget="50%")


def test_trials_can_be_watched_and_a_search_broken_off_keeps_its_record(tmp_path: Path) -> None:
    trials = automc.search(trained(), data=data(), runs=str(tmp_path), budget="75%", **OPTIONS)
    first = [next(trials), next(trials)]
    trials.close()  # type: ignore[attr-defined]
    assert [trial.policy for trial in RunDir(tmp_path / "run").trials()] == [trial.policy for trial in first]


def right(model: nn.Module, loader: Any) -> float:
    """Accuracy as people write it who score on any device."""
    device = next(model.parameters()).device
    was_training = model.training
    model.to(device).eval()
    found = [(model(x.to(device)).argmax(1) == y.to(device)).float() for x, y in loader]
    model.train(was_training)
    assert not was_training
    return float(torch.cat(found).mean())


def test_a_score_function_may_ask_the_model_where_it_is(tmp_path: Path) -> None:
    result = compress(tmp_path, evaluate=right, recover="0", trials=4)
    deployed = result.summary.best
    assert deployed is not None
    assert deployed.validation == pytest.approx(right(result.model, data().validation), abs=0.02)


def test_what_was_handed_over_stays_until_a_search_that_goes_on_has_ended(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = compress(tmp_path, budget="10s", recover="0", trials=4)
    record = ("best/model.onnx", "best/policy.json", "front.json", "summary.json", "tables.json")
    before = {name: (run_dir / name).read_bytes() for name in record}
    again: Any = automc.search(
        trained(), data=data(), runs=str(tmp_path), **{**OPTIONS, "budget": "10s", "recover": "0", "trials": 8}
    )
    next(again)  # the dense model, which holds the budget and is measured first
    again.close()
    assert {name: (run_dir / name).read_bytes() for name in record} == before
    taken = export_run(run_dir, budget=None, knee=False, format="onnx", out=tmp_path)
    assert taken.read_bytes() == done.onnx


def test_a_budget_beyond_reach_says_the_smallest_found(tmp_path: Path) -> None:
    with pytest.raises(BudgetUnreachableError, match=r"Nothing held 1% .*the nearest takes") as caught:
        compress(tmp_path, budget="1%", recover="0", trials=4)
    assert caught.value.exit_code == 3
    summary = RunDir(tmp_path / "run").summary()
    assert summary.best is None
    assert re.search(r"most is in .+ \d+ %, .+; \d+ % is between layers", summary.notes[-1])


def test_a_dense_model_that_holds_the_budget_is_said_and_nothing_worse_handed_over(tmp_path: Path) -> None:
    result = compress(tmp_path, budget="10s", recover="0")
    best, dense = result.summary.best, result.summary.dense
    assert result.summary.dense_meets_budget
    assert best is not None
    assert best.validation >= dense.validation - 0.005
    assert result.certificate.latency_s < 1.2 * result.certificate.dense_latency_s


def test_limits_on_size_hold_for_the_file(tmp_path: Path) -> None:
    dense = run_size(tmp_path)
    result = compress(tmp_path, name="small", budget=("90%", f"{int(0.8 * dense)}B"), recover="0")
    assert len(result.onnx) <= 0.8 * dense


def run_size(folder: Path) -> int:
    return int(compress(folder, recover="0").summary.dense.cost.size_bytes or 0)


def test_recovery_brings_a_strongly_pruned_model_back() -> None:
    from automc.devices.cpu import Cpu
    from automc.job import Silent

    prepared = prepare(
        trained(), data(), Score("none", lambda model, split: 0.0), Cpu(), batch_size=16, space="default", seed=0, profile_s=4.0,
        observer=Silent(), clock=Clock(),
    )  # fmt: skip
    layers = [layer.name for layer in prepared.traced.graph.layers if layer.quantize]
    rounded = [(name, automc.Quantize(4, 8)) for name in layers[1:3]]
    quarters = [(g.name, automc.Prune(g.width // 4)) for g in prepared.traced.graph.groups]
    policy = automc.Policy.of([*quarters, *rounded])
    pruned = prepared.stitcher.apply(policy)
    x, _ = samples(256, 77)
    reference = prepared.traced.model(x)

    def error(model: nn.Module) -> float:
        return float((model(x) - reference).square().mean())

    recovered = recover(pruned, prepared, seconds=4.0, seed=0)
    assert error(recovered) < 0.7 * error(pruned)
    assert [p.shape for p in recovered.parameters()] == [p.shape for p in pruned.parameters()]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in recovered.modules())
    on_grid = copy.deepcopy(recovered)
    requantize(on_grid)
    trained_parts, kept_parts = recovered.state_dict(), pruned.state_dict()
    for name, tensor in on_grid.state_dict().items():
        torch.testing.assert_close(tensor, trained_parts[name])
    assert any(
        not torch.equal(trained_parts[f"{name}.inner.weight"], kept_parts[f"{name}.inner.weight"])
        for name, _ in rounded
    )


def test_a_failing_recovery_costs_nothing_but_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> nn.Module:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("automc.engine.recover", broken)
    result = compress(tmp_path)
    assert result.certificate.holds
    assert {finalist.stage for finalist in result.summary.finalists} == {"finalist"}
    taken = export_run(tmp_path / "run", budget=None, knee=False, format="onnx", out=tmp_path)
    assert taken.read_bytes() == result.onnx


def test_a_finalist_that_cannot_be_exported_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from automc.certify import Certifier

    export, calls = Certifier._export, []

    def once(self: Certifier, candidate: Any) -> bytes:
        calls.append(candidate)
        if len(calls) == 1:
            raise RuntimeError("operator unknown")
        return export(self, candidate)

    monkeypatch.setattr(Certifier, "_export", once)
    result = compress(
        tmp_path, recover="0", agent="random"
    )  # proposes policies that differ in more than their integers
    assert result.certificate.holds
    failed = [trial for trial in RunDir(tmp_path / "run").trials() if trial.state == "failed"]
    assert [trial.reason for trial in failed] == ["RuntimeError: operator unknown"]


def test_loaders_that_yield_single_samples_can_be_distilled_from(tmp_path: Path) -> None:
    x, y = samples(40, 5)
    single = Data(TensorSplit(x, y, 1), data().calibration, data().validation, None, name="single")
    result = automc.compress(trained(), data=single, runs=str(tmp_path), budget="75%", **{**OPTIONS, "recover": "1s"})
    assert {finalist.stage for finalist in result.summary.finalists} == {"finalist", "recovered"}
    assert result.summary.best is not None
    assert result.summary.best.test is None


def test_a_module_and_a_model_to_load_are_not_both_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Both a module"):
        automc.compress(trained(), data=data(), weights="w.safetensors", runs=str(tmp_path))
    with pytest.raises(InputError, match="--batch-size is 0"):
        automc.compress(trained(), data=data(), batch_size=0, runs=str(tmp_path))


def test_a_job_with_a_slip_spends_and_writes_nothing(tmp_path: Path) -> None:
    for change in ({"budget": ("50 parsecs",)}, {"agent": "ipl"}, {"recover": "soon"}, {"device": "cup"}):
        with pytest.raises(InputError):
            run(Job(runs=str(tmp_path), **change))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_budget_given_in_python_may_be_one_text_or_several() -> None:
    assert len(Budget.parse("50ms", "1MB").limits) == 2
    with pytest.raises(InputError, match="There is no option 'budgets'"):
        automc.compress(trained(), data=data(), budgets="50ms")


def test_knobs_that_change_nothing_that_is_limited_stay_out_of_the_search(tmp_path: Path) -> None:
    options = {**OPTIONS, "space": "default", "trials": 6, "recover": "0"}
    trials = list(automc.search(trained(), data=data(), runs=str(tmp_path), budget="60%macs", **options))
    searched = [trial for trial in trials if trial.stage == "search"]
    assert len(searched) >= 6
    assert not [trial for trial in searched if any(spec.knob == "quantize" for _, spec in trial.policy)]
    assert all(trial.worth is not None for trial in searched if trial.score is not None)
