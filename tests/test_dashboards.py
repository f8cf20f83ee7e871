"""The figures say what the record says, and the report opens offline and hides nothing."""

from __future__ import annotations

import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from records import LIMIT_S, make_summary, make_tables, make_trials

from automc import registry, wording
from automc.dashboards import by_layer, comparison, figures, words
from automc.dashboards.png import pareto_png
from automc.dashboards.report import render, write_report
from automc.dashboards.svg import pareto_svg
from automc.errors import DiskError
from automc.pareto import front
from automc.policy import Policy, Quantize
from automc.result import Finalist, Summary
from automc.tables import Tables
from automc.trial import Cost, Trial

TRIALS = make_trials()
SUMMARY = make_summary(TRIALS)
MISSED = make_summary(TRIALS, reached=False)


def _named(name: str, summary: Summary = SUMMARY) -> object:
    return next(trace for trace in figures.pareto(summary, TRIALS).data if trace.name == name)


def _text(html: str) -> str:
    """What a reader sees of a page."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body).replace("&nbsp;", " "))


def test_the_front_shows_every_scored_trial_in_milliseconds() -> None:
    tried = _named("tried")
    scored = [t for t in TRIALS if t.state == "complete"]
    assert list(tried.x) == pytest.approx([1e3 * (t.cost.latency_s or 0) for t in scored])  # type: ignore[attr-defined]
    line = _named("front, as predicted")
    assert list(line.y) == [t.score for t in front(scored)]  # type: ignore[attr-defined]


def test_the_winner_stands_out_with_its_measured_interval() -> None:
    best = SUMMARY.best
    assert best is not None
    assert best.cost.latency_s is not None
    assert best.cost.latency_interval_s is not None
    winner = _named("winner")
    assert list(winner.x) == [1e3 * best.cost.latency_s]  # type: ignore[attr-defined]
    high = 1e3 * (best.cost.latency_interval_s[1] - best.cost.latency_s)
    assert list(winner.error_x.array) == pytest.approx([high])  # type: ignore[attr-defined]
    assert best.policy.digest in winner.text[0]  # type: ignore[attr-defined]


def test_the_budget_is_a_line_at_the_limit() -> None:
    shapes = figures.pareto(SUMMARY, TRIALS).layout.shapes
    assert [shape.x0 for shape in shapes] == [1e3 * LIMIT_S]


def test_without_a_winner_no_star_and_every_finalist_is_open() -> None:
    traces = {trace.name: trace for trace in figures.pareto(MISSED, TRIALS).data}
    assert "winner" not in traces
    assert traces["finalist, over budget, measured"].marker.symbol == "diamond-open"


@pytest.mark.parametrize(("metric", "limit", "unit"), [("size_bytes", 4e5, "MB"), ("macs", 2e7, "MMACs")])
def test_the_axis_is_the_budgeted_metric_in_its_unit(metric: str, limit: float, unit: str) -> None:
    summary = dataclasses.replace(SUMMARY, limits={metric: limit})
    figure = figures.pareto(summary, TRIALS)
    assert unit in figure.layout.xaxis.title.text
    assert [shape.x0 for shape in figure.layout.shapes] == [pytest.approx(limit / 1e6)]


def test_progress_never_falls() -> None:
    rows = figures.progress(SUMMARY, TRIALS)
    assert [row[0] for row in rows] == [trial.number for trial in TRIALS]
    shares = [row[2] for row in rows]
    assert shares == sorted(shares)
    best = [row[1] for row in rows if row[1] is not None]
    assert best == sorted(best)


def test_the_policy_map_is_darker_where_more_is_cut() -> None:
    assert SUMMARY.best is not None
    heat = figures.policy_map(SUMMARY).data[0]
    rows = {name: (texts, values) for name, texts, values in zip(heat.y, heat.text, heat.z, strict=True)}
    assert rows["layer1.1.conv1"][0][0] == "8 of 16"
    assert rows["layer1.1.conv1"][1][0] == 0.5
    assert rows["layer3.1.conv1"][0][0] == "56 of 64"
    assert rows["layer3.1.conv1"][1][0] == 0.125
    assert len(rows) == len({target for target, _ in SUMMARY.best.policy})


def test_predictions_are_drawn_against_their_measurements() -> None:
    models = next(trace for trace in figures.predicted_vs_measured(SUMMARY).data if trace.name == "models")
    assert len(models.x) == 1 + len(SUMMARY.finalists)
    assert models.x[0] == pytest.approx(100.4)
    assert models.y[0] == pytest.approx(98.9)


def test_the_report_says_what_won_how_sure_and_how_to_take_it_home() -> None:
    best = SUMMARY.best
    assert best is not None
    page = _text(render(SUMMARY, TRIALS, Path("runs/digits-50ms")))
    assert words.verdict(SUMMARY) in page
    assert f"with 95 % confidence its median lies within {wording.interval(best.cost)}" in page
    assert "The measurements repeat to 1.2 %" in page
    assert "test, before recovery" in page
    assert "automc export --run digits-50ms --format onnx --out deploy" in page
    spaced = unescape(_text(render(dataclasses.replace(SUMMARY, name="ün é"), TRIALS, Path("my runs/ün é"))))
    assert "automc export --run 'ün é' --runs 'my runs' --knee --format onnx --out deploy" in spaced
    for layer, reason in SUMMARY.left_alone:
        assert layer in page
        assert reason in page


NOTE = "There is no test split: the reported score is on samples that guided the search."


@pytest.mark.parametrize("summary", [SUMMARY, MISSED])
def test_the_report_shows_what_limits_trust(summary: Summary) -> None:
    quiet = _text(render(summary, TRIALS, Path("runs/one")))
    told: dict[str, Any] = {"noisy": True, "notes": ("only 6 of 12 rounds",)}
    best = dataclasses.replace(summary.best, **told) if summary.best else None
    smallest = dataclasses.replace(summary.smallest, **told) if summary.smallest else None
    noisy = dataclasses.replace(summary, best=best, smallest=smallest, notes=(NOTE,))
    page = _text(render(noisy, TRIALS, Path("runs/one")))
    for sentence in (NOTE, "The machine was busy while this was measured", "Only 6 of 12 rounds."):
        assert sentence in page
        assert sentence not in quiet


def test_an_error_of_the_predictor_that_nobody_knows_is_told_and_not_drawn() -> None:
    summary = dataclasses.replace(SUMMARY, predictor=dataclasses.replace(SUMMARY.predictor, mape=None))
    assert "off by an unknown share" in _text(render(summary, TRIALS, Path("runs/one")))
    known, unknown = ({trace.name for trace in figures.predicted_vs_measured(s).data} for s in (SUMMARY, summary))
    assert {name.split(":")[0] for name in known - unknown} == {"held-out error"}


def test_the_report_has_a_table_for_every_figure() -> None:
    html = render(SUMMARY, TRIALS, Path("runs/one"))
    for section in html.split("<section>")[1:]:
        assert section.count('class="plot"') <= section.count("<table")
    assert html.count('class="plot"') == 4


def test_layers_have_figures_and_tables_where_the_run_recorded_them() -> None:
    assert SUMMARY.best is not None
    tables = make_tables([f.policy for f in SUMMARY.finalists])
    html = render(SUMMARY, TRIALS, Path("runs/one"), tables)
    for section in html.split("<section>")[1:]:
        assert section.count('class="plot"') <= section.count("<table")
    assert html.count('class="plot"') == 6
    page = _text(html)
    share = tables.shares(SUMMARY.best.policy)["fc"]
    assert f"{100 * share:.1f} %" in page
    assert "What each choice alone hurts" in page


def test_latency_by_layer_is_drawn_in_milliseconds() -> None:
    assert SUMMARY.best is not None
    tables = make_tables([SUMMARY.best.policy])
    dense, now = by_layer.latency(tables, SUMMARY.best.policy).data
    assert list(dense.x) == pytest.approx([1e3 * s for s in tables.layers_s[Policy().digest]])
    assert list(now.x) == pytest.approx([1e3 * s for s in tables.layers_s[SUMMARY.best.policy.digest]])
    assert by_layer.cost_rows(tables, Policy.of([("fc", Quantize(8, 8))])) == []


def test_energy_by_layer_is_drawn_where_it_is_known() -> None:
    assert SUMMARY.best is not None
    timed = make_tables([SUMMARY.best.policy])
    assert "Where the energy goes" not in render(SUMMARY, TRIALS, Path("runs/one"), timed)
    joules = {digest: tuple(2.0 * s for s in seconds) for digest, seconds in timed.layers_s.items()}
    tables = Tables.from_json(dataclasses.replace(timed, layers_j=joules).to_json())
    assert list(by_layer.energy(tables, SUMMARY.best.policy).data[1].x) == pytest.approx(
        [1e3 * j for j in joules[SUMMARY.best.policy.digest]]
    )
    assert "Where the energy goes" in render(SUMMARY, TRIALS, Path("runs/one"), tables)


@pytest.mark.parametrize(("low", "high", "decimals"), [(0.5, 1.0, 1), (0.98, 1.0, 1), (0.997, 1.0, 2), (1.0, 1.0, 1)])
def test_ticks_of_shares_differ(low: float, high: float, decimals: int) -> None:
    figure = figures.in_percent(go.Figure(go.Scatter(x=[0, 1], y=[low, high])), SUMMARY)
    assert figure.layout.yaxis.tickformat == f".{decimals}%"


def test_sensitivity_shows_every_known_loss() -> None:
    tables = make_tables()
    unknown = dataclasses.replace(tables, loss=((0.0, math.inf), *tables.loss[1:]))
    shown = sum(len(trace.x) for trace in by_layer.sensitivity(unknown).data)
    assert shown == sum(len(domain) - 1 for domain in tables.domains) - 1
    assert all(x > 0 for trace in by_layer.sensitivity(unknown).data for x in trace.x)  # the axis is logarithmic


def test_the_front_shows_how_sure_its_predictions_are() -> None:
    line = _named("front, as predicted")
    points = front([t for t in TRIALS if t.state == "complete"])
    spans = [1e3 * ((t.cost.latency_upper_s or 0) - (t.cost.latency_s or 0)) for t in points]
    assert list(line.error_x.array) == pytest.approx(spans)  # type: ignore[attr-defined]


def test_hovering_a_point_tells_its_policy_in_a_few_lines() -> None:
    texts = _named("tried").text  # type: ignore[attr-defined]
    scored = [t for t in TRIALS if t.state == "complete"]
    for text, trial in zip(texts, scored, strict=True):
        assert text.count("<br>") <= 20
        if not len(trial.policy):
            continue
        assert trial.policy.digest in text
        assert words.policy_lines(trial.policy, SUMMARY.widths)[0] in text


def test_runs_are_compared_in_one_figure() -> None:
    other = dataclasses.replace(SUMMARY, name="other", agent="tpe")
    records = [(SUMMARY, TRIALS), (other, TRIALS[:20])]
    names = [trace.name for trace in comparison.fronts(records).data]
    assert names == ["digits-50ms", "digits-50ms, winner", "other", "other, winner"]
    curves = {trace.name: trace for trace in comparison.agents(records).data}
    assert len(curves["other (tpe)"].x) == 20
    assert [row["agent"] for row in comparison.rows([SUMMARY, other])] == ["ilp", "tpe"]


def test_the_png_is_a_picture() -> None:
    for summary in (SUMMARY, MISSED):
        assert pareto_png(summary, TRIALS).startswith(b"\x89PNG")


def test_the_report_needs_no_network() -> None:
    html = render(SUMMARY, TRIALS, Path("runs/one"))
    assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"'](?!data:)", html)
    assert "plotly.js v" in html


def test_the_report_of_a_miss_says_what_to_relax() -> None:
    assert MISSED.smallest is not None
    page = _text(render(MISSED, TRIALS, Path("runs/one")))
    assert "Nothing that was measured holds 50.0 ms as measured." in page
    assert f"needs {wording.quantity('latency_s', MISSED.smallest.cost.latency_upper_s)}" in page
    assert "automc export" not in page


def test_names_cannot_break_the_page() -> None:
    nasty = '</script><script>alert("1")</script>'
    summary = dataclasses.replace(SUMMARY, model=nasty, score_name=nasty, left_alone=((nasty, nasty),))
    assert nasty not in render(summary, TRIALS, Path("runs/one"))


def test_a_search_that_found_nothing_has_a_report_and_figures() -> None:
    dense = Finalist(Policy(), Cost(latency_s=0.1), None, 0.9, None, False, "dense")
    bare = dataclasses.replace(SUMMARY, dense=dense, best=None, smallest=None, finalists=(), left_alone=(), trials=0)
    page = _text(render(bare, [], Path("runs/one")))
    assert "No compressed model was certified." in page
    assert "Every layer with weights could be compressed." in page
    assert pareto_svg(bare, []).startswith("<svg")


def test_other_scores_are_plain_numbers() -> None:
    summary = dataclasses.replace(SUMMARY, score_name="mAP")
    assert wording.score(summary.score_name, 0.41234) == "0.4123"
    assert figures.pareto(summary, TRIALS).layout.yaxis.tickformat is None


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        write_report(SUMMARY, TRIALS, tmp_path / "file" / "report.html")
    path = write_report(SUMMARY, TRIALS, tmp_path / "report.html")
    assert path.read_text().rstrip().endswith("</html>")


def test_the_registry_offers_them() -> None:
    plotly = registry.load("figures", "plotly")
    assert plotly.pareto(SUMMARY, TRIALS).data
    assert plotly.write_report is write_report


def test_the_picture_is_well_formed_and_shows_every_scored_trial() -> None:
    root = ET.fromstring(pareto_svg(SUMMARY, TRIALS))
    circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 1 + sum(t.state == "complete" for t in TRIALS)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"winner", "budget 50.0 ms", "latency of one batch (ms)"} <= set(texts)


def test_finalists_among_the_trials_are_not_drawn_as_tried() -> None:
    trials = [*TRIALS, dataclasses.replace(TRIALS[0], number=99, stage="finalist")]
    assert len(_tried(trials)) == len(_tried(TRIALS))


def _tried(trials: list[Trial]) -> tuple[float, ...]:
    traces = figures.pareto(SUMMARY, trials).data
    return next(tuple(trace.x) for trace in traces if trace.name == "tried")
