"""The command line over runs that are recorded: runs, show, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_cli
from records import make_summary, make_trials

from automc.cli.main import main
from automc.rundir import RunDir

_loud, recorded = test_cli._loud, test_cli.recorded  # its fixtures serve here too


def test_runs_lists_what_is_recorded(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    RunDir.create(recorded.path.parent / "unfinished", {"seed": 1}).close()
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert "digits-50ms" in shown
    assert "not finished" in shown
    assert main(["runs", "--json"]) == 0
    records = {record["name"]: record for record in json.loads(capsys.readouterr().out)["runs"]}
    assert records["digits-50ms"]["finished"]
    assert not records["unfinished"]["finished"]


def test_show_prints_the_front_and_the_policy(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "digits-50ms"]) == 0
    shown = capsys.readouterr().out
    best = make_summary(make_trials()).best
    assert best is not None
    for part in ("Pareto front", best.policy.digest, *(label for _, spec in best.policy if (label := spec.label))):
        assert part in shown
    for layer, _reason in make_summary().left_alone:
        assert layer in shown
    assert main(["show", "digits-50ms", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["front"]) == len(recorded.front())


def test_show_draws_the_front_in_other_metrics_and_names_its_knee(
    recorded: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "digits-50ms", "--metric", "latency", "--metric", "size", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {point["digest"] for point in recorded.front()} <= {point["digest"] for point in told["front"]}
    assert told["knee"] in {point["number"] for point in told["front"]}
    assert main(["show", "digits-50ms", "--metric", "size", "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["front"]
    steps = [(point["cost"]["size_bytes"], point["score"]) for point in points]
    assert steps == sorted(steps)
    assert [score for _, score in steps] == sorted(score for _, score in steps)
    assert main(["show", "digits-50ms"]) == 0
    assert capsys.readouterr().out.count("← knee") == 1


def test_show_names_the_closest_run(recorded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "digits-50"]) == 2
    assert "Did you mean 'digits-50ms'?" in capsys.readouterr().err


def test_export_passes_its_options_on(
    recorded: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def export_run(run_dir: Path, **options: Any) -> Path:
        given.update(options, run_dir=run_dir)
        return options["out"] / "model.pt2"

    monkeypatch.setattr("automc.export.run.export_run", export_run)
    assert main(["export", "--run", "digits-50ms", "--budget", "30ms", "--format", "pt2", "--out", "deploy"]) == 0
    assert given == {
        "run_dir": Path("runs/digits-50ms"),
        "budget": "30ms",
        "knee": False,
        "format": "pt2",
        "out": Path("deploy"),
    }
    assert "deploy/model.pt2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--run", "digits-50"], ["--run", "digits-50ms", "--knee", "--budget", "30ms"], []]
)
def test_export_refuses_what_it_cannot_choose(arguments: list[str], recorded: RunDir) -> None:
    assert main(["export", *arguments, "--out", "deploy"]) == 2
    assert not Path("deploy").exists()
