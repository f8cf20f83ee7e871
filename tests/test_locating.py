"""Runs that are gone on with from another folder than they were made in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_run
import yaml

from automc.cli.main import main
from automc.errors import InputError
from automc.job import run
from automc.locating import located, remembered
from automc.reopening import job_of
from automc.rundir import RunDir
from automc.task import Task


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder that a run was made in, with a file, and the current one."""
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
    (there / "m.py").touch()
    monkeypatch.chdir(here)
    return there, here


@pytest.mark.parametrize(
    ("field", "spec", "found"),
    [
        ("model", "m.py:build", "{}/m.py:build"),
        ("evaluate", "./m.py:score", "{}/m.py:score"),
        ("data", "npz:m.py?mean=0.5", "npz:{}/m.py?mean=0.5"),
        ("weights", "m.py", "{}/m.py"),
        ("warm_start", "m.py", "{}/m.py"),
        ("warm_start", "earlier", "earlier"),
        ("model", "torchvision:resnet18", "torchvision:resnet18"),
        ("model", "package.module:build", "package.module:build"),
        ("model", None, None),
    ],
)
def test_a_relative_path_leads_to_where_the_run_was_made(
    places: tuple[Path, Path], field: str, spec: str | None, found: str | None
) -> None:
    fields = {field: spec, "made_in": str(places[0])}
    assert located(fields)[field] == (found and found.format(places[0]))


def test_what_lies_here_comes_first(places: tuple[Path, Path]) -> None:
    there, here = places
    fields = {"model": "m.py:build", "made_in": str(there)}
    assert remembered(fields)["made_in"] == str(there)
    (here / "m.py").touch()
    assert located(fields) == fields
    assert remembered(fields)["made_in"] == str(here)
    assert remembered({"model": "m.py:build", "made_in": None})["made_in"] == str(here)


def test_what_lies_in_neither_is_said_with_both(places: tuple[Path, Path]) -> None:
    there, here = places
    with pytest.raises(InputError, match=f"There is no {here}/x.py, and no {there}/x.py where the run was made"):
        located({"model": "x.py:build", "made_in": str(there)})


def test_a_run_is_loaded_and_gone_on_with_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    monkeypatch.chdir(tmp_path)
    job = tiny_run.job(tmp_path, device="eyeriss", model="mine.py:build", data="mine.py:loaders", runs="runs", trials=3)
    run(job)
    config = tmp_path / "runs" / "tiny" / "config.yaml"
    made = yaml.safe_load(config.read_text())
    assert (made["model"], made["made_in"]) == ("mine.py:build", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    task = Task.of(job_of(RunDir("../runs/tiny")))
    assert task.data.digest == made["data_digest"]
    assert main(["check", "../runs/tiny/config.yaml"]) == 0
    assert main(["solve", "--run", "tiny", "--runs", "../runs", "--budget", "90%", "--quiet"]) in (0, 3)
    capsys.readouterr()
    assert main(["search", "../runs/tiny/config.yaml", "--trials", "4", "--json", "--quiet"]) in (0, 3)
    assert json.loads(capsys.readouterr().out)["trials"] == 4
    assert list(elsewhere.iterdir()) == []
    kept = yaml.safe_load(config.read_text())
    assert (kept["model"], kept["made_in"]) == ("mine.py:build", str(tmp_path))


def test_a_run_of_before_that_was_remembered_is_read(tmp_path: Path) -> None:
    fields = dataclasses.asdict(tiny_run.job(tmp_path))
    del fields["made_in"]
    RunDir.create(tmp_path / "runs" / "old", fields).close()
    assert job_of(RunDir(tmp_path / "runs" / "old")).made_in is None


def test_files_that_are_here_and_not_there_are_kept_by_their_whole_path(places: tuple[Path, Path]) -> None:
    there, here = places
    (here / "d.py").touch()
    kept = remembered({"model": "m.py:build", "data": "d.py:loaders", "made_in": str(there)})
    assert (kept["model"], kept["data"]) == ("m.py:build", f"{here}/d.py:loaders")
    assert kept["made_in"] == str(there)
