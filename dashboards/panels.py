"""The panels of the live app: state, front, budget, policy, comparison, files. Each draws from what is on disk and keeps nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import streamlit as st

from automc.policy import Policy
from automc.result import Summary
from automc.tables import Tables
from automc.trial import Trial
from automc.units import METRIC_TITLES, format_quantity

from . import answers, by_layer, comparison, figures, words
from .provisional import Shown

__all__ = ["budget", "compare", "files", "front", "layers", "progress", "state"]

Wanted = Callable[[Trial], bool]
_POLICY_HEADS = ("layer or channel group", "channels", "rank", "bits")


def state(shown: Shown) -> None:
    """How the search ended, or how far it is."""
    progress, summary = shown.progress, shown.summary
    if shown.finished and summary is not None:
        (st.success if summary.best else st.warning)(words.verdict(summary))
    elif progress is not None and progress.running:
        share = min(1.0, progress.done / progress.total) if progress.total else 0.0
        left = f", about {progress.left_s:.0f} s left" if progress.left_s is not None else ""
        st.progress(share, text=f"Running: {progress.stage}{left}; {len(shown.trials)} trials. {progress.note}")
    else:
        st.warning(f"This search stopped after {len(shown.trials)} trials. `{shown.run.again}` goes on.")
    for warning in (progress.warnings if progress else ())[-2:]:
        st.caption(f"⚠ {warning}")


def front(shown: Shown, summary: Summary, wanted: Wanted) -> None:
    """The front, and the policy of the point that was clicked."""
    trials = [trial for trial in shown.trials if wanted(trial)]
    drawn = figures.pareto(summary, trials)
    event = st.plotly_chart(drawn, key=f"front {shown.run.name}", on_select="rerun", selection_mode="points")
    st.caption(f"{len(trials)} of {len(shown.trials)} trials. Hover a point for its policy, click it for the table.")
    picked = _picked(event, drawn)
    policy = next((p for p in _policies(shown, summary) if p.digest == picked), None)
    if policy is not None:
        _policy_table(policy, summary)


def budget(shown: Shown, summary: Summary) -> None:
    """A slider, and what answers it."""
    axis = figures.Axis.of(summary)
    costs = [cost for t in shown.trials if (cost := t.cost.get(axis.metric)) is not None]
    low, high = min(costs, default=0.0), summary.dense.cost.get(axis.metric) or 1.0
    low = min(low, 0.9 * high)
    start = min(max(summary.limits.get(axis.metric, high), low), high)
    ends = (axis.scale * low, axis.scale * high, axis.scale * start)
    label = f"Budget: {METRIC_TITLES[axis.metric]} ({axis.unit})"
    chosen = st.slider(label, ends[0], ends[1], ends[2], step=(ends[1] - ends[0]) / 200, format="%.3g", key="budget")
    limit = chosen / axis.scale
    found = answers.answers(shown, summary, axis.metric, limit)
    if not found:
        st.info(f"Nothing that is known holds {format_quantity(axis.metric, limit)}.")
    for column, answer in zip(st.columns(max(1, len(found))), found, strict=False):
        with column:
            _answer(shown, summary, answer)
    st.caption("Search for this budget, and measure what it finds:")
    st.code(answers.search_command(shown, axis.metric, limit), language="sh")


def layers(summary: Summary, tables: Tables | None) -> None:
    """The chosen policy as a heat map, the time of each layer, and how much each choice alone hurts."""
    left, right = st.columns(2)
    chosen = summary.best or summary.smallest
    with left:
        if chosen is not None:
            st.plotly_chart(figures.policy_map(summary), key="policy")
            _policy_table(chosen.policy, summary)
    with right:
        if tables is not None and chosen is not None and by_layer.cost_rows(tables, chosen.policy):
            st.plotly_chart(by_layer.latency(tables, chosen.policy), key="latency")
            if by_layer.cost_rows(tables, chosen.policy, "energy_j"):
                st.plotly_chart(by_layer.energy(tables, chosen.policy), key="energy")
    if tables is not None:
        with st.expander("How much each choice alone hurts"):
            st.plotly_chart(by_layer.sensitivity(tables), key="sensitivity")


def progress(summary: Summary, trials: Sequence[Trial]) -> None:
    """Predictions against measurements, and the search over its trials."""
    left, right = st.columns(2)
    with left:
        st.plotly_chart(figures.hypervolume(summary, trials), key="search")
    with right:
        if summary.measured and math.isfinite(summary.predictor.noise_floor):
            st.plotly_chart(figures.predicted_vs_measured(summary), key="predictions")


def compare(shown: Sequence[Shown]) -> None:
    """Several runs side by side."""
    records = [(one.summary, one.trials) for one in shown if one.summary is not None]
    st.dataframe(comparison.rows([summary for summary, _ in records]), hide_index=True)
    left, right = st.columns(2)
    with left:
        st.plotly_chart(comparison.fronts(records), key="fronts")
    with right:
        st.plotly_chart(comparison.agents(records), key="agents")


def files(shown: Shown) -> None:
    """The winner's files, and the command that repeats the search."""
    st.code(answers.repeat_command(shown), language="sh")
    names = {
        "model.onnx": "best/model.onnx",
        "policy.json": "best/policy.json",
        "certificate.json": "best/certificate.json",
    }
    kept = {name: path for name, path in names.items() if (shown.run.path / path).is_file()}
    for column, (name, path) in zip(st.columns(3), kept.items(), strict=False):
        data = (shown.run.path / path).read_bytes()
        column.download_button(f"Winner: {name}", data, f"{shown.run.name}-{name}", on_click="ignore")


def _answer(shown: Shown, summary: Summary, answer: answers.Answered) -> None:
    st.markdown(f"**{answer.how}**")
    st.markdown(f"{answer.cost}, {summary.score_name} {answer.score}")
    st.caption(f"policy {answer.policy.digest}: {answer.note}" if len(answer.policy) else "the dense model")
    stem = f"{shown.run.name}-{answer.policy.digest[:8]}"
    if len(answer.policy):
        text = json.dumps(answer.policy.to_json(), indent=1)
        st.download_button("Policy", text, f"{stem}.policy.json", key=f"policy of {answer.how}", on_click="ignore")
    if answer.finalist is not None and (path := shown.run.model_path(answer.finalist)).is_file():
        st.download_button("ONNX", path.read_bytes(), f"{stem}.onnx", key=f"model of {answer.how}", on_click="ignore")
    with st.expander("Policy, layer by layer"):
        _policy_table(answer.policy, summary)


def _policy_table(policy: Policy, summary: Summary) -> None:
    rows = [dict(zip(_POLICY_HEADS, row, strict=True)) for row in words.knob_rows(policy, summary.widths)]
    st.caption(f"Policy {policy.digest}; what is not listed stays as it was.")
    st.dataframe(rows, hide_index=True)


def _policies(shown: Shown, summary: Summary) -> list[Policy]:
    return [*(trial.policy for trial in shown.trials), *(f.policy for f in summary.finalists)]


def _picked(event: object, drawn: object) -> str | None:
    """The digest of the clicked point's policy, which its hover text holds; None where none is clicked."""
    points = event.get("selection", {}).get("points", []) if isinstance(event, dict) else []
    if not points:
        return None
    texts = drawn.data[points[0]["curve_number"]].text  # type: ignore[attr-defined]
    words_of = str(texts[points[0]["point_index"]]).replace("<br>", " ").split() if texts is not None else []
    return next((after for before, after in pairwise(words_of) if before == "policy"), None)
