"""MLflow's own pages of a search, from a real server, in a real browser."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import make_summary, make_trials, write_run

from automc.track.mlflow import recorded_as, upload

TOOLS = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "screenshots.py"))
TRIALS = make_trials(12)
SUMMARY = make_summary(TRIALS)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no playwright: pip install playwright"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a finished search; errors of the page itself fail the test, what MLflow logs does not."""
    folder, broken = tmp_path_factory.mktemp("mlflow"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        run = write_run(folder / "runs" / "digits-50ms", TRIALS, SUMMARY)
        shutil.rmtree(run.path / "models")  # made-up files, which are no models
        run.report.write_text("<html><body>the report</body></html>")
        uri = f"sqlite:///{folder}/mlflow.db"
        assert upload(run, uri)
        command = ["mlflow", "server", "--backend-store-uri", uri, "--workers", "1", "--port"]
        with TOOLS["browser"]() as opened, TOOLS["server"](command, "/health") as address:
            shown = opened.new_page(viewport={"width": 1400, "height": 1600})
            shown.on("pageerror", lambda error: broken.append(str(error)))
            TOOLS["open_mlflow"](shown, address, uri, recorded_as(run)[0])
            yield shown
    assert broken == []


def test_the_page_says_which_policy_won_and_how_sure_its_latency_is(page: Any) -> None:
    assert SUMMARY.best is not None
    page.get_by_text("The winner holds 50.0 ms as measured").first.wait_for()
    page.get_by_text(SUMMARY.best.policy.digest).first.wait_for()
    for metric in ("best/latency_low_ms", "best/latency_high_ms", "best/test_score", "speedup"):
        assert page.get_by_text(metric, exact=True).count() > 0


def test_the_files_are_a_click_away(page: Any) -> None:
    page.get_by_text("Artifacts", exact=True).first.click()
    for name in ("best", "front.html", "front.png", "report.html", "trials.json"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text("front.png", exact=True).first.click()
    page.locator("img[src*='front.png'], img[src^='blob:'], canvas").first.wait_for()
