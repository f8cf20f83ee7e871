"""The command line around a stand-in for the job itself: options, recipes, results, and every way it can end."""

from __future__ import annotations

import dataclasses
import errno
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from records import make_summary, make_trials

from automc.cli.main import main
from automc.errors import AutomcError, BudgetUnreachableError, InputError, MissingError
from automc.job import Job
from automc.protocols import Observer
from automc.result import Summary
from automc.rundir import RunDir


@pytest.fixture(autouse=True)
def _loud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Silencing libraries is for processes that end; here it would outlive the test. Runs are recorded in tmp_path."""
    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    monkeypatch.delenv("AUTOMC_DEBUG", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were run; each ends with the summary of a search that reached its budget."""
    ran: list[Job] = []

    def run(job: Job, observer: Observer) -> Summary:
        ran.append(job)
        observer.stage("search", 2)
        observer.advance(2, "best so far 98.9 %")
        observer.message("The machine is noisy.", "warning")
        sys.stdout.write("a library that prints\n")
        return make_summary()

    monkeypatch.setattr("automc.job.run", run)
    return ran


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | Summary], None]:
    """Make the job end with this exception or summary."""

    def end(outcome: BaseException | Summary) -> None:
        def run(job: Job, observer: Observer) -> Summary:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr("automc.job.run", run)

    return end


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[RunDir]:
    """A finished run called digits-50ms in ./runs."""
    trials = make_trials()
    run = RunDir.create(tmp_path / "runs" / "digits-50ms", {"seed": 0})
    for trial in trials:
        run.append(trial)
    run.write_front(trials)
    run.write_summary(make_summary(trials))
    yield run
    run.close()


def test_without_options_it_is_the_default_job(jobs: list[Job]) -> None:
    assert main(["search"]) == 0
    assert jobs == [Job(budget=("50ms",))]


def test_every_option_reaches_the_job(jobs: list[Job]) -> None:
    given = {
        "model": "m.py:f",
        "weights": "w.safetensors",
        "data": "npz:x",
        "evaluate": "e.py:f",
        "batch-size": "4",
        "device": "cpu",
        "threads": "2",
        "agent": "tpe",
        "space": "default",
        "criterion": "taylor",
        "trials": "7",
        "timeout": "5m",
        "seed": "3",
        "warm-start": "earlier",
        "recover": "0",
        "fidelity": "on",
        "finetune-epochs": "3",
        "profile": "20s",
        "name": "mine",
        "runs": "elsewhere",
        "tracking-uri": "sqlite:///x.db",
        "workers": "auto",
        "worker-cpus": "0.5",
        "ray-address": "10.0.0.1:6379",
        "ray-env": "env.yaml",
        "trial-timeout": "30s",
        "mlflow-trials": "all",
        "register": "digits",
    }
    flags = [text for name, value in given.items() for text in (f"--{name}", value)]
    several = ["--budget", "60%", "--budget", "4MB", "--objective", "size", "--objective", "macs"]
    assert main(["search", *several, "--sync", *flags]) == 0
    fields = {name.replace("-", "_"): value for name, value in given.items()}
    numbers: dict[str, Any] = {
        "batch_size": 4, "threads": 2, "trials": 7, "seed": 3, "worker_cpus": 0.5, "sync": True, "finetune_epochs": 3,
    }  # fmt: skip
    assert dataclasses.asdict(jobs[0]) == {
        **fields,
        **numbers,
        "budget": ("60%", "4MB"),
        "objective": ("size", "macs"),
        "made_in": None,
    }


def test_flags_override_the_recipe_and_the_recipe_the_defaults(jobs: list[Job], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("budget: [40%, 2MB]\nbatch-size: 8\ntrials: 30\nrecover: 0\nmodel:\n")
    assert main(["search", str(recipe), "--trials", "5"]) == 0
    assert jobs == [Job(budget=("40%", "2MB"), batch_size=8, trials=5, recover="0")]


def test_a_flag_overrides_the_recipe_even_with_the_default_value(jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 9\nbudget: 20ms\n")
    assert main(["search", "recipe.yaml", "--seed", "0", "--budget", "50ms"]) == 0
    assert jobs == [Job(budget=("50ms",), seed=0)]


def test_the_record_of_a_run_is_a_recipe(jobs: list[Job], tmp_path: Path) -> None:
    job = Job(budget=("40%",), trials=7, name="mine", tracking_uri="sqlite:///x.db", batch_size=2)
    settings = dataclasses.asdict(job) | {"budget": list(job.budget), "tracking": job.tracking_uri}
    facts = {"created": "now", "data_digest": "d", "device_key": "k", "model_digest": "m", "versions": {"torch": "2"}}
    del settings["tracking_uri"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings | facts))
    assert main(["search", "config.yaml", "--name", "again"]) == 0
    assert jobs == [dataclasses.replace(job, name="again")]


def test_all_faults_of_a_recipe_are_told_at_once(
    jobs: list[Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("bugdet: 50ms\ntrials: many\nthreads: [1]\nseed: 1.5\nname: fine\n")
    assert main(["search", "recipe.yaml"]) == 2
    told = capsys.readouterr().err
    for part in ("'bugdet' (did you mean 'budget'?)", "trials: 'many'", "threads: [1]", "seed: 1.5"):
        assert part in told
    assert jobs == []


@pytest.mark.parametrize("content", ["- a list\n", "budget: [50ms\n", "", "\x00"])
def test_a_file_that_is_no_recipe_is_bad_input(content: str, jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    assert main(["search", "recipe.yaml"]) == 2
    assert main(["search", "no-such-file.yaml"]) == 2
    assert jobs == []


@pytest.mark.parametrize("arguments", [["serch"], ["search", "--bugdet", "1"], ["search", "--trials", "0"], ["export"]])
def test_a_slip_on_the_command_line_is_bad_input(arguments: list[str], jobs: list[Job]) -> None:
    assert main(arguments) == 2
    assert jobs == []


def test_the_closest_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", "--budgett", "1"])
    assert "--budget" in capsys.readouterr().err


def test_the_result_goes_to_stdout_and_the_rest_to_stderr(jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search"]) == 0
    shown = capsys.readouterr()
    for part in (
        "dense",
        "best",
        "change",
        "accuracy, test",
        "before recovery",
        "95 % interval",
        "latency, measured",
        "size",
        "MACs per sample",
        "holds the budget",
    ):
        assert part in shown.out
    assert "energy" not in shown.out  # this device cannot tell
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in shown.out
    assert "automc export --run digits-50ms" in shown.out
    for part in ("search", "The machine is noisy.", "a library that prints"):
        assert part in shown.err
        assert part not in shown.out.replace("automc search", "")


def test_quiet_leaves_the_warnings_and_the_result(jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "latency, measured" in shown.out
    assert "search" not in shown.err
    assert "The machine is noisy." in shown.err


def test_json_is_one_object_with_the_paths_that_exist(
    jobs: list[Job], recorded: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert Summary.from_json({f.name: record[f.name] for f in dataclasses.fields(Summary)}) == make_summary()
    assert record["run_dir"] == "runs/digits-50ms"
    assert record["paths"]["front"] == "runs/digits-50ms/front.json"
    assert "model" not in record["paths"]


def test_json_has_no_number_that_json_cannot_hold(
    ending: Callable[[Summary], None], capsys: pytest.CaptureFixture[str]
) -> None:
    report = dataclasses.replace(make_summary().predictor, mape=float("nan"))
    ending(dataclasses.replace(make_summary(), predictor=report))
    assert main(["search", "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["predictor"]["mape"] is None


def test_an_error_that_nobody_knows_is_said_to_be_unknown(
    ending: Callable[[Summary], None], capsys: pytest.CaptureFixture[str]
) -> None:
    report = dataclasses.replace(make_summary().predictor, mape=None, kernel_mape=None)
    ending(dataclasses.replace(make_summary(), predictor=report))
    assert main(["search"]) == 0
    said = "off by an unknown share, as no model could be held out; the measurements themselves repeat to 1.2 %"
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_budget_that_the_dense_model_holds_is_said_plainly(
    ending: Callable[[Summary], None], capsys: pytest.CaptureFixture[str]
) -> None:
    ending(dataclasses.replace(make_summary(), dense_meets_budget=True))
    assert main(["search"]) == 0
    assert "The dense model already holds the budget of 50.0 ms" in capsys.readouterr().out


@pytest.mark.parametrize("reached", [True, False])
def test_what_limits_trust_in_the_result_is_said(
    reached: bool, ending: Callable[[Summary], None], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = make_summary(reached=reached)
    told: dict[str, Any] = {"noisy": True, "notes": ("only 6 of 12 rounds",)}
    best = dataclasses.replace(summary.best, **told) if summary.best else None
    smallest = dataclasses.replace(summary.smallest, **told) if summary.smallest else None
    note = "There is no [test] split."
    ending(summary)
    main(["search"])
    assert "busy" not in capsys.readouterr().out
    ending(dataclasses.replace(summary, best=best, smallest=smallest, notes=(note,)))
    main(["search"])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "The machine was busy while this was measured: measure again before relying on it. Only 6 of 12 rounds."
        in shown
    )
    assert note in shown


@pytest.mark.parametrize(
    ("given", "environment", "shown"),
    [
        (None, None, "mlflow ui --backend-store-uri sqlite:///mlflow.db"),
        ("sqlite:///x.db", "http://other", "mlflow ui --backend-store-uri sqlite:///x.db"),
        (None, "http://server:5000", "http://server:5000"),
        ("https://server", None, "https://server"),
    ],
)
def test_the_next_step_is_where_the_record_is(
    given: str | None,
    environment: str | None,
    shown: str,
    jobs: list[Job],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    assert main(["search", *(["--tracking-uri", given] if given else [])]) == 0
    following = [line.strip() for line in capsys.readouterr().out.partition("Next:")[2].splitlines()]
    assert shown in following
    assert sum("mlflow" in line or "http" in line for line in following) == 1


def test_the_next_steps_can_be_copied_whatever_the_run_is_called(
    ending: Callable[[BaseException | Summary], None], capsys: pytest.CaptureFixture[str]
) -> None:
    ending(make_summary(name="ün é"))
    assert main(["search", "--runs", "my runs", "--tracking-uri", "sqlite:///a b.db"]) == 0
    shown = capsys.readouterr().out.partition("Next:")[2].strip().splitlines()
    run = ["ün é", "--runs", "my runs"]
    assert [shlex.split(line) for line in shown] == [
        ["automc", "show", *run],
        ["mlflow", "ui", "--backend-store-uri", "sqlite:///a b.db"],
        ["automc", "export", "--run", *run, "--format", "onnx", "--out", "deploy"],
    ]


def test_without_tracking_no_record_is_pointed_to(jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--tracking-uri", ""]) == 0
    assert jobs[0].tracking_uri == ""
    assert "mlflow" not in capsys.readouterr().out


def test_a_budget_out_of_reach_shows_the_smallest_found(
    ending: Callable[[Summary], None], capsys: pytest.CaptureFixture[str]
) -> None:
    ending(make_summary(reached=False))
    assert main(["search"]) == 3
    shown = capsys.readouterr().out
    for part in ("smallest found", "Nothing that was measured holds the budget of 50.0 ms", "Relax the budget"):
        assert part in shown
    assert "automc export" not in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AutomcError("It went wrong.", remedy="Do this."), 1),
        (InputError("It went wrong.", remedy="Do this."), 2),
        (BudgetUnreachableError("It went wrong.", remedy="Do this."), 3),
        (MissingError("It went wrong.", remedy="Do this."), 4),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/trials.jsonl"), 4),
        (ZeroDivisionError("division by zero"), 1),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, ending: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    ending(error)
    assert main(["search", "--quiet"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
    if isinstance(error, AutomcError):
        assert shown.err.strip() == "It went wrong. Do this."


def test_an_error_under_json_is_an_object_too(
    ending: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    ending(InputError("It went wrong.", remedy="Do this."))
    assert main(["search", "--json"]) == 2
    record = json.loads(capsys.readouterr().out)["error"]
    assert record == {"kind": "InputError", "message": "It went wrong.", "remedy": "Do this.", "exit_code": 2}


def test_an_unexpected_error_keeps_its_traceback_under_debug(
    ending: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(ZeroDivisionError("division by zero"))
    main(["search"])
    brief = capsys.readouterr().err
    assert "Traceback" not in brief
    assert "--debug" in brief
    monkeypatch.setenv("AUTOMC_DEBUG", "1")
    assert main(["search"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--timeout", "5 parsecs"], ["--recover", "-1m"], ["--recover", "4MB"]])
def test_a_duration_that_is_none_is_told_at_once(options: list[str], jobs: list[Job]) -> None:
    assert main(["search", *options]) == 2
    assert jobs == []
