"""What a watcher sees: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from records import DENSE as DENSE_COST
from records import LIMIT_S, make_trials
from rich.console import Console

from automc import wording
from automc.cli.plot import Board
from automc.cli.report import print_json
from automc.cli.screen import Live, Plain, Quiet, screen
from automc.policy import Policy
from automc.progress import Reference
from automc.protocols import Watcher
from automc.result import Finalist
from automc.trial import Cost

DENSE = Finalist(Policy(), DENSE_COST, 0.0989, 0.9911, 0.9889, False, "dense")


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_say_what_begins_and_how_long_it_took() -> None:
    console = Console(file=io.StringIO(), width=100)
    with Plain(console, every_s=0.0) as watching:
        watching.stage("profile the device", 4)
        watching.advance(1, "conv 3x3")
        watching.stage("search", None)
        watching.advance()
        watching.message("The machine is noisy.", "warning")
    lines = _written(console).splitlines()
    assert lines[0] == "profile the device ..."
    assert lines[1].startswith("  25 %, ")
    assert lines[1].endswith(" left, conv 3x3")
    assert lines[2].startswith("profile the device: ")
    assert lines[3] == "search ..."
    assert "Warning: The machine is noisy." in lines
    assert lines[-1].startswith("search: ")


def test_plain_lines_are_few() -> None:
    console = Console(file=io.StringIO())
    with Plain(console, every_s=60.0) as watching:
        watching.stage("search", 1000)
        for _ in range(1000):
            watching.advance()
    assert len(_written(console).splitlines()) == 2


def test_a_stage_that_failed_is_not_reported_as_ended() -> None:
    console = Console(file=io.StringIO())
    watching = Plain(console).__enter__()
    watching.stage("search", 1)
    watching.__exit__(ValueError, ValueError("broken"), None)
    assert _written(console) == "search ...\n"


def test_the_live_view_shows_share_time_left_and_note() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Live(console) as watching:
        watching.advance()  # before any stage: nothing to move
        watching.stage("search", 4)
        watching.advance(1, "best so far 98.9 %")
        watching.message("The machine is noisy.", "warning")
        watching._view.refresh()
    shown = _written(console)
    for part in ("25 %", " left", "best so far 98.9 %", "The machine is noisy.", "✓"):
        assert part in shown


def test_the_live_view_draws_the_front_and_says_the_best_so_far() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40)
    reference = Reference(DENSE, {"latency_s": LIMIT_S}, "accuracy")
    trials = make_trials()
    with Live(console) as watching:
        assert isinstance(watching, Watcher)
        watching.stage("search", 60)
        watching.reference(reference)
        for trial in trials:
            watching.trial(trial)
        watching._view.refresh()
    inside = [t.score for t in trials if t.score is not None and (t.cost.latency_upper_s or 1) <= LIMIT_S]
    shown = _written(console)
    for part in (
        f"best so far: accuracy {wording.score('accuracy', max(inside))}",
        "predicted",
        "●",
        "┊",
        "■",
        "100.4 ms",
    ):
        assert part in shown


def test_a_low_terminal_has_the_line_without_the_plot() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=10)
    with Live(console) as watching:
        watching.reference(Reference(DENSE, {"latency_s": LIMIT_S}, "accuracy"))
        for trial in make_trials(10):
            watching.trial(trial)
        watching._view.refresh()
    assert "best so far" in _written(console)
    assert "┊" not in _written(console)


@pytest.mark.parametrize("count", [0, 1, 60])
def test_the_plot_keeps_its_size_and_places_the_dense_model_on_the_right(count: int) -> None:
    board = Board(Reference(DENSE, {"latency_s": LIMIT_S}, "accuracy"), make_trials(count))
    lines = board.plot(width=40, height=8).plain.splitlines()
    assert len(lines) == 8 + 3
    drawn = [line.partition("│")[2] for line in lines[:8]]
    assert {len(line) for line in drawn} == {40}
    column = next(line.index("■") for line in drawn if "■" in line)
    assert column == (39 if all((t.cost.latency_s or 0) < 0.1004 for t in board.trials) else column)
    assert column > next(line.index("┊") for line in drawn if "┊" in line)


def test_measured_models_come_before_predicted_ones() -> None:
    trials = make_trials(20)
    measured = dataclasses.replace(
        trials[0], number=99, stage="finalist", score=0.5, cost=Cost(latency_s=0.04, source={"latency_s": "measured"})
    )
    board = Board(Reference(DENSE, {"latency_s": LIMIT_S}, "accuracy"), [*trials, measured])
    assert board.best() == measured
    assert board.best_line().endswith("40.0 ms measured")


def test_quiet_says_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    with screen(quiet=True) as watching:
        assert isinstance(watching, Quiet)
        watching.stage("search", 4)
        watching.advance()
        watching.message("fine")
        watching.message("noisy", "warning")
    assert capsys.readouterr() == ("", "Warning: noisy\n")


def test_without_a_terminal_the_lines_are_plain() -> None:
    assert isinstance(screen(quiet=False), Plain)


def test_json_keeps_what_it_can_hold(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1.5, float("inf"), ("ü", None)]})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None, ["ü", None]]}
