"""`automc solve`: other budgets answered from what a run knows, and measured."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from records import make_summary, make_tables, make_trials, write_run

from automc.answering import Known, expected_score
from automc.arena import open_arena
from automc.budget import Budget
from automc.cli.main import main
from automc.export.run import chosen
from automc.job import Silent
from automc.policy import Policy, Quantize
from automc.reopening import job_of
from automc.resolve import certify_budget
from automc.result import Finalist
from automc.rundir import RunDir
from automc.trial import Cost, Trial

TRIALS = make_trials()
SUMMARY = make_summary(TRIALS)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    """A finished run in ./runs, and a command line that leaves this process's logging alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    run = write_run(tmp_path / "runs" / "one", TRIALS, SUMMARY)
    yield run
    run.close()


def test_an_answer_is_written_without_loading_anything(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["solve", "--run", "one", "--budget", "60ms", "--budget", "700kB", "--no-certify", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["estimated"]["latency_s"] <= 0.060
    assert told["estimated"]["size_bytes"] <= 700e3
    written = json.loads((recorded.path / "solved" / "60ms-700kB" / "policy.json").read_text())
    assert Policy.from_json(written).digest == told["digest"]


def test_what_was_measured_and_tried_stands_beside_the_answer(
    recorded: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", "--run", "one", "--budget", "50ms", "--no-certify"]) == 0
    shown = capsys.readouterr().out
    assert all(row in shown for row in ("measured before", "tried, as predicted", "answer, as estimated"))


def test_a_budget_out_of_reach_names_the_nearest(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--run", "one", "--budget", "1ms", "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "BudgetUnreachableError"
    assert "ms" in error["message"].partition("nearest")[2]
    assert not (recorded.path / "solved").exists()


def test_the_limit_that_is_suggested_is_enough(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["solve", "--run", "one", "--json", "--no-certify", "--budget"]
    assert main([*arguments, "1ms"]) == 3
    suggested = json.loads(capsys.readouterr().out)["error"]["message"].partition("estimated at ")[2].rstrip(".")
    assert main([*arguments, suggested]) == 0
    assert main(["explain", "--run", "one", "--budget", "1ms"]) == 0
    assert f"Relax latency to {suggested}" in capsys.readouterr().out


def test_a_budget_that_the_dense_model_holds_needs_no_device(
    recorded: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", "--run", "one", "--budget", "1s"]) == 0
    assert "nothing has to be compressed" in capsys.readouterr().out


def test_a_measured_model_is_the_answer_where_the_tables_know_none(
    recorded: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Known.read(recorded)
    assert known.solved(Budget.parse("1ms").resolve(known.reference.dense.cost)) is None
    fast = dataclasses.replace(
        SUMMARY.finalists[0], cost=Cost(0.9e-3, None, 5e5, 1e6, (0.8e-3, 0.95e-3), {"latency_s": "measured"})
    )
    recorded.write_summary(dataclasses.replace(SUMMARY, finalists=(*SUMMARY.finalists, fast)))

    assert main(["solve", "--run", "one", "--budget", "1ms", "--no-certify"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "measured before" in shown
    assert "as estimated" not in shown
    assert "automc export --run one --budget 1ms" in shown
    assert main(["solve", "--run", "one", "--budget", "0.5ms", "--no-certify"]) == 3
    assert "950" in " ".join(capsys.readouterr().err.split())


def _finalist(latency_s: float, score: float, worth: float | None = None, digest: int = 0) -> Finalist:
    cost = Cost(latency_s, None, 5e5, 1e6, (latency_s, latency_s), {"latency_s": "measured"})
    return Finalist(TRIALS[digest].policy, cost, None, score, None, True, "finalist", worth=worth)


DENSE_AGAIN = dataclasses.replace(SUMMARY.dense, stage="finalist")


@pytest.mark.parametrize(
    ("budget", "finalists", "winner", "expected"),
    [
        ("60ms", [_finalist(0.05, 0.98, 0.95), _finalist(0.05, 0.97, 0.96, 1)], None, 1),
        ("60ms", [_finalist(0.05, 0.98), _finalist(0.03, 0.98, digest=1), _finalist(0.04, 0.98, digest=2)], None, 1),
        ("1s", [DENSE_AGAIN, _finalist(0.05, 0.991), _finalist(0.03, 0.99), _finalist(0.01, 0.9)], None, 2),
        ("50ms", [_finalist(0.04, 0.98), _finalist(0.03, 0.99, digest=1)], 0, 0),
        ("60ms", [_finalist(0.04, 0.98), _finalist(0.03, 0.99, digest=1)], 0, 1),
    ],
    ids=["worth", "equals", "dense-holds", "own", "not-own"],
)
def test_the_best_within_a_budget_is_what_a_search_for_it_would_choose(
    budget: str, finalists: list[Finalist], winner: int | None, expected: int
) -> None:
    best = None if winner is None else finalists[winner]
    summary = dataclasses.replace(SUMMARY, finalists=tuple(finalists), best=best)
    assert chosen(summary, budget, at_knee=False) is finalists[expected]
    limits = Budget.parse(budget).resolve(summary.dense.cost)
    assert Known.of(summary, TRIALS, None).measured(limits) is finalists[expected]


def test_a_faster_model_is_told_of_where_the_dense_one_does(
    recorded: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.write_summary(dataclasses.replace(SUMMARY, finalists=(DENSE_AGAIN, _finalist(0.03, 0.99))))
    assert main(["solve", "--run", "one", "--budget", "1s"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "30.0 ms" in shown
    assert "a faster one: `automc export --run one --budget 1s` writes the model" in shown


def test_a_trial_counts_by_what_it_is_expected_to_take(recorded: RunDir) -> None:
    known = Known.read(recorded)
    cost = Cost(0.9e-3, None, 5e5, 1e6, (0.7e-3, 1.2e-3), {"latency_s": "predicted"})
    trial = dataclasses.replace(TRIALS[0], cost=cost, score=0.5, stage="search", samples=None, state="complete")
    budget = Budget.parse("1ms").resolve(known.reference.dense.cost)
    assert dataclasses.replace(known, trials=[trial]).tried(budget) == trial


def test_a_dense_model_outside_the_budget_is_no_answer_whatever_the_tables_estimate(recorded: RunDir) -> None:
    known = Known.read(recorded)
    assert known.tables is not None
    dense = known.reference.dense
    optimistic = dataclasses.replace(known, tables=known.tables.slowed(0.9))
    answer = optimistic.solved(Budget.parse(f"{950 * (dense.cost.latency_s or 0.0)}ms").resolve(dense.cost))
    assert answer is not None
    assert len(answer.policy)


def test_slower_tables_are_slower_in_time_and_energy_alone(recorded: RunDir) -> None:
    tables = recorded.tables()
    assert tables is not None
    for before, after in zip(tables.anchors, tables.slowed(2.0).anchors, strict=True):
        assert after.cost.latency_s == 2.0 * (before.cost.latency_s or 0.0)
        assert after.cost.size_bytes == before.cost.size_bytes
        for metric, rows in before.changed.items():
            factor = 2.0 if metric in ("latency_s", "energy_j") else 1.0
            assert after.changed[metric] == tuple(tuple(factor * value for value in row) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--sweep"),
        (["--budget", "50 parsecs"], "not a budget"),
        (["--budget", "30mJ"], "energy_j"),
        (["--budget", "30ms", "--budget", "20ms"], "Two budgets"),
    ],
)
def test_a_slip_is_bad_input(
    arguments: list[str], word: str, recorded: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", "--run", "one", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_a_run_without_tables_says_what_to_do(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    (recorded.path / "tables.json").unlink()
    assert main(["solve", "--run", "one", "--budget", "30ms"]) == 2
    assert "goes on with it" in capsys.readouterr().err


def test_a_search_that_has_not_ended_can_be_asked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "going", TRIALS, None)
    answer = Known.read(run).solved(Budget.parse("60ms"))
    assert answer is not None
    assert answer.costs["latency_s"] <= 0.060


def test_the_sweep_falls_with_the_limit_and_is_kept(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--run", "one", "--sweep", "--budget", "900kB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    losses = [point["loss"] for point in told["points"]]
    assert len(losses) > 10
    assert losses == sorted(losses, reverse=True)
    assert all(point["estimated"]["latency_s"] <= point["limit"] * (1 + 1e-9) for point in told["points"])
    assert all(point["estimated"]["size_bytes"] <= 900e3 for point in told["points"])
    assert json.loads((recorded.path / "sweep-latency.json").read_text())["points"] == told["points"]
    assert (recorded.path / "sweep-latency.svg").read_text().startswith("<svg")


def test_the_expected_score_falls_and_follows_the_trials() -> None:
    tables = make_tables()
    layers = [d.target for d in tables.domains if d.knob == "quantize"]
    policies = [Policy.of((name, Quantize(8, 8)) for name in layers[:count]) for count in range(1, 8)]
    losses = np.cumsum([tables.loss[i][1] for i, d in enumerate(tables.domains) if d.knob == "quantize"])
    noise = [0.0, 0.02, -0.02, 0.0, 0.01, -0.01, 0.0]
    trials = [Trial(i, p, Cost(), 0.99 - 0.1 * losses[i] + noise[i]) for i, p in enumerate(policies)]
    expected = expected_score(tables, trials, 0.99)
    values = [expected(loss) for loss in np.linspace(0.0, losses[6], 20)]
    assert values[0] == 0.99
    assert all(a is not None and b is not None and a >= b for a, b in itertools.pairwise(values))
    assert expected(float(losses[3])) == pytest.approx(0.99 - 0.1 * losses[3], abs=0.02)
    assert expected(math.inf) is None
    assert expected(2 * float(losses[6])) is None


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    folder = tmp_path_factory.mktemp("solve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield tiny_run.searched(folder)


def test_an_answer_whose_recovery_fails_is_handed_over_as_it_is(
    searched: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    monkeypatch.setattr("automc.resolve.recover", broken)
    limit = f"{0.7 * (Known.read(searched).reference.dense.cost.size_bytes or 0.0):.0f}B"
    assert (
        main(["solve", "--run", "tiny", "--runs", str(searched.path.parent), "--budget", limit, "--recover", "1s"]) == 0
    )
    shown = capsys.readouterr()
    assert "Recovery failed and is left out: RuntimeError: out of memory" in shown.err
    assert (searched.path / "solved" / limit / "model.onnx").exists()


def test_a_curve_over_what_the_run_does_not_know_is_bad_input(
    recorded: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", "--run", "one", "--sweep", "--metric", "energy"]) == 2
    assert "know nothing of the energy" in capsys.readouterr().err


def test_an_answer_is_measured_and_the_winner_of_the_search_left_alone(
    searched: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    before = (searched.path / "trials.jsonl").read_bytes()
    winner = {path.name: path.read_bytes() for path in (searched.path / "best").iterdir()}
    limit = 0.6 * (Known.read(searched).reference.dense.cost.size_bytes or 0.0)
    asked = ["solve", "--run", "tiny", "--runs", str(searched.path.parent), "--budget", f"{limit:.0f}B"]
    assert main([*asked, "--recover", "0.5s"]) == 0
    shown = capsys.readouterr()
    assert "Measured:" in shown.out
    assert "recover the answer" in shown.err
    folder = searched.path / "solved" / f"{limit:.0f}B"
    assert f"Wrote {folder}" in shown.out
    cost = json.loads((folder / "policy.json").read_text())["measured"]
    assert (folder / "model.onnx").stat().st_size == cost["size_bytes"] <= limit
    assert json.loads((folder / "certificate.json").read_text())["holds"] is True
    assert (searched.path / "trials.jsonl").read_bytes() == before
    assert {path.name: path.read_bytes() for path in (searched.path / "best").iterdir()} == winner


def test_an_objective_without_a_limit_is_in_the_front(searched: RunDir) -> None:
    points = searched.front()
    costs = [(point["cost"]["latency_s"], point["cost"]["size_bytes"], -point["score"]) for point in points]
    for one in costs:
        assert not any(all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in costs)
    assert len(points) >= len(searched.front(["latency_s"]))
    assert list(searched.summary().limits) == ["latency_s"]


def test_a_model_that_changed_is_refused(searched: RunDir, tmp_path: Path) -> None:
    copy = RunDir.create(tmp_path / "copy", {**searched.config(), "model_digest": "another"})
    with pytest.raises(Exception, match="The model is not what the run 'copy' was made with"):
        certify_budget(copy, Known.read(searched), ["60%"], Silent())
    with pytest.raises(Exception, match="The model is not what the run 'copy' was made with"):
        open_arena(job_of(searched), tmp_path / "arena", Silent(), run=copy)
    copy.close()
