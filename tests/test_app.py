"""The live app: its answers to other budgets, and the page itself in a real browser."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import LIMIT_S, make_summary, make_trials, write_run
from servers import free_port, wait_for

from automc.dashboards.answers import answers, repeat_command, search_command
from automc.dashboards.provisional import read

TRIALS = make_trials()
SUMMARY = make_summary(TRIALS)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no playwright: pip install playwright"),
    pytest.mark.skipif(importlib.util.find_spec("streamlit") is None, reason="pip install automc[dashboard]"),
]


def test_answers_hold_the_budget_and_say_how_they_are_known(tmp_path: Path) -> None:
    shown = read(write_run(tmp_path / "one", TRIALS, SUMMARY))
    found = {answer.how: answer for answer in answers(shown, SUMMARY, "latency_s", LIMIT_S)}
    measured = found["measured"]
    assert measured.finalist == SUMMARY.best
    tried = found["tried, as predicted"]
    scores = [t.score for t in TRIALS if t.score is not None and (t.cost.latency_s or 1) <= LIMIT_S]
    assert tried.score == f"{100 * max(scores):.2f} %"
    assert "estimated" in found["solver's answer, not tried yet"].cost
    tight = answers(shown, SUMMARY, "latency_s", 0.001)
    assert tight == []


def test_commands_name_the_run_and_the_budget(tmp_path: Path) -> None:
    shown = read(write_run(tmp_path / "one", TRIALS, SUMMARY))
    assert repeat_command(shown).startswith(f"automc search {tmp_path}/one/config.yaml --name one-again")
    assert "--budget 40.0ms" in search_command(shown, "latency_s", 0.04)
    spaced = read(write_run(tmp_path / "ün é", TRIALS, SUMMARY))
    options = ["--name", "ün é-again", "--runs", str(tmp_path)]
    assert shlex.split(repeat_command(spaced)) == ["automc", "search", f"{tmp_path}/ün é/config.yaml", *options]


def test_a_running_search_has_a_summary_of_what_is_known(tmp_path: Path) -> None:
    shown = read(write_run(tmp_path / "now", TRIALS[:7], None))
    assert shown.state == "running"
    assert shown.summary is not None
    assert shown.summary.limits == {"latency_s": LIMIT_S}
    assert shown.summary.trials == 7


class App:
    """The app in a browser, over a folder of runs."""

    def __init__(self, page: Any, runs: Path) -> None:
        self.page = page
        self.runs = runs


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    runs = tmp_path_factory.mktemp("work") / "runs"
    write_run(runs / "other", TRIALS[:40], dataclasses.replace(make_summary(TRIALS[:40]), name="other")).close()
    write_run(runs / "digits-50ms", TRIALS, SUMMARY).close()
    port = free_port()
    command = [sys.executable, "-m", "automc", "dashboard", "--runs", str(runs), "--port", str(port), "--no-browser"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONSAFEPATH": "1",
    }
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    try:
        wait_for(lambda: _answers(port, server), bool)
        yield from _opened(port, runs)
    finally:
        server.terminate()
        server.wait(30)


def _opened(port: int, runs: Path) -> Iterator[App]:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page, complaints = browser.new_page(viewport={"width": 1280, "height": 1400}), list[str]()
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector(".js-plotly-plot .point", timeout=60_000)
        yield App(page, runs)
        browser.close()
        assert complaints == []


def _answers(port: int, server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, server.stderr.read() if server.stderr else ""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1):
            return True
    except OSError:
        return False


class TestInABrowser:
    pytestmark = in_browser

    def test_the_outcome_and_the_front_are_visible(self, app: App) -> None:
        app.page.get_by_text("The winner holds 50.0 ms as measured").wait_for()
        assert app.page.locator(".js-plotly-plot .scatterlayer .point").count() > len(TRIALS)

    def test_pointing_at_the_winner_tells_its_policy(self, app: App) -> None:
        assert SUMMARY.best is not None
        star = app.page.locator(".js-plotly-plot").first.locator(".scatterlayer .trace .point").last.bounding_box()
        app.page.mouse.move(star["x"] + star["width"] / 2, star["y"] + star["height"] / 2)
        hover = app.page.locator(".js-plotly-plot .hoverlayer .hovertext").first
        hover.wait_for()
        assert SUMMARY.best.policy.digest in hover.text_content()
        assert "layer1.1.conv1: 8 of 16" in hover.text_content()

    def test_moving_the_slider_changes_the_answer(self, app: App) -> None:
        command = app.page.get_by_test_id("stCode").filter(has_text="--budget").first
        policy = app.page.get_by_text("choices from a policy that was priced as a whole").first
        before, asked = policy.text_content(), command.text_content()
        assert "--budget 50.0ms" in asked
        slider = app.page.get_by_role("slider")
        slider.focus()
        for _ in range(8):
            slider.press("ArrowLeft")
        app.page.wait_for_function("before => !document.body.innerText.includes(before)", arg=before, timeout=20_000)
        gone = (
            "asked => ![...document.querySelectorAll('[data-testid=stCode]')].some(code => code.textContent === asked)"
        )
        app.page.wait_for_function(gone, arg=asked, timeout=20_000)
        assert "--budget" in command.text_content()
        assert policy.text_content() != before

    def test_the_winners_file_can_be_downloaded(self, app: App) -> None:
        with app.page.expect_download() as download:
            app.page.get_by_role("button", name="Winner: model.onnx").click()
        assert Path(download.value.path()).read_bytes() == b"onnx"

    def test_runs_can_be_compared(self, app: App) -> None:
        chooser = app.page.get_by_role("combobox", name="Compare with")
        chooser.click()
        chooser.press("ArrowDown")
        chooser.press("Enter")
        chooser.press("Escape")  # an open list hides the rest of the page from roles
        app.page.get_by_role("heading", name="Side by side").wait_for()
        app.page.get_by_text("other, winner").first.wait_for()

    def test_a_running_search_is_watched_to_its_end(self, app: App) -> None:
        running = write_run(app.runs / "now", TRIALS[:7], None)
        app.page.reload()  # the run that was started last is shown
        app.page.get_by_text("; 7 trials.").wait_for()
        for trial in TRIALS[7:]:
            running.append(trial)
        app.page.get_by_text(f"; {len(TRIALS)} trials.").wait_for()
        points = "document.querySelector('.js-plotly-plot')?.querySelectorAll('.scatterlayer .point').length"
        app.page.wait_for_function(f"least => {points} > least", arg=40)  # drawn anew with each answer of the server
        write_run(app.runs / "now", [], SUMMARY).close()
        app.page.get_by_text("The winner holds 50.0 ms as measured").wait_for()

    def test_the_folders_of_the_runs_are_left_as_they_were(self, app: App) -> None:
        names = {path.name for path in (app.runs / "digits-50ms").iterdir()}
        assert names == {
            ".lock", "best", "config.yaml", "front.json", "models", "progress.json", "summary.json", "tables.json", "trials.jsonl"
        }  # fmt: skip
