"""Candidates told apart by short distillations, and a limited time shared between profile, search and recovery."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_engine import OPTIONS, data, trained
from test_training import policy, prepared

import automc
from automc.budget import Budget
from automc.engine import Settings
from automc.errors import InputError
from automc.evaluate.score import Score
from automc.job import Job, Silent
from automc.policy import Policy, Prune
from automc.recovery.fidelity import distilled, halve, rungs
from automc.recovery.student import Lesson
from automc.task import Task

SEARCH: dict[str, Any] = {
    **OPTIONS,
    "profile": "2s",
    "recover": "2s",
    "device": "eyeriss",
    "budget": "15%",
    "batch_size": 16,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distillations of two and four steps."""
    monkeypatch.setattr("automc.recovery.fidelity.SHORT", 2)
    monkeypatch.setattr("automc.recovery.fidelity.LONG", 4)


def test_time_is_spent_on_as_many_candidates_as_it_suffices_for() -> None:
    assert rungs(20, 79) == []
    assert rungs(20, 100) == [(25, 4)]
    assert rungs(20, 100, extra=4) == [(21, 4)]
    assert rungs(20, 100, extra=6) == []
    assert rungs(1, 1e9) == []
    assert rungs(20, 300) == [(50, 6)]
    assert rungs(20, 850) == [(50, 5), (200, 3)]
    assert rungs(20, 1e9) == [(50, 12), (200, 3)]
    assert rungs(2, 1e9) == [(50, 2), (200, 2)]
    assert all(sum(steps * count for steps, count in rungs(20, total)) <= total for total in range(200, 2000, 37))


@pytest.mark.usefixtures("_short")
def test_the_best_after_a_few_steps_are_distilled_for_longer() -> None:
    groups = prepared().traced.graph.groups
    gentle = [Policy.of([(g.name, Prune(g.width - 1)) for g in groups[: 1 + i]]) for i in range(len(groups))]
    found = halve([policy(), *gentle], prepared(), seconds=1e9, seed=0, observer=Silent())
    assert set(found) == {policy(), *gentle}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert [steps for steps, *_ in found.values()] == [4] * min(3, len(found)) + [2] * (len(found) - 3)
    assert list(found)[-1] == policy()
    assert halve([policy(), *gentle], prepared(), seconds=0.0, seed=0, observer=Silent()) == {}


def test_what_cannot_be_scored_after_its_distillation_promises_what_it_was() -> None:
    scores = iter([0.9])

    def once(model: object, split: object) -> float:
        try:
            return next(scores)
        except StopIteration:
            raise InputError("The score is not a finite number.") from None

    taught_once = replace(Lesson.of(prepared()), score=Score("once", once))
    assert distilled(policy(), prepared(), taught_once, 2, 0)[:2] == (2, 0.9)


@pytest.mark.usefixtures("_short")
def test_a_search_recovers_what_promises_most(tmp_path: Path) -> None:
    whole = automc.compress(trained(), data=data(), runs=str(tmp_path), **SEARCH, fidelity="on").summary
    assert whole.seconds["distil"] > 0
    assert any(finalist.stage == "recovered" for finalist in whole.finalists)
    options = {**SEARCH, "name": "plain", "fidelity": "off"}
    assert "distil" not in automc.compress(trained(), data=data(), runs=str(tmp_path), **options).summary.seconds


def test_a_search_that_is_out_of_time_hands_over_the_best_so_far(tmp_path: Path) -> None:
    options = {**SEARCH, "budget": "60%", "trials": 10_000, "agent": "random", "timeout": "2s"}
    result = automc.compress(trained(), data=data(), runs=str(tmp_path), **options)
    assert result.certificate.holds
    assert result.summary.trials < 10_000
    assert (tmp_path / "run" / "best" / "model.onnx").read_bytes() == result.onnx


def test_a_limited_time_is_shared() -> None:
    budget = Budget.parse("50ms")
    assert Settings(budget, recover_s=60).reserved_s == 60
    assert Settings(budget, recover_s=60, timeout_s=100).reserved_s == pytest.approx(30)
    assert Settings(budget, recover_s=60, timeout_s=100, finetune_epochs=3).reserved_s == pytest.approx(60)
    assert Settings(budget, recover_s=60, finetune_epochs=3).reserved_s == 60
    task = Task.of(Job(timeout="100s"))
    assert task.profile_s == pytest.approx(15)
    assert 90 < task.settings.left_s <= 100
    assert Task.of(Job()).profile_s == 30
    assert math.isinf(Task.of(Job(timeout="0")).settings.left_s)


def test_fidelities_and_epochs_are_checked_first() -> None:
    with pytest.raises(InputError, match="no fidelity called 'of'"):
        Task.of(Job(fidelity="of"))
    with pytest.raises(InputError, match="--finetune-epochs is -1"):
        Task.of(Job(finetune_epochs=-1))
