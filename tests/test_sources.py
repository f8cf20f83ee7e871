"""Every figure says how it is known: nothing that was predicted or simulated is called measured, on the screen or on paper."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pytest
from records import LIMIT_S, make_summary, make_trials, write_run
from rich.console import Console

from automc.cli.plot import Board
from automc.cli.table import budget_lines, result_table
from automc.dashboards import comparison, figures, words
from automc.dashboards.answers import answers
from automc.dashboards.provisional import read
from automc.dashboards.report import render
from automc.dashboards.svg import pareto_svg
from automc.job import unreachable
from automc.progress import Reference
from automc.result import Finalist, Summary
from automc.trial import Cost, Source, Trial

SIZES: dict[str, Source] = {"size_bytes": "measured", "macs": "counted"}


def told(cost: Cost, source: Source) -> Cost:
    """The cost as another kind of device would tell it."""
    return dataclasses.replace(cost, source={**SIZES, "latency_s": source})


def record(source: Source, *, reached: bool = True) -> tuple[Summary, list[Trial]]:
    """A search on a device that is simulated, or that was measured off board."""
    plain = make_trials()
    summary = make_summary(plain, reached=reached)

    def known(model: Finalist | None) -> Finalist | None:
        return model and dataclasses.replace(model, cost=told(model.cost, source))

    finalists = tuple(f for f in map(known, summary.finalists) if f)
    dense = dataclasses.replace(summary.dense, cost=told(summary.dense.cost, source))
    changes = {"best": known(summary.best), "smallest": known(summary.smallest), "finalists": finalists, "dense": dense}
    trials = [dataclasses.replace(trial, cost=told(trial.cost, source)) for trial in plain]
    return dataclasses.replace(summary, **changes), trials


def claims(text: str) -> list[str]:
    """Where a text says that something was measured; sizes of files are, and so it is when nothing was."""
    rest = re.sub(r"[Nn]othing (?:was|is) measured|size, measured|size [\d.]+ \w+ measured", "", text)
    return re.findall(r".{0,30}measured.{0,20}", rest)


@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("source", ["predicted", "simulated"])
def test_what_was_not_measured_is_nowhere_called_so(source: Source, reached: bool, tmp_path: Path) -> None:
    summary, trials = record(source, reached=reached)
    html = render(summary, trials, Path("runs/one"))
    page = re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL))
    screen = Console(file=io.StringIO(), width=200, record=True)
    screen.print(result_table(summary), *budget_lines(summary))
    board = Board(Reference(summary.dense, summary.limits, "accuracy"), [*trials, *_as_trials(summary)])
    shown = read(write_run(tmp_path / "run", trials, summary))
    parts = {
        "report": page,
        "verdict": words.verdict(summary),
        "screen": screen.export_text(),
        "board": f"{board.best_line()} {board.plot()}",
        "front": str([trace.name for trace in figures.pareto(summary, trials).data]),
        "hover": str([trace.text for trace in figures.pareto(summary, trials).data]),
        "picture": pareto_svg(summary, trials),
        "answers": str([(a.how, a.cost, a.note) for a in answers(shown, summary, "latency_s", LIMIT_S)]),
        "comparison": str(comparison.rows([summary])),
    }
    assert {name: found for name, text in parts.items() if (found := claims(text))} == {}
    assert all(source in text for name, text in parts.items() if name != "answers" or reached)


def test_a_measured_run_says_so(tmp_path: Path) -> None:
    summary, trials = record("measured")
    assert "as measured" in words.verdict(summary)
    assert "latency, measured" in render(summary, trials, tmp_path)


def test_each_limit_carries_its_own_source() -> None:
    summary, _ = record("measured")
    assert summary.best is not None
    joules = summary.best.cost.with_energy(0.02, "predicted")
    best = dataclasses.replace(summary.best, cost=joules)
    both = dataclasses.replace(summary, limits={"latency_s": 0.05, "energy_j": 0.03, "size_bytes": 1e6}, best=best)
    assert (
        both.promise(best, ", surely")
        == "50.0 ms as measured, surely and 30.0 mJ as predicted, surely and 1.00 MB as measured"
    )
    assert any("30.0 mJ as predicted" in line for line in budget_lines(both))


def test_what_the_predictor_does_not_know_by_measurement_is_told() -> None:
    summary = make_summary()
    [told] = [line for line in budget_lines(summary) if "classes that were measured" in line]
    assert told.startswith("97 % of the dense latency is in kernels")
    whole = dataclasses.replace(summary, predictor=dataclasses.replace(summary.predictor, coverage=0.999))
    assert not [line for line in budget_lines(whole) if "classes that were measured" in line]


def test_what_the_nearest_takes_is_enough_when_it_is_given_as_the_budget() -> None:
    summary = make_summary(reached=False)
    assert summary.smallest is not None
    cost = Cost(latency_s=0.0540, latency_interval_s=(0.0530, 0.05412), source={"latency_s": "measured"})
    summary = dataclasses.replace(summary, smallest=dataclasses.replace(summary.smallest, cost=cost))
    assert "The nearest takes 54.2 ms instead of 50.0 ms." in budget_lines(summary)
    assert "needs 54.2 ms: relax the budget to that" in words.verdict(summary)
    assert unreachable(summary).endswith("as measured; the nearest takes 54.2 ms instead of 50.0 ms.")
    small = dataclasses.replace(cost, latency_s=6.205e-5, latency_interval_s=None, size_bytes=9_361.0)
    summary = dataclasses.replace(summary, smallest=dataclasses.replace(summary.smallest, cost=small))
    summary = dataclasses.replace(summary, limits={"latency_s": 5e-5, "size_bytes": 9e3})
    assert "takes 62.1 µs instead of 50.0 µs and 9.37 kB instead of 9.00 kB" in unreachable(summary)


def _as_trials(summary: Summary) -> list[Trial]:
    return [Trial(900 + i, f.policy, f.cost, f.validation, stage="finalist") for i, f in enumerate(summary.finalists)]
