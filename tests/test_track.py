"""The record in MLflow: complete, told by a process that no failure of the store can turn against the search."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
from onnx import TensorProto, helper
from records import DENSE, LIMIT_S, make_certificate, make_summary, make_trials
from servers import free_port, wait_for

from automc.cli.main import main
from automc.errors import InputError, MissingError
from automc.pareto import front
from automc.policy import Policy, Quantize
from automc.rundir import RunDir
from automc.track.children import children
from automc.track.mlflow import MLflowTracker, download, recorded_as, track_command, tracking_uri, ui_command
from automc.track.models import chosen_models
from automc.track.null import NullTracker
from automc.track.record import StepMetrics, policy_params, summary_metrics, trial_table
from automc.track.worker import Worker
from automc.trial import Cost, Trial

TRIALS = make_trials(30)
SUMMARY = make_summary(TRIALS)


@dataclass
class Recorded:
    """A search that was recorded, and the store it was recorded in."""

    client: Any
    run: RunDir
    tracker: MLflowTracker
    warnings: list[str]

    @property
    def parent(self) -> Any:
        return self.client.get_run(self.tracker.run_id)

    @property
    def children(self) -> list[Any]:
        parent = self.parent.info
        found = self.client.search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
        return list(found)

    @property
    def files(self) -> set[str]:
        return {file.path for file in self.client.list_artifacts(self.tracker.run_id)}


TRAINING = {
    "policy": "0123456789abcdef",
    "choices": {"rate": 0.01, "labels": 0.0},
    "history": [{"round": 1.0 + i, "worth": 0.5 + 0.25 * i, "loss": 1.0 / (1 + i)} for i in range(3)],
    "best": {"worth": 0.9},
}


def write_run(folder: Path) -> RunDir:
    """What a finished search leaves on disk, with models that a runtime takes."""
    run = records.write_run(folder, TRIALS, SUMMARY, device_key="here")
    for finalist in SUMMARY.finalists:
        run.write_model(finalist, tiny_onnx(finalist.policy.digest))
    assert SUMMARY.best is not None
    data = tiny_onnx(SUMMARY.best.policy.digest)
    run.best.write(SUMMARY.best, data, make_certificate(SUMMARY), model_digest="m", device_digest="d")
    run.add_trainings([TRAINING])
    run.report.write_text("<html></html>")
    return run


def tiny_onnx(name: str) -> bytes:
    """y = x + 1 for x of shape (2, 3)."""
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [2, 3]) for end in ("x", "y")]
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], name, ends[:1], ends[1:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def track(
    run: RunDir,
    uri: str,
    warnings: list[str],
    between: Callable[[], None] = lambda: None,
    register: str | None = None,
) -> MLflowTracker:
    """Record a whole search; `between` is called half-way. The tracker is left open."""
    tracker = MLflowTracker("demo", run.name, uri, run_dir=run.path, on_warning=warnings.append, register=register)
    tracker.start({"agent": "ilp", "budget": ["50ms"], "seed": 0}, {"device": "cpu"})
    tracker.set_reference(SUMMARY.dense.cost, SUMMARY.dense.validation, SUMMARY.limits)
    for index, trial in enumerate(TRIALS):
        if index == len(TRIALS) // 2:
            between()
        tracker.log(trial)
    tracker.finish(SUMMARY, run.path)
    return tracker


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        run = write_run(folder / "runs" / "digits-50ms")
        warnings: list[str] = []
        (folder / "devices").mkdir()
        (folder / "devices" / "here.jsonl").write_text("{}\n")
        patch.setenv("AUTOMC_CACHE", str(folder))
        tracker = track(run, "", warnings, register="digits")
        assert tracker.close(120.0), warnings
        from mlflow import MlflowClient

        yield Recorded(MlflowClient(f"sqlite:///{folder}/mlflow.db"), run, tracker, warnings)


def test_the_parent_run_says_how_it_was_made(recorded: Recorded) -> None:
    run = recorded.parent
    assert recorded.warnings == []
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits-50ms")
    assert run.data.params == {"agent": "ilp", "budget": '["50ms"]', "seed": "0"}
    assert SUMMARY.best is not None
    assert run.data.tags["best_policy"] == SUMMARY.best.policy.digest
    note = run.data.tags["mlflow.note.content"]
    assert "The winner holds 50.0 ms as measured" in note
    assert f"automc export --mlflow-run {run.info.run_id}" in note
    assert all(f"| {target} |" in note for target, _ in SUMMARY.best.policy)
    assert (run.data.tags["device"], run.data.tags["budget_held"]) == (SUMMARY.device, "true")


def test_each_trial_is_a_step(recorded: Recorded) -> None:
    history = recorded.client.get_metric_history(recorded.tracker.run_id, "latency_ms")
    assert [point.step for point in history] == [trial.number for trial in TRIALS]
    assert history[3].value == pytest.approx(1e3 * (TRIALS[3].cost.latency_s or 0))
    shares = [point.value for point in recorded.client.get_metric_history(recorded.tracker.run_id, "hypervolume")]
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1
    scores = recorded.client.get_metric_history(recorded.tracker.run_id, "score")
    assert len(scores) == sum(trial.state == "complete" for trial in TRIALS)


def test_the_outcome_is_among_the_metrics(recorded: Recorded) -> None:
    metrics = recorded.parent.data.metrics
    assert SUMMARY.best is not None
    assert metrics["best/latency_ms"] == pytest.approx(1e3 * (SUMMARY.best.cost.latency_s or 0))
    assert metrics["best/test_score"] == SUMMARY.best.test
    assert metrics["dense/latency_ms"] == pytest.approx(100.4)
    assert metrics["predictor/noise_floor"] == 0.012
    unknown = replace(SUMMARY, predictor=replace(SUMMARY.predictor, mape=None))
    assert {**summary_metrics(unknown), "predictor/mape": 0.041} == summary_metrics(SUMMARY)


def test_each_finalist_is_a_nested_run(recorded: Recorded) -> None:
    found = [child for child in recorded.children if child.data.tags["stage"] in ("finalist", "recovered")]
    assert len(found) == len(SUMMARY.finalists)
    winners = [child for child in found if child.data.tags["winner"] == "true"]
    assert [child.data.metrics["latency_ms"] for child in winners] == [recorded.parent.data.metrics["best/latency_ms"]]
    assert SUMMARY.best is not None
    assert winners[0].data.params == policy_params(SUMMARY.best.policy)


def test_each_fine_tuning_is_a_nested_run_with_its_curve(recorded: Recorded) -> None:
    (child,) = [child for child in recorded.children if child.data.tags["stage"] == "training"]
    assert child.data.params == {"rate": "0.01", "labels": "0.0"}
    curve = recorded.client.get_metric_history(child.info.run_id, "worth")
    assert [(point.step, point.value) for point in curve] == [(1, 0.5), (2, 0.75), (3, 1.0)]
    assert "trainings.json" in recorded.files


def test_the_files_are_there(recorded: Recorded) -> None:
    assert recorded.files >= {
        "best",
        "config.yaml",
        "device",
        "front.html",
        "front.json",
        "front.png",
        "models",
        "tables.json",
        "trials.jsonl",
        "report.html",
        "summary.json",
        "trials.json",
    }
    best = {file.path for file in recorded.client.list_artifacts(recorded.tracker.run_id, "best")}
    assert best == {"best/certificate.json", "best/model.onnx", "best/policy.json"}
    figure = Path(recorded.client.download_artifacts(recorded.tracker.run_id, "front.html")).read_text()
    assert "plotly.js v" in figure
    assert SUMMARY.dense.policy.digest not in figure
    assert TRIALS[0].policy.digest in figure


def test_the_table_of_trials_is_one_that_mlflow_can_load(recorded: Recorded) -> None:
    table = recorded.client.load_table(recorded.parent.info.experiment_id, "trials.json", [recorded.tracker.run_id])
    assert list(table["number"]) == [trial.number for trial in TRIALS]
    assert list(table["digest"]) == [trial.policy.digest for trial in TRIALS]


def test_each_point_of_the_front_is_a_nested_run(recorded: Recorded) -> None:
    found = {child.info.run_name: child for child in recorded.children if child.data.tags["stage"] == "search"}
    points = front(TRIALS)
    assert set(found) == {f"trial {trial.number}" for trial in points}
    first = found[f"trial {points[0].number}"].data
    assert first.metrics["validation_score"] == points[0].score
    assert first.params == policy_params(points[0].policy)


def test_all_trials_are_nested_runs_when_asked_for() -> None:
    names = [child.name for child in children(SUMMARY, TRIALS, "all")]
    assert len(names) == len(set(names)) == len(TRIALS) + len(SUMMARY.finalists)


def test_the_pace_is_a_step_metric(recorded: Recorded) -> None:
    pace = recorded.client.get_metric_history(recorded.tracker.run_id, "evaluations_per_second")
    spent = [trial.seconds for trial in TRIALS if trial.seconds > 0]
    assert pace[-1].value == pytest.approx(len(spent) / sum(spent))


def test_a_measured_trial_tells_how_far_its_prediction_was_off() -> None:
    predicted, measured = (
        Cost(latency_s=0.9, source={"latency_s": "predicted"}),
        Cost(latency_s=1.0, source={"latency_s": "measured"}),
    )
    steps = StepMetrics(measured, 1.0, {})
    assert "predictor_error" not in steps.add(Trial(0, Policy(), predicted, 0.5))
    assert steps.add(Trial(1, Policy(), measured, 0.5, stage="finalist"))["predictor_error"] == pytest.approx(0.1)
    unknown = Policy.of([("fc", Quantize(8, 8))])
    assert "predictor_error" not in steps.add(Trial(2, unknown, measured, 0.5, stage="finalist"))


def test_two_workers_make_twice_the_pace_and_a_break_does_not_count() -> None:
    cost = Cost(latency_s=1.0)
    steps = StepMetrics(cost, 1.0, {})
    ends = (10.0, 10.5, 12.0, 12.5, 100.0)
    trials = [Trial(i, Policy(), cost, 0.5, seconds=2.0, ended=ended) for i, ended in enumerate(ends)]
    paces = [steps.add(trial)["evaluations_per_second"] for trial in trials]
    assert paces == pytest.approx([1 / 2, 2 / 2.5, 3 / 4, 4 / 4.5, 5 / 6.5])


def test_the_best_models_are_registered_and_run_as_they_are(recorded: Recorded) -> None:
    import mlflow

    chosen = chosen_models(SUMMARY, recorded.run.path)
    assert set(chosen) == {"best", "knee"}
    mlflow.set_tracking_uri(f"sqlite:///{recorded.run.path.parents[1]}/mlflow.db")
    for alias in chosen:
        version = recorded.client.get_model_version_by_alias("digits", alias)
        assert version.run_id == recorded.tracker.run_id
        loaded = mlflow.pyfunc.load_model(f"models:/digits@{alias}")
        assert [(spec.name, spec.shape) for spec in loaded.metadata.signature.inputs] == [("x", (2, 3))]
        example = loaded.input_example
        assert loaded.predict(example)["y"] == pytest.approx(np.ones((2, 3)))


def test_a_run_is_exported_from_mlflow_alone(recorded: Recorded, tmp_path: Path) -> None:
    assert SUMMARY.best is not None
    uri = ["--tracking-uri", f"sqlite:///{recorded.run.path.parents[1]}/mlflow.db"]
    assert main(["export", "--mlflow-run", str(recorded.tracker.run_id), *uri, "--out", str(tmp_path)]) == 0
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [tiny_onnx(SUMMARY.best.policy.digest)]
    again = download(str(recorded.tracker.run_id), tmp_path / "again", uri[1])
    assert again.summary() == SUMMARY
    assert again.trials() == TRIALS


def test_what_cannot_be_exported_from_mlflow_is_said(recorded: Recorded, tmp_path: Path) -> None:
    uri = f"sqlite:///{recorded.run.path.parents[1]}/mlflow.db"
    with pytest.raises(InputError, match="has no run"):
        download("0" * 32, tmp_path, uri)
    with pytest.raises(InputError, match="holds no finished search"):
        download(recorded.children[0].info.run_id, tmp_path, uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(MissingError, match="cannot be read"):
            download("0" * 32, tmp_path, f"http://127.0.0.1:{free_port()}")
    assert main(["export", "--out", str(tmp_path)]) == 2


def test_track_says_where_it_is(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run_id, uri = recorded_as(recorded.run)
    assert run_id == recorded.tracker.run_id
    assert main(["track", "--run", recorded.run.name, "--runs", str(recorded.run.path.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "digits-50ms", "mlflow_run_id": run_id, "tracking_uri": uri}


def test_a_rerun_goes_on_with_the_same_run(recorded: Recorded) -> None:
    run_id, children = recorded.tracker.run_id, len(recorded.children)
    uri = f"sqlite:///{recorded.run.path.parents[1]}/mlflow.db"
    tracker = track(recorded.run, uri, recorded.warnings, register="digits")
    assert tracker.close(120.0), recorded.warnings
    assert tracker.run_id == run_id
    assert len(recorded.children) == children
    table = json.loads(Path(recorded.client.download_artifacts(run_id, "trials.json")).read_text())
    assert len(table["data"]) == len(TRIALS)
    assert len(recorded.client.search_model_versions("name = 'digits'")) == 2


def test_a_search_that_is_killed_is_recorded_as_killed_and_prints_nothing(recorded: Recorded, tmp_path: Path) -> None:
    uri = f"sqlite:///{recorded.run.path.parents[1]}/mlflow.db"
    script = tmp_path / "search.py"
    script.write_text(
        "import os, signal, sys, time\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from records import make_trials, DENSE\n"
        "from automc.track.mlflow import MLflowTracker\n"
        f"tracker = MLflowTracker('demo', 'killed', {uri!r})\n"
        "tracker.start({}, {}); tracker.set_reference(DENSE, 0.99, {'latency_s': 0.05})\n"
        "for trial in make_trials(5): tracker.log(trial)\n"
        "while tracker.run_id is None: time.sleep(0.05)\n"
        "print(tracker.run_id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert done.stderr == ""
    run = wait_for(lambda: recorded.client.get_run(done.stdout.strip()), lambda run: run.info.status == "KILLED")
    assert len(recorded.client.get_metric_history(run.info.run_id, "latency_ms")) == 5


def test_a_helper_that_cannot_start_is_an_event() -> None:
    events: list[Any] = []
    worker = Worker("automc.track.no_such_module", events.append, {})
    worker.send({"kind": "trial"})
    assert not worker.close(60.0)
    assert [event["event"] for event in events] == ["lost"]
    assert "no_such_module" in events[0]["text"]


def test_a_helper_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = Worker("hangs", lambda event: None, {})
    started = time.monotonic()
    assert not worker.close(0.5)
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_the_best_score_counts_only_what_holds_the_budget() -> None:
    steps = StepMetrics(DENSE, 0.991, {"latency_s": LIMIT_S})
    rows = [steps.add(trial) for trial in TRIALS]
    inside = [t.score for t in TRIALS if t.score is not None and (t.cost.latency_upper_s or 1) <= LIMIT_S]
    assert rows[-1]["best_score_in_budget"] == max(inside)
    assert "score" not in rows[9]
    assert TRIALS[9].state == "failed"


def test_a_run_without_a_winner_has_metrics_too() -> None:
    metrics = summary_metrics(make_summary(TRIALS, reached=False))
    assert "best/latency_ms" not in metrics
    assert metrics["dense/latency_ms"] == pytest.approx(100.4)


def test_table_columns_are_of_one_length() -> None:
    assert {len(column) for column in trial_table(TRIALS).values()} == {len(TRIALS)}


def test_the_store_is_the_one_given_or_the_environments_or_a_file_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking_uri("sqlite:///x.db") == "sqlite:///x.db"
    assert ui_command(tracking_uri()) == "http://tracker:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert ui_command(tracking_uri()) == "mlflow ui --backend-store-uri sqlite:///mlflow.db"


def test_commands_can_be_copied() -> None:
    assert shlex.split(track_command(Path("my runs/ün é"))) == ["automc", "track", "--run", "ün é", "--runs", "my runs"]
    assert track_command(Path("runs/one")) == "automc track --run one"
    assert ui_command("sqlite:///a b.db") == "mlflow ui --backend-store-uri 'sqlite:///a b.db'"


def test_the_null_tracker_takes_everything(tmp_path: Path) -> None:
    tracker = NullTracker()
    tracker.start({}, {})
    tracker.set_reference(DENSE, 0.99, {})
    tracker.log(TRIALS[0])
    tracker.finish(None, tmp_path, "KILLED")
    assert tracker.close()
    assert list(tmp_path.iterdir()) == []
