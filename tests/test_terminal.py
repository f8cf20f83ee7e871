"""The verbs that look at runs: compare, show, runs, dashboard and completion; and how each of them explains itself."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from records import make_summary, make_tables, make_trials, write_run

from automc.cli.main import cli, main
from automc.policy import Policy
from automc.result import Finalist, Summary

TRIALS = make_trials()
SUMMARY = make_summary(TRIALS)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    monkeypatch.chdir(tmp_path)


def _best(summary: Summary) -> Finalist:
    assert summary.best is not None
    return summary.best


def _record(name: str, summary: Summary = SUMMARY) -> None:
    write_run(Path("runs") / name, TRIALS, dataclasses.replace(summary, name=name)).close()


@pytest.fixture
def _two() -> None:
    """Two runs whose winners differ in one layer."""
    best = _best(SUMMARY)
    target = next(target for target, _ in best.policy)
    other = dataclasses.replace(best, policy=Policy.of(c for c in best.policy if c[0] != target), test=0.97)
    _record("first")
    _record("second", dataclasses.replace(SUMMARY, best=other, finalists=(other,)))


@pytest.mark.usefixtures("_two")
def test_compare_shows_both_and_only_the_layers_that_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "first", "second"]) == 0
    shown = capsys.readouterr().out
    for part in ("first", "second", "98.61 %", "97.00 %", "95 % interval", "times as fast as dense"):
        assert part in shown
    targets = list(dict.fromkeys(target for target, _ in _best(SUMMARY).policy))
    policies = shown.partition("Where the policies differ")[2]
    assert targets[0] in policies
    assert not any(f" {target} " in policies for target in targets[1:])
    assert main(["compare", "first", "second", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record["differences"]) == targets[:1]
    assert record["differences"][targets[0]][1] == "dense"


@pytest.mark.usefixtures("_two")
def test_compare_says_when_latencies_are_not_of_one_scale(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "first", "second"])
    assert "not of one scale" not in capsys.readouterr().out
    _record("third", dataclasses.replace(SUMMARY, device="another"))
    main(["compare", "first", "third"])
    shown = capsys.readouterr().out
    assert "not of one scale" in shown
    assert "Their policies are the same." in shown


@pytest.mark.usefixtures("_two")
def test_compare_wants_two_runs_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "first"]) == 2
    assert "automc runs" in capsys.readouterr().err
    assert main(["compare", "first", "secnd"]) == 2
    assert "Did you mean 'second'?" in capsys.readouterr().err


def test_show_says_per_layer_what_was_chosen_and_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    _record("one")
    assert main(["show", "one"]) == 0
    policy = capsys.readouterr().out.partition("layer by layer")[2].partition("Left alone")[0]
    rows = {line.split()[0]: line for line in policy.splitlines() if line.strip()}
    tables = make_tables([f.policy for f in SUMMARY.finalists])
    for layer, share in tables.shares(_best(SUMMARY).policy).items():
        assert f"{100 * share:.1f} %" in rows[layer]
    assert "keep 8 of 16" in rows["layer1.1.conv1"]
    assert main(["show", "one", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert sum(layer["share"] for layer in layers.values()) == pytest.approx(1.0)


def test_a_search_that_runs_is_shown_as_running(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("runs/now"), TRIALS[:5], None).close()
    assert main(["runs"]) == 0
    assert "running: search" in capsys.readouterr().out
    assert main(["show", "now"]) == 0
    assert "is running: search, 10 s left; 5 trials so far" in capsys.readouterr().out


def test_a_search_that_was_killed_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(Path("runs/dead"), TRIALS[:5], None)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    progress = run.progress()
    assert progress is not None
    run.write_progress(dataclasses.replace(progress, pid=dead.pid))
    assert main(["show", "dead"]) == 0
    assert "automc search runs/dead/config.yaml" in " ".join(capsys.readouterr().out.split())


def test_the_dashboard_without_streamlit_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "streamlit", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Path("runs").mkdir()
    assert main(["dashboard"]) == 4
    assert "pip install automc[dashboard]" in capsys.readouterr().err


def test_the_dashboard_wants_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert main(["dashboard", "--runs", "nowhere"]) == 2


def test_the_dashboard_answers_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("os.execve", lambda _, command, environment: called.append(command))
    Path("mine").mkdir()
    assert main(["dashboard", "--runs", "mine", "--port", "58700", "--no-browser"]) == 0
    assert {"--server.address=127.0.0.1", "--server.port=58700", "--server.headless=true"} <= set(called[0])
    assert called[0][-2:] == ["--", "mine"]
    assert Path(called[0][-3]).name == "app.py"


def test_the_dashboard_does_not_take_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["dashboard", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize("verb", list(cli.commands))
def test_each_verb_ends_with_two_real_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-3].strip() == "Examples:"
    known = {option for parameter in cli.commands[verb].params for option in parameter.opts}
    for example in lines[-2:]:
        assert f"automc {verb}" in example
        assert set(re.findall(r" (--[\w-]+)", example)) <= known


def test_verbs_are_listed_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^  (\w+)  +\S", capsys.readouterr().out.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(cli.commands)
    assert listed[:5] == ["check", "search", "runs", "show", "compare"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_AUTOMC_COMPLETE" in capsys.readouterr().out


def test_completion_names_runs_and_agents() -> None:
    _record("digits")
    assert "digits" in _completed("automc show di", 2)
    assert {"ilp", "tpe"} <= set(_completed("automc search --agent ", 3))
    assert "compare" in _completed("automc com", 1)


def test_an_unknown_shell_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert main(["completion"]) == 2
    assert "'tcsh'" in capsys.readouterr().err


def _completed(line: str, word: int) -> list[str]:
    """What bash is offered for a word of a command line."""
    script = "from automc.cli.main import cli; cli(prog_name='automc')"
    asked = {"_AUTOMC_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(word)}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    return [found.partition(",")[2] for found in done.stdout.splitlines()]
