"""MLflow's own pages of a search, from a real server, in a real browser."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from automc import job
from automc.dashboards import words
from automc.result import Summary
from automc.rundir import RunDir
from automc.track.mlflow import recorded_as

TOOLS = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "screenshots.py"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no playwright: pip install playwright"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a search was run that recorded itself."""
    made = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOMC_CACHE", str(made / "cache"))
        job.run(tiny_run.job(made, tracking_uri=_store(made)))
        yield made


@pytest.fixture(scope="module")
def run(folder: Path) -> RunDir:
    return RunDir(folder / "runs" / "tiny")


@pytest.fixture(scope="module")
def summary(run: RunDir) -> Summary:
    return run.summary()


@pytest.fixture(scope="module")
def page(folder: Path, run: RunDir) -> Iterator[Any]:
    """The page of the search; errors of the page itself fail the test, what MLflow logs does not."""
    broken = list[str]()
    command = ["mlflow", "server", "--backend-store-uri", _store(folder), "--workers", "1", "--port"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        with TOOLS["browser"]() as opened, TOOLS["server"](command, "/health") as address:
            shown = opened.new_page(viewport={"width": 1400, "height": 1600})
            shown.on("pageerror", lambda error: broken.append(str(error)))
            TOOLS["open_mlflow"](shown, address, _store(folder), recorded_as(run)[0])
            yield shown
    assert broken == []


def _store(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def test_the_page_says_which_policy_won_and_how_sure_its_latency_is(page: Any, summary: Summary) -> None:
    assert summary.best is not None
    page.get_by_text(words.verdict(summary).partition(":")[0]).first.wait_for()
    page.get_by_text(summary.best.policy.digest).first.wait_for()
    page.get_by_text("The 95 % interval of its latency is").first.wait_for()
    page.get_by_text("now, predicted").first.wait_for()
    for metric in ("best/latency_low_ms", "best/latency_high_ms", "best/test_score", "speedup"):
        assert page.get_by_text(metric, exact=True).count() > 0


def test_the_files_are_a_click_away(page: Any) -> None:
    page.get_by_text("Artifacts", exact=True).first.click()
    for name in ("best", "front.html", "front.png", "report.html", "trials.json"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text("front.png", exact=True).first.click()
    page.locator("img[src*='front.png'], img[src^='blob:'], canvas").first.wait_for()
