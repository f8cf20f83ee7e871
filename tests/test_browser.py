"""The report in a real browser: drawn, answering to the pointer, readable on a phone, silent in the console."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import make_summary, make_tables, make_trials

from automc.dashboards.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no playwright: pip install playwright"),
]
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trials = make_trials()
    summary = make_summary(trials)
    tables = make_tables([f.policy for f in summary.finalists])
    return write_report(summary, trials, tmp_path_factory.mktemp("runs") / "report.html", tables)


@pytest.fixture(params=SCREENS)
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The open report, on two sizes of screen; any complaint in the console, or any request, fails the test."""
    width, height = SCREENS[request.param]
    phone = request.param == "phone"
    context = browser.new_context(
        viewport={"width": width, "height": height}, offline=True, is_mobile=phone, has_touch=phone
    )
    opened, complaints = context.new_page(), list[str]()
    opened.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("requestfailed", lambda failed: complaints.append(failed.url))
    opened.goto(report.as_uri())
    opened.wait_for_selector("#front .scatterlayer .trace .point")
    yield opened
    context.close()
    assert complaints == []


def test_the_verdict_is_on_the_first_screen(page: Any) -> None:
    box = page.locator(".verdict").bounding_box()
    assert "The winner holds 50.0\u00a0ms as measured" in page.locator(".verdict").inner_text()
    assert box["y"] + box["height"] < page.viewport_size["height"]


def test_every_figure_is_drawn_within_the_page(page: Any) -> None:
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("front", "policy", "layers", "sensitivity", "predictions", "search"):
        box = page.locator(f"#{name} .main-svg").first.bounding_box()
        assert box["width"] > 0.8 * min(width, 1040)
        assert box["height"] > 150


def test_pointing_at_or_tapping_the_winner_tells_its_policy(page: Any) -> None:
    best = make_summary(make_trials()).best
    assert best is not None
    page.locator("#front").scroll_into_view_if_needed()
    star = page.locator("#front .scatterlayer .trace .point").last.bounding_box()
    point = page.touchscreen.tap if page.evaluate("navigator.maxTouchPoints") else page.mouse.move
    point(star["x"] + star["width"] / 2, star["y"] + star["height"] / 2)
    page.wait_for_selector("#front .hoverlayer .hovertext")
    shown = page.locator("#front .hoverlayer .hovertext").text_content()
    assert "winner" in shown
    assert best.policy.digest in shown
    assert "measured" in shown


def test_tables_open_beside_the_figures(page: Any) -> None:
    assert page.locator("#front").locator("xpath=ancestor::section").locator("table").first.is_visible()
    opener = page.get_by_text("The same as a table", exact=True).first
    opener.click()
    assert opener.locator("xpath=..").locator("table").is_visible()
