"""Plotly figures of a search, in the Okabe-Ito palette, whose colours stay apart for colour-blind readers too.

Okabe and Ito 2008, "Color Universal Design". Shapes repeat what the colours say, so that the figures survive grey print.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from automc import wording
from automc.budget import Budget, Limit
from automc.pareto import dominated_share, front
from automc.policy import LowRank, Policy, Prune, Quantize, Sparsify
from automc.result import Finalist, Summary
from automc.trial import Cost, Trial
from automc.units import METRIC_TITLES, METRICS, format_quantity, format_value

from . import words

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "ORANGE",
    "SKY",
    "VERMILLION",
    "Axis",
    "hypervolume",
    "in_percent",
    "layout",
    "pareto",
    "policy_map",
    "predicted_vs_measured",
    "progress",
    "score_range",
]

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
_BASES = {"latency_s": "s", "energy_j": "J", "size_bytes": "B", "macs": "MACs"}
_POWERS = {"p": 1e12, "n": 1e9, "µ": 1e6, "m": 1e3, "": 1.0, "k": 1e-3, "M": 1e-6, "G": 1e-9}
_HOVER_LINES = 10
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def pareto(summary: Summary, trials: Sequence[Trial]) -> go.Figure:
    """Score against the first budgeted metric: what was tried, the front, the certified finalists, dense, and the budget."""
    axis = Axis.of(summary)
    tried = [t for t in trials if t.state == "complete" and t.stage == "search" and t.cost.get(axis.metric) is not None]
    figure = go.Figure(layout=layout())
    figure.add_traces(
        [_cloud(axis, summary, tried), _front_line(axis, tried, summary.priced), *_recoveries(axis, summary)]
    )
    figure.add_traces([_models(axis, summary, *group) for group in _groups(axis, summary)])
    limit = summary.limits.get(axis.metric)
    if limit is not None:
        figure.add_vline(
            axis.scale * limit,
            line={"color": VERMILLION, "dash": "dash", "width": 1.5},
            annotation={
                "text": f"budget {format_quantity(axis.metric, limit)}",
                "font": {"color": VERMILLION},
                "bgcolor": "rgba(255,255,255,0.85)",
                "xshift": 4,
            },
            annotation_position="bottom right",
        )
    figure.update_xaxes(title_text=axis.title, rangemode="tozero")
    figure.update_yaxes(title_text=f"{summary.score_name} (validation)", range=score_range(summary, tried))
    return in_percent(figure, summary)


def progress(summary: Summary, trials: Sequence[Trial]) -> list[tuple[int, float | None, float]]:
    """(trial, best score within the budget, dominated share) after each trial, in the order in which they ended."""
    metric = Axis.of(summary).metric
    budget = Budget(tuple(Limit(name, value) for name, value in summary.limits.items()))
    dense = (summary.dense.cost.get(metric) or 1.0, summary.dense.validation)
    points: list[Trial] = []
    best: float | None = None
    rows = []
    for trial in trials:
        points = front([*points, trial], (metric,))
        if trial.score is not None and (not budget.limits or budget.holds(trial.cost)):
            best = trial.score if best is None else max(best, trial.score)
        rows.append((trial.number, best, dominated_share(points, metric, dense)))
    return rows


def hypervolume(summary: Summary, trials: Sequence[Trial]) -> go.Figure:
    """The search over its trials: best score within the budget, and the share of the plane that the front dominates."""
    rows = progress(summary, trials)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    for row, name, color in ((1, "best score within the budget", BLUE), (2, "share dominated by the front", GREEN)):
        line = {"color": color, "shape": "hv", "width": 2.5}
        figure.add_scatter(
            x=[r[0] for r in rows], y=[r[row] for r in rows], name=name, line=line, mode="lines", row=row, col=1
        )
    figure.update_layout(layout())
    figure.update_xaxes(title_text="trial", row=2, col=1)
    figure.update_yaxes(title_text="share", row=2, col=1)
    figure.update_yaxes(title_text=summary.score_name, row=1, col=1)
    return in_percent(figure, summary)


def policy_map(summary: Summary) -> go.Figure:
    """One row per layer or channel group that the winner changes, one column per knob; the darker, the more compressed."""
    chosen = summary.best or summary.smallest
    policy = chosen.policy if chosen else Policy()
    rows = words.knob_rows(policy, summary.widths)
    figure = go.Figure(layout=layout())
    figure.add_heatmap(
        x=["channels kept", "rank", "bits"],
        y=[row[0] for row in rows],
        z=[_strengths(policy, row[0], summary) for row in rows],
        text=[row[1:] for row in rows],
        texttemplate="%{text}",
        hovertemplate="%{y}<br>%{x}: %{text}<extra></extra>",
        colorscale=[[0.0, "#FFFFFF"], [1.0, SKY]],
        zmin=0.0,
        zmax=1.0,
        showscale=False,
        xgap=2,
        ygap=2,
    )
    figure.update_xaxes(side="top", fixedrange=True, showgrid=False)
    figure.update_yaxes(autorange="reversed", fixedrange=True, showgrid=False, automargin=True)
    return figure.update_layout(height=90 + 24 * max(len(rows), 1), hovermode="closest")


def predicted_vs_measured(summary: Summary) -> go.Figure:
    """Predicted against measured latency of every measured model, on the band that the held-out error of the predictor spans, if known."""
    models = [f for f in (summary.dense, *summary.finalists) if f.predicted_latency_s and f.cost.latency_s]
    measured = [f.cost.latency_s or 0.0 for f in models]
    factor, unit = _scale("latency_s", max(measured, default=1.0))
    ends = [0.9 * factor * min(measured, default=0.0), 1.1 * factor * max(measured, default=1.0)]
    figure = go.Figure(layout=layout())
    for share, name, color in (
        (summary.predictor.mape, "held-out error", "rgba(86,180,233,0.25)"),
        (summary.predictor.noise_floor, "noise floor", "rgba(0,0,0,0.18)"),
    ):
        if share is None:
            continue
        figure.add_scatter(
            x=[*ends, *reversed(ends)],
            y=[(1 - share) * ends[0], (1 - share) * ends[1], (1 + share) * ends[1], (1 + share) * ends[0]],
            fill="toself", fillcolor=color, line={"width": 0}, mode="lines",
            name=f"{name}: ±{100 * share:.1f} %", hoverinfo="skip",
        )  # fmt: skip
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": BLACK, "width": 1}, name="exact", hoverinfo="skip")
    figure.add_scatter(
        x=[factor * value for value in measured],
        y=[factor * (f.predicted_latency_s or 0.0) for f in models],
        mode="markers",
        marker={"color": BLUE, "size": 10, "symbol": ["square" if f.stage == "dense" else "diamond" for f in models]},
        error_x=_error_bars(models, factor),
        text=[_hover(summary, f.stage, f.policy, f.cost, f.validation) for f in models],
        hovertemplate="%{text}<extra></extra>",
        name="models",
    )
    figure.update_xaxes(title_text=f"measured ({unit})", range=ends)
    return figure.update_yaxes(title_text=f"predicted ({unit})")


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of the front: which metric, and the factor and unit that suit the dense model's value."""

    metric: str
    scale: float
    unit: str

    @classmethod
    def of(cls, summary: Summary) -> Axis:
        """The axis of the first budgeted metric, or of latency."""
        metric = next(iter(summary.limits), "latency_s")
        return cls(metric, *_scale(metric, summary.dense.cost.get(metric) or 1.0))

    @property
    def title(self) -> str:
        """What stands under the axis."""
        of = "" if self.metric == "size_bytes" else " of one batch"
        return f"{METRIC_TITLES[self.metric]}{of} ({self.unit})"

    def __call__(self, cost: Cost) -> float:
        """A cost in the axis's unit."""
        return self.scale * (cost.get(self.metric) or 0.0)


def _scale(metric: str, value: float) -> tuple[float, str]:
    """The factor from SI units to the unit in which `value` reads best, and that unit."""
    unit = format_value(metric, value)[1]
    return _POWERS[unit.removesuffix(_BASES[metric])], unit


def _cloud(axis: Axis, summary: Summary, tried: Sequence[Trial]) -> go.Scatter:
    return go.Scatter(
        x=[axis(t.cost) for t in tried],
        y=[t.score for t in tried],
        mode="markers",
        marker={"color": SKY, "size": 6, "opacity": 0.65},
        text=[_hover(summary, f"trial {t.number}", t.policy, t.cost, t.score) for t in tried],
        hovertemplate="%{text}<extra></extra>",
        name="tried",
    )


def _front_line(axis: Axis, tried: Sequence[Trial], known: str) -> go.Scatter:
    points = front(tried, (axis.metric,))
    return go.Scatter(
        x=[axis(t.cost) for t in points],
        y=[t.score for t in points],
        mode="lines",
        line={"color": BLUE, "width": 2, "shape": "hv"},
        error_x=_error_bars(points, axis.scale, "rgba(0,114,178,0.45)") if axis.metric == "latency_s" else None,
        hoverinfo="skip",
        name=f"front, as {known}",
    )


def _recoveries(axis: Axis, summary: Summary) -> Iterator[go.Scatter]:
    """A dotted line from each recovered finalist's score before recovery up to the one after."""
    recovered = [(f, f.before_recovery[0]) for f in summary.finalists if f.before_recovery is not None]
    for index, (finalist, before) in enumerate(recovered):
        yield go.Scatter(
            x=[axis(finalist.cost)] * 2,
            y=[before, finalist.validation],
            mode="lines",
            line={"color": GREEN, "dash": "dot", "width": 2},
            hoverinfo="skip",
            name="regained by recovery",
            showlegend=index == 0,
        )


def _groups(axis: Axis, summary: Summary) -> Iterator[tuple[str, list[Finalist], dict[str, Any]]]:
    """(name, models, marker) of the certified models that are drawn alike."""
    yield "dense", [summary.dense], {"color": BLACK, "symbol": "square", "size": 11}
    others = [f for f in summary.finalists if f != summary.best]
    for stage, color, symbol in (("finalist", ORANGE, "diamond"), ("recovered", GREEN, "triangle-up")):
        for holds, suffix, name in ((True, "", stage), (False, "-open", f"{stage}, over budget")):
            members = [f for f in others if f.stage == stage and f.holds == holds]
            if members:
                yield (
                    f"{name}, {summary.dense.source(axis.metric)}",
                    members,
                    {"color": color, "symbol": symbol + suffix, "size": 11},
                )
    if summary.best is not None:
        yield "winner", [summary.best], {"color": VERMILLION, "symbol": "star", "size": 18}


def _models(axis: Axis, summary: Summary, name: str, models: Sequence[Finalist], marker: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=[axis(f.cost) for f in models],
        y=[f.validation for f in models],
        mode="markers",
        marker={**marker, "line": {"width": 1.5, "color": marker["color"]}},
        error_x=_error_bars(models, axis.scale) if axis.metric == "latency_s" else None,
        text=[_hover(summary, name, f.policy, f.cost, f.validation) for f in models],
        hovertemplate="%{text}<extra></extra>",
        name=name,
    )


def _error_bars(models: Sequence[Finalist | Trial], factor: float, color: str | None = None) -> dict[str, Any]:
    """The 95 % intervals of latencies: of the median where measured, of the prediction where predicted."""
    spans = [(f.cost.latency_s or 0.0, f.cost.latency_interval_s) for f in models]
    return {
        "type": "data",
        "symmetric": False,
        "array": [factor * (ends[1] - value) if ends else 0.0 for value, ends in spans],
        "arrayminus": [factor * (value - ends[0]) if ends else 0.0 for value, ends in spans],
        "thickness": 1.5,
        "color": color,
    }


def _hover(summary: Summary, title: str, policy: Policy, cost: Cost, score: float | None) -> str:
    lines = [f"<b>{title}</b>", f"{summary.score_name} {wording.score(summary.score_name, score)}"]
    for metric in METRICS:
        if (value := cost.get(metric)) is not None:
            source = cost.source.get(metric, "")
            lines.append(f"{METRIC_TITLES[metric]} {format_quantity(metric, value)} {source}".rstrip())
    if not len(policy):
        return "<br>".join([*lines, "nothing compressed"])
    changes = words.policy_lines(policy, summary.widths)
    shown = [escape(line) for line in changes[:_HOVER_LINES]]
    more = [f"and {len(changes) - len(shown)} more"] if len(changes) > len(shown) else []
    return "<br>".join([*lines, f"policy {policy.digest}", *(f"  {line}" for line in (*shown, *more))])


def _strengths(policy: Policy, target: str, summary: Summary) -> list[float | None]:
    """How strongly each knob compresses a target, 0 to 1, in the order of `words.knob_rows`; None where it is dense."""
    prune, rank, bits = policy.get(target, Prune), policy.get(target, LowRank), policy.get(target, Quantize)
    width = summary.widths.get(target)
    kept = None if prune is None else 0.5 if not width else 1.0 - prune.keep / width
    zeros = policy.get(target, Sparsify)
    stored = (zeros.density if zeros else 1.0) * (bits.weight_bits / 16 if bits else 1.0)
    return [kept, None if rank is None else 0.5, None if bits is None and zeros is None else 1.0 - stored]


def score_range(summary: Summary, tried: Sequence[Trial]) -> tuple[float, float]:
    """From the lower quartile of what was tried to a little above the best: the rest is a double click away."""
    scores = sorted(t.score for t in tried if t.score is not None)
    shown = [f.validation for f in (summary.dense, *summary.finalists)]
    shown += [f.before_recovery[0] for f in summary.finalists if f.before_recovery]
    low = min([*shown, *scores[len(scores) // 4 : len(scores) // 4 + 1]])
    high = max([*shown, *scores[-1:]])
    margin = 0.08 * (high - low) or 0.01
    return low - margin, high + margin


def in_percent(figure: go.Figure, summary: Summary) -> go.Figure:
    """The figure with a vertical axis in percent where the score is a share."""
    if wording.is_share(summary.score_name):
        figure.layout.yaxis.tickformat = f".{_decimals(figure)}%"
    return figure


def _decimals(figure: go.Figure) -> int:
    """Digits that tell the ticks of a vertical axis of shares apart: Plotly sets at most about six."""
    axis = figure.layout.yaxis.range
    own = [t.y for t in figure.data if t.y is not None and t.yaxis in (None, "y")]
    shown = [value for value in (axis or [y for ys in own for y in ys]) if value is not None]
    step = (max(shown) - min(shown)) / 6 if shown else 0.0
    return min(3, max(1, math.ceil(-math.log10(step)) - 2)) if step > 0 else 1


def layout() -> go.Layout:
    """What all figures share."""
    return go.Layout(
        template="plotly_white",
        font={"family": _FONT, "size": 13, "color": "#222222"},
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        hoverlabel={"align": "left", "bgcolor": "#FFFFFF"},
        xaxis={"automargin": True},
        yaxis={"automargin": True},
        height=460,
    )
