"""A search recorded on a real MLflow server: one that is not there, and one that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from servers import free_port, wait_for
from test_track import TRIALS, Recorded, track, write_run

from automc.rundir import RunDir
from automc.track.mlflow import MARKER, upload


def test_nobody_at_the_address_is_told_once_and_kept_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = write_run(tmp_path / "one")
    warnings: list[str] = []
    tracker = track(run, f"http://127.0.0.1:{free_port()}", warnings)
    assert not tracker.close(60.0)
    assert "cannot be written" in warnings[0]
    assert f"automc track --run one --runs {tmp_path}" in warnings[1]
    assert len(warnings) == 2
    assert json.loads((run.path / MARKER).read_text())["complete"] is False


@pytest.mark.slow
def test_a_server_that_dies_in_mid_search_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    port, run = free_port(), write_run(tmp_path / "runs" / "one")
    uri, warnings = f"http://127.0.0.1:{port}", list[str]()
    server = _serve(tmp_path, port)

    def kill() -> None:
        wait_for(lambda: run.path / MARKER, lambda marker: marker.exists())
        _stop(server)

    tracker = track(run, uri, warnings, between=kill)
    assert not tracker.close(90.0)
    assert len(warnings) == 2
    again = _serve(tmp_path, port)
    try:
        assert upload(RunDir(run.path))
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        assert tracker.run_id is not None
        complete = Recorded(client, run, tracker, warnings)
        assert complete.parent.info.status == "FINISHED"
        assert complete.parent.data.params["agent"] == "ilp"
        steps = {point.step for point in client.get_metric_history(tracker.run_id, "latency_ms")}
        assert steps == {trial.number for trial in TRIALS}
        assert "front.html" in complete.files
        assert tracker.run_url is not None
        assert tracker.run_url.endswith(tracker.run_id)
        assert json.loads((run.path / MARKER).read_text())["complete"] is True
    finally:
        _stop(again)


def _serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A real MLflow server, once it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    log = (folder / "server.log").open("ab")
    server = subprocess.Popen([*command, *store], stdout=log, stderr=log, start_new_session=True, cwd=folder)

    def answers() -> bool:
        assert server.poll() is None, (folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    wait_for(answers, bool)
    return server


def _stop(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
