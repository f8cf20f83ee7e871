"""Makes the pictures in docs/images from a finished run: its front, its report, the live app, MLflow's page of it.

    automc search --budget 20ms --name demo-20ms --register digits
    python docs/screenshots.py demo-20ms

Needs chromium and playwright. The servers answer on 127.0.0.1 and are ended.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from automc.dashboards.svg import pareto_svg
from automc.errors import MissingError
from automc.rundir import RunDir
from automc.track.mlflow import recorded_as

IMAGES = Path(__file__).parent / "images"


def main(name: str, runs: Path, images: Path) -> None:
    """Write front.svg, report.png, app.png and mlflow.png."""
    run = RunDir.open(runs, name)
    run_id, uri = recorded_as(run)
    images.mkdir(parents=True, exist_ok=True)
    (images / "front.svg").write_text(pareto_svg(run.summary(), run.trials()), encoding="utf-8")
    with browser() as opened:
        page = opened.new_page(viewport={"width": 1100, "height": 1500})
        page.goto(run.report.absolute().as_uri())
        page.wait_for_selector("#front .scatterlayer .trace .point")
        page.screenshot(path=images / "report.png")
        with server(
            ["automc", "dashboard", "--runs", str(runs), "--no-browser", "--port"], "/_stcore/health"
        ) as address:
            page.goto(address)
            page.wait_for_selector(".js-plotly-plot .point", timeout=120_000)
            page.get_by_role("heading", name="The search").wait_for()
            page.screenshot(path=images / "app.png")
        with server(["mlflow", "server", "--backend-store-uri", uri, "--workers", "1", "--port"], "/health") as address:
            page.set_viewport_size({"width": 1600, "height": 1300})
            open_mlflow(page, address, uri, run_id)
            page.screenshot(path=images / "mlflow.png")


def open_mlflow(page: Any, address: str, uri: str, run_id: str) -> None:
    """MLflow's page of a run, once its metrics are shown, the whole description open, without the panel of its assistant."""
    import mlflow

    experiment = mlflow.MlflowClient(uri).get_run(run_id).info.experiment_id
    page.goto(f"{address}/#/experiments/{experiment}/runs/{run_id}")
    page.get_by_text("best/latency_ms").first.wait_for(timeout=120_000)
    assistant = page.get_by_role("button", name="Close")
    if assistant.count():
        assistant.first.click()
    more = page.get_by_text("Show more", exact=True)
    if more.count():
        more.first.click()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium.

    Raises:
        MissingError: there is none.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise MissingError("There is no chromium.", remedy="`apt-get install chromium`.")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@contextlib.contextmanager
def server(command: Sequence[str], health: str) -> Iterator[str]:
    """The address of a server, once it answers; `command` is a module with arguments, and is given a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    whole = [sys.executable, "-m", *command, port]
    running = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}{health}", running)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(running.pid, 15)
        running.wait()


def _wait(address: str, running: subprocess.Popen[bytes], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if running.poll() is not None:
            raise MissingError(f"The server of {address} ended with {running.returncode}.", remedy="Start it by hand.")
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise MissingError(f"{address} does not answer.", remedy="Start the server by hand.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--images", type=Path, default=IMAGES)
    given = parser.parse_args()
    main(given.name, given.runs, given.images)
