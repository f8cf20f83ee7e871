"""The arena: equal evaluations, equal seeds, every policy evaluated once, and a table that says what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from automc import registry
from automc.arena import run_course
from automc.budget import Budget, Limit
from automc.cli.main import main
from automc.errors import InputError
from automc.league import Course, League, Recovered
from automc.policy import Policy, Prune
from automc.protocols import Evaluator, Problem
from automc.scorebook import Scorebook, read_scores
from automc.testing import Toy, small_toy
from automc.trial import Cost, Trial

BUDGET = Budget((Limit("latency_s", 0.5),))


def _policy(number: int) -> Policy:
    return Policy.of([("a", Prune(number + 1))])


def _course(agent: str, seed: int, *points: tuple[float, float]) -> Course:
    """A course of (latency, score) trials."""
    trials = [Trial(i, _policy(100 * seed + i), Cost(latency_s=s), score) for i, (s, score) in enumerate(points)]
    return Course(agent, seed, tuple(trials), agent_s=0.02)


def _league() -> League:
    good = [_course("good", 0, (0.9, 0.99), (0.4, 0.8), (0.3, 0.9)), _course("good", 1, (0.4, 0.6), (0.4, 0.7))]
    bad = [_course("bad", 0, (0.9, 0.95), (0.8, 0.9)), _course("bad", 1, (0.7, 0.95), (0.45, 0.5))]
    return League([*bad, *good], BUDGET, (1.0, 1.0), {})


def test_rows_count_what_holds_the_budget_alone() -> None:
    first, second = _league().rows()
    assert (first.agent, second.agent) == ("good", "bad")
    assert first.mean == pytest.approx(0.8)
    assert first.best == 0.9
    assert first.std == pytest.approx(0.1414, abs=1e-3)
    assert second.mean == 0.5
    assert second.inside == 0.25
    assert first.agent_s == pytest.approx(0.04 / 5)


def test_evaluations_are_counted_to_a_hundredth_of_the_best_of_all() -> None:
    first, second = _league().rows()
    assert (first.evaluations_to_near, first.near) == (3, 1)
    assert (second.evaluations_to_near, second.near) == (None, 0)


def test_the_hypervolume_is_that_of_the_front_under_the_dense_model() -> None:
    league = League([_course("one", 0, (0.5, 0.8))], BUDGET, (1.0, 1.0), {})
    assert league.rows()[0].hypervolume == pytest.approx(0.5 * 0.8)


def test_progress_starts_where_every_seed_has_something() -> None:
    league = League(
        [_course("a", 0, (0.9, 0.9), (0.4, 0.5)), _course("a", 1, (0.4, 0.6), (0.4, 0.7))], BUDGET, (1.0, 1.0), {}
    )
    assert league.progress("a") == [(2.0, pytest.approx(0.6))]


def test_the_table_shows_recovery_where_there_was_one_and_why_a_course_ended() -> None:
    league = _league()
    assert "recovery" not in league.markdown("accuracy")
    winner = league.winner(league.courses[2])
    assert winner is not None
    held_out = League(league.courses, BUDGET, (1.0, 1.0), {winner.policy.digest: Recovered(0.85)})
    assert "held out, before recovery | divergence from dense |\n" in held_out.markdown("accuracy")
    recovered = League(league.courses, BUDGET, (1.0, 1.0), {winner.policy.digest: Recovered(0.85, 0.97, 0.25, 0.125)})
    assert "| 85.00 | 0.25 | 97.00 | 0.125 |" in recovered.markdown("accuracy")
    ended = League([Course("raises", 0, (), 0.0, "ValueError: no")], BUDGET, (1.0, 1.0), {})
    assert "raises (ValueError: no)" in ended.markdown("accuracy")
    assert ended.rows()[0].mean is None


class Counting:
    """An evaluator that counts."""

    def __init__(self, inner: Evaluator) -> None:
        self.inner, self.count = inner, 0

    def evaluate(self, policy: Policy) -> float:
        self.count += 1
        return self.inner.evaluate(policy)


def _book(toy: Toy, path: Path, known: dict[str, float] | None = None) -> tuple[Scorebook, Counting]:
    counting = Counting(toy.evaluator)
    return Scorebook(counting, path, lambda policy: policy.digest, known), counting


def test_a_repeated_course_evaluates_nothing_and_ends_the_same(tmp_path: Path) -> None:
    toy = small_toy()
    first, counting = _book(toy, tmp_path / "scores.jsonl")
    course = run_course("ilp", 0, 10, toy.problem, first, lambda _: None)
    assert len(course.trials) == 10
    assert counting.count == first.evaluated == 10
    again, none = _book(toy, tmp_path / "scores.jsonl")
    repeated = run_course("ilp", 0, 10, toy.problem, again, lambda _: None)
    assert none.count == 0
    assert [(t.policy, t.score) for t in repeated.trials] == [(t.policy, t.score) for t in course.trials]
    assert course.agent_s > 0.0


def test_scores_from_elsewhere_are_taken_over(tmp_path: Path) -> None:
    toy = small_toy()
    book, counting = _book(toy, tmp_path / "scores.jsonl", {Policy().digest: 0.5})
    assert book.evaluate(Policy()) == 0.5
    assert counting.count == 0


def test_a_half_written_score_is_dropped_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"digest": "a", "score": 0.5}\n{"digest": "b", "sc')
    assert read_scores(path) == {"a": 0.5}
    book, _ = _book(small_toy(), path)
    score = book.evaluate(Policy())
    assert read_scores(path) == {"a": 0.5, Policy().digest: score}
    path.write_text('{"other": 1}\n')
    with pytest.raises(InputError, match="does not hold scores"):
        read_scores(path)


class Raising:
    """An agent that gives up after four policies."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.inner = registry.load("agent", "random")(problem, seed)
        self.asked = 0

    def ask(self, count: int) -> Sequence[Policy]:
        self.asked += count
        if self.asked > 4:
            raise RuntimeError("out of ideas")
        found: Sequence[Policy] = self.inner.ask(count)
        return found

    def tell(self, trials: Sequence[Trial]) -> None:
        self.inner.tell(trials)


def test_an_agent_that_raises_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILT_IN["agent"], "raising", f"{__name__}:Raising")
    toy = small_toy()
    book, _ = _book(toy, tmp_path / "scores.jsonl")
    course = run_course("raising", 0, 12, toy.problem, book, lambda _: None)
    assert len(course.trials) == 4
    assert course.reason == "The agent 'raising' failed when it was asked: RuntimeError: out of ideas."


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], int]:
    """Compares two agents on a tiny network, into a folder."""
    job = tiny_run.job(tmp_path_factory.mktemp("arena"))

    def bench(out: Path) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AUTOMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
            patch.setattr("automc.cli.main.silence_libraries", lambda: None)
            options = ["--model", str(job.model), "--data", str(job.data), "--batch-size", "64", "--profile", "3s"]
            limits = [
                "--budget",
                "60%macs",
                "--evaluations",
                "5",
                "--seeds",
                "2",
                "--agent",
                "ilp",
                "--agent",
                "random",
            ]
            return main(["bench", *options, *limits, "--out", str(out), "--recover", "1s", "-q"])

    return bench


@pytest.fixture(scope="module")
def compared(compare: Callable[[Path], int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison."""
    out = tmp_path_factory.mktemp("compared")
    assert compare(out) == 0
    return out


def test_the_comparison_is_on_disk(compared: Path) -> None:
    told: dict[str, Any] = json.loads((compared / "results.json").read_text())
    assert {row["agent"] for row in told["rows"]} == {"ilp", "random"}
    assert all(course["evaluations"] == 5 for course in told["courses"])
    assert told["kendall_tau"]["summed losses with the score"]["policies"] >= 5
    assert {len(steps) for steps in told["progress"].values()} == {5}
    table = (compared / "table.md").read_text()
    assert table.startswith("| agent | worth | mean")
    assert "after recovery" in table
    assert all(0 <= row["away_after"] < 20 for row in told["rows"])
    assert all(row["away_before"] != row["away_after"] for row in told["rows"])
    assert (compared / "progress.svg").read_text().startswith("<svg")
    (scores,) = compared.glob("scores-*.jsonl")
    assert len(read_scores(scores)) == told["evaluated"]


def test_a_comparison_goes_on_with_the_losses_that_it_measured(
    compare: Callable[[Path], int], compared: Path, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(compared, tmp_path / "again"))
    (losses,) = again.glob("losses-*.json")
    told = json.loads(losses.read_text())
    told["loss"][0][-1] = 123.0
    losses.write_text(json.dumps(told))
    assert compare(again) == 0
    assert json.loads(losses.read_text())["loss"][0][-1] == 123.0
    losses.write_text("{")
    assert compare(again) == 0
    assert json.loads(losses.read_text())["loss"][0][-1] != 123.0  # what cannot be read is measured anew


def test_an_unknown_agent_is_bad_input_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--agent", "iilp"]) == 2
    assert "Did you mean 'ilp'?" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_to_is_said_before_anything_is_loaded(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("automc.arena.open_arena", lambda *_, **__: pytest.fail("work was begun"))
    assert main(["bench", "--agent", "ilp", "--out", str(tmp_path / out)]) == 4
    assert f"Cannot write {tmp_path / out}: " in " ".join(capsys.readouterr().err.split())
