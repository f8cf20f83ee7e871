"""`automc explain`: what a choice saves, what the next best would cost, which limit binds and what to relax."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from records import DENSE, make_summary, make_trials, write_run

from automc.answering import Known, as_budget
from automc.cli import explain as explain_cli
from automc.cli.main import main
from automc.explaining import explain_policy
from automc.policy import Policy, Prune
from automc.progress import Reference
from automc.result import Finalist
from automc.rundir import RunDir
from automc.space import Domain
from automc.tables import Anchor, Tables
from automc.trial import Cost

TRIALS = make_trials()


def _known() -> Known:
    """Two channel groups of three choices, priced around the policy that halves the first."""
    domains = tuple(Domain(name, "prune", (None, Prune(8), Prune(4))) for name in "ab")
    cost = Cost(latency_s=0.8, size_bytes=60.0)
    changed = {"latency_s": ((1.0, 0.8, 0.7), (0.8, 0.78, 0.5)), "size_bytes": ((80.0, 60.0, 50.0), (60.0, 40.0, 30.0))}
    anchor = Anchor((1, 0), cost, changed)
    dense = Finalist(Policy(), dataclasses.replace(DENSE, latency_s=1.0), None, 0.99, None, False, "dense")
    loss = ((0.0, 0.1, 0.5), (0.0, 0.3, 0.4))
    halved = Policy.of([("a", Prune(8))])
    tables = Tables(domains, loss, (anchor,), ("a", "b", "c"), {halved.digest: (0.2, 0.2, 0.4)})
    return Known(Reference(dense, {"latency_s": 0.81}, "accuracy"), (), [], tables)


HALVED = Policy.of([("a", Prune(8))])


def test_a_choice_saves_what_undoing_it_would_cost() -> None:
    first, second = explain_policy(_known(), HALVED, as_budget({"latency_s": 0.81})).reasons
    assert (first.target, first.choice) == ("a", Prune(8).label)
    assert first.saves["latency_s"] == pytest.approx(0.2)
    assert first.saves["size_bytes"] == pytest.approx(20.0)
    assert first.loss == 0.1
    assert second.choice == "dense"
    assert second.saves["latency_s"] == 0.0


def test_the_next_best_choice_is_the_one_that_pays_most_at_the_price_of_the_binding_limit() -> None:
    first, second = explain_policy(_known(), HALVED, as_budget({"latency_s": 0.81})).reasons
    # A second of latency is worth 0.1 / 0.2 = 0.5 nats: undoing `a` costs 0.0 + 0.5 x 0.2, going on 0.5 - 0.5 x 0.1.
    assert first.next_choice == "dense"
    assert first.next_costs["latency_s"] == pytest.approx(0.2)
    assert first.next_loss == pytest.approx(-0.1)
    # 0.4 - 0.5 x 0.3 is less than 0.3 - 0.5 x 0.02.
    assert second.next_choice == Prune(4).label


def test_the_tightest_limit_binds() -> None:
    states = explain_policy(_known(), HALVED, as_budget({"latency_s": 0.81, "size_bytes": 100.0})).limits
    assert [(state.metric, state.binds) for state in states] == [("latency_s", True), ("size_bytes", False)]
    loose = explain_policy(_known(), HALVED, as_budget({"latency_s": 2.0, "size_bytes": 100.0})).limits
    assert not any(state.binds for state in loose)


def test_what_to_relax_is_the_limit_that_is_out_of_reach() -> None:
    explained = explain_policy(_known(), HALVED, as_budget({"latency_s": 0.1, "size_bytes": 100.0}))
    assert not explained.reachable
    assert list(explained.relax) == ["latency_s"]
    assert explained.relax["latency_s"] == pytest.approx(0.7 + 0.5 - 0.8)
    assert explain_policy(_known(), HALVED, as_budget({"latency_s": 0.81})).relax == {}


@pytest.mark.parametrize(("kept", "measured", "advised"), [(8, 33.0, 22.0), (4, 21.0, 21.0), (8, 27.0, 20.0)])
def test_what_to_relax_to_is_not_what_measuring_proved_too_little(kept: int, measured: float, advised: float) -> None:
    known = _known()
    policy = Policy.of([("a", Prune(4)), ("b", Prune(kept))])  # estimated at 30 or 20 bytes, and the least at 20
    nearest = Finalist(policy, Cost(latency_s=0.4, size_bytes=measured), None, 0.9, None, False, "finalist")
    explained = explain_policy(
        dataclasses.replace(known, finalists=(known.reference.dense, nearest)), policy, as_budget({"size_bytes": 10.0})
    )
    assert explained.relax["size_bytes"] == pytest.approx(advised)


def test_the_time_of_what_is_left_alone_is_told_unless_some_knob_has_a_choice_there() -> None:
    explained = explain_policy(_known(), HALVED, as_budget({"latency_s": 0.81}), left_alone=["b", "c"])
    assert explained.left_alone_share == {"c": pytest.approx(0.5)}


def test_all_calls_of_what_is_left_alone_count() -> None:
    known = _known()
    assert known.tables is not None
    tables = dataclasses.replace(
        known.tables, layers=("a", "c", "c (call 2)"), layers_s={HALVED.digest: (0.2, 0.2, 0.4)}
    )
    explained = explain_policy(
        dataclasses.replace(known, tables=tables), HALVED, as_budget({"latency_s": 0.81}), left_alone=["c"]
    )
    assert explained.left_alone_share == {"c": pytest.approx(0.75)}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    run = write_run(tmp_path / "runs" / "one", TRIALS, make_summary(TRIALS))
    yield run
    run.close()


def test_the_table_lists_what_was_chosen(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--run", "one"]) == 0
    shown = capsys.readouterr().out
    best = recorded.summary().best
    assert best is not None
    assert f"Policy {best.policy.digest}" in shown
    assert "saves latency" in shown
    assert "Latency:" in shown
    assert main(["explain", "--run", "one", "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > len(shown.splitlines())


def test_differences_that_nobody_would_notice_are_none() -> None:
    budget = as_budget({"latency_s": 0.81})
    explained = explain_policy(_known(), HALVED, budget)
    first, second = explained.reasons
    hardly = dataclasses.replace(
        second, saves={"latency_s": 1e-4, "size_bytes": 1.0}, next_costs={"latency_s": -1e-4, "size_bytes": 0.0}
    )
    table = explain_cli._table(dataclasses.replace(explained, reasons=(first, hardly)), budget, everything=True)
    cells = [list(column.cells) for column in table.columns]
    assert [column[0] for column in cells[2:4]] == ["200.0 ms", "20.0 B"]
    assert [column[1] for column in cells[2:4]] == ["none", "1.00 B"]
    assert [column[1] for column in cells[6:8]] == ["none", "none"]


def test_a_budget_out_of_reach_is_explained(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--run", "one", "--budget", "1ms"]) == 0
    assert "Relax latency to" in capsys.readouterr().out
    assert main(["explain", "--run", "one", "--budget", "1ms", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reachable"] is False
    assert told["relax"]["latency_s"] > 0.001
    assert len(told["reasons"]) == len((recorded.tables() or _known().tables).domains)  # type: ignore[union-attr]


def test_a_search_that_has_not_ended_explains_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    write_run(tmp_path / "going", TRIALS, None).close()
    assert main(["explain", "--run", "going", "--runs", str(tmp_path)]) == 0
    assert "Latency:" in capsys.readouterr().out
