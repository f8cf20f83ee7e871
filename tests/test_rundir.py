"""The record on disk: resumable after any crash, refused to another search, never half-written."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import make_certificate, make_summary, make_trials

from automc import disk
from automc.disk import try_folder, write_atomic
from automc.errors import DiskError, InputError, RunConflictError, UnknownNameError
from automc.export.run import export_run
from automc.rundir import RunDir, runs_in

CONFIG = {"model": "demo", "data": "digits", "budget": ["50ms"], "space": "default", "seed": 0, "trials": 60}


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs" / "one", CONFIG)


def test_config_is_read_back_as_plain_values(run: RunDir) -> None:
    assert run.config() == CONFIG


def test_same_search_resumes_and_keeps_its_trials(run: RunDir) -> None:
    trials = make_trials(3)
    for trial in trials:
        run.append(trial)
    again = RunDir.create(run.path, {**CONFIG, "trials": 200})
    assert again.trials() == trials
    assert again.config()["trials"] == 200


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", "other.py:build"), ("budget", ("30ms",)), ("agent", "tpe"), ("warm_start", "demo-50ms")],
)
def test_another_search_is_refused_and_the_difference_named(run: RunDir, key: str, value: object) -> None:
    with pytest.raises(RunConflictError, match=f"with {key} = "):
        RunDir.create(run.path, {**CONFIG, key: value})
    assert run.config() == CONFIG


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunConflictError, match="no run"):
        RunDir.create(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_cannot_write_one_run(run: RunDir) -> None:
    code = f"from automc.rundir import RunDir; RunDir.create({str(run.path)!r}, {CONFIG!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "Another search is writing" in second.stderr
    run.close()
    third = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert third.returncode == 0, third.stderr


def test_a_half_written_last_line_is_ignored_and_then_removed(run: RunDir) -> None:
    trials = make_trials(3)
    run.append(trials[0])
    with (run.path / "trials.jsonl").open("a") as file:
        file.write(json.dumps(trials[1].to_json())[:-7])
    resumed = RunDir(run.path)
    assert resumed.trials() == trials[:1]
    resumed.append(trials[2])
    assert resumed.trials() == [trials[0], trials[2]]


def test_a_damaged_line_is_named(run: RunDir) -> None:
    run.append(make_trials(1)[0])
    with (run.path / "trials.jsonl").open("a") as file:
        file.write('{"number": 1}\n')
    with pytest.raises(InputError, match="line 2 of"):
        run.trials()


def test_a_full_disk_leaves_the_trials_whole(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = make_trials(2)
    run.append(trials[0])
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(DiskError, match=r"no space left on device.*Free some space"):
        run.append(trials[1])
    monkeypatch.undo()
    assert run.trials() == trials[:1]
    assert (run.path / "trials.jsonl").read_bytes().endswith(b"\n")


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a.json", "old")
    monkeypatch.setattr(disk.os, "fsync", _full_disk)
    with pytest.raises(DiskError) as caught:
        write_atomic(tmp_path / "a.json", "new")
    assert caught.value.exit_code == 4
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_file_where_the_folder_should_be_is_explained(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(DiskError, match="Cannot write"):
        RunDir.create(tmp_path / "runs" / "one", CONFIG)


def test_summary_and_front_survive_the_disk(run: RunDir) -> None:
    trials = make_trials()
    summary = make_summary(trials)
    run.write_summary(summary)
    run.write_front(trials)
    assert run.summary() == summary
    points = run.front()
    assert [point["cost"]["latency_s"] for point in points] == sorted(point["cost"]["latency_s"] for point in points)
    assert set(points[0]) >= {"digest", "score", "cost", "source"}


def test_best_holds_what_a_stranger_needs(run: RunDir) -> None:
    summary = make_summary()
    assert summary.best is not None
    run.best.write(summary.best, b"onnx", make_certificate(summary), model_digest="m1", device_digest="d1")
    policy: dict[str, Any] = json.loads((run.path / "best" / "policy.json").read_text())
    assert policy["schema"] == 1
    assert (policy["model"], policy["device"]) == ("m1", "d1")
    assert policy["measured"]["source"]["latency_s"] == "measured"
    assert policy["predicted"]["latency_s"] == summary.best.predicted_latency_s
    assert run.best.policy() == summary.best.policy
    assert run.best.certificate() == make_certificate(summary)
    assert (run.path / "best" / "model.onnx").read_bytes() == b"onnx"


def test_finalists_are_kept_before_and_after_recovery(run: RunDir) -> None:
    recovered = make_summary().best
    assert recovered is not None
    before = replace(recovered, stage="finalist")
    run.write_model(before, b"before")
    run.write_model(replace(recovered, stage="recovered"), b"after")
    assert run.model_path(before).read_bytes() == b"before"


def test_another_model_in_the_folder_of_the_winner_is_not_exported_as_it(run: RunDir, tmp_path: Path) -> None:
    summary = make_summary()
    assert summary.best is not None
    run.write_summary(summary)
    run.write_model(summary.best, b"winner")
    before = replace(summary.best, cost=summary.dense.cost)
    for other in (summary.dense, before):
        run.best.write(other, b"other", make_certificate(summary), model_digest="m1", device_digest="d1", pt2=b"other")
        assert export_run(run.path, budget=None, knee=False, format="onnx", out=tmp_path).read_bytes() == b"winner"
        with pytest.raises(InputError, match="kept no pt2 file"):
            export_run(run.path, budget=None, knee=False, format="pt2", out=tmp_path)
    run.best.write(summary.best, b"best", make_certificate(summary), model_digest="m1", device_digest="d1")
    assert export_run(run.path, budget=None, knee=False, format="onnx", out=tmp_path).read_bytes() == b"best"


def test_the_files_of_an_earlier_winner_go_with_it(run: RunDir) -> None:
    summary = make_summary()
    assert summary.best is not None
    certificate = make_certificate(summary)
    run.best.write(summary.best, b"onnx", certificate, model_digest="m1", device_digest="d1", pt2=b"pt2")
    run.best.write(summary.best, b"onnx", certificate, model_digest="m1", device_digest="d1")
    assert not (run.path / "best" / "model.pt2").exists()
    run.best.clear()
    assert not list((run.path / "best").iterdir())
    run.best.clear()


def test_runs_are_listed_newest_first_and_found_by_name(tmp_path: Path) -> None:
    for index, name in enumerate(("digits-a", "digits-b")):
        run = RunDir.create(tmp_path / name, CONFIG)
        os.utime(run.path / "config.yaml", (index, index))
    (tmp_path / "not-a-run").mkdir()
    assert [run.name for run in runs_in(tmp_path)] == ["digits-b", "digits-a"]
    assert RunDir.open(tmp_path, "digits-a").config() == CONFIG
    with pytest.raises(UnknownNameError, match="Did you mean 'digits-a'"):
        RunDir.open(tmp_path, "digit-a")


def test_no_runs_where_there_is_no_folder(tmp_path: Path) -> None:
    assert runs_in(tmp_path / "nowhere") == []


def test_what_is_not_there_yet_is_said(run: RunDir) -> None:
    with pytest.raises(InputError, match=r"There is no .*summary\.json"):
        run.summary()
    (run.path / "summary.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        run.summary()


def test_the_command_that_goes_on_can_be_copied() -> None:
    assert shlex.split(RunDir("my runs/ün é").again) == ["automc", "search", "my runs/ün é/config.yaml"]


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try_folder(tmp_path / "new" / "folder")
    try_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="Cannot write"):
        try_folder(tmp_path / "file")
