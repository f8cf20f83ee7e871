"""Several runs in one figure: their fronts, or how fast their agents found them."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from automc import wording
from automc.pareto import front
from automc.result import Summary
from automc.trial import Trial

from . import figures

__all__ = ["agents", "fronts", "rows"]

Record = tuple[Summary, Sequence[Trial]]
_COLORS = (figures.BLUE, figures.VERMILLION, figures.GREEN, figures.ORANGE, figures.SKY, figures.BLACK)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def fronts(records: Sequence[Record]) -> go.Figure:
    """The front of each run, as priced, with its winner; against the first budgeted metric of the first run."""
    axis = figures.Axis.of(records[0][0])
    figure = go.Figure(layout=figures.layout())
    for index, (summary, trials) in enumerate(records):
        points = front([t for t in trials if t.stage == "search"], (axis.metric,))
        line = {"color": _COLORS[index % 6], "dash": _DASHES[index % 6], "shape": "hv"}
        figure.add_scatter(
            x=[axis(t.cost) for t in points], y=[t.score for t in points], mode="lines+markers", line=line, name=summary.name
        )  # fmt: skip
        if summary.best is not None:
            figure.add_scatter(
                x=[axis(summary.best.cost)], y=[summary.best.validation], mode="markers", name=f"{summary.name}, winner",
                marker={"color": _COLORS[index % 6], "symbol": "star", "size": 16},
            )  # fmt: skip
    figure.update_xaxes(title_text=axis.title)
    figure.update_yaxes(title_text=f"{records[0][0].score_name} (validation)")
    return figures.in_percent(figure, records[0][0])


def agents(records: Sequence[Record]) -> go.Figure:
    """The share of the plane that each run's front dominates, over its trials."""
    figure = go.Figure(layout=figures.layout())
    for index, (summary, trials) in enumerate(records):
        steps = figures.progress(summary, trials)
        line = {"color": _COLORS[index % 6], "dash": _DASHES[index % 6], "shape": "hv"}
        figure.add_scatter(
            x=[step[0] for step in steps], y=[step[2] for step in steps], mode="lines", line=line,
            name=f"{summary.name} ({summary.agent})",
        )  # fmt: skip
    figure.update_xaxes(title_text="trial")
    return figure.update_yaxes(title_text="share dominated by the front")


def rows(summaries: Sequence[Summary]) -> list[dict[str, str]]:
    """One row per run for a table: what won and what it costs."""
    return [_row(summary) for summary in summaries]


def _row(summary: Summary) -> dict[str, str]:
    chosen = summary.best or summary.smallest or summary.dense
    cost = chosen.cost
    return {
        "run": summary.name,
        "model": summary.model,
        "device": summary.device,
        "agent": summary.agent,
        "budget": " and ".join(summary.budget),
        "held": "yes" if summary.best else "no",
        "validation": wording.score(summary.score_name, chosen.validation),
        "test": wording.score(summary.score_name, chosen.test),
        "latency": wording.known(cost, "latency_s"),
        "95 % interval": wording.interval(cost),
        "size": wording.quantity("size_bytes", cost.size_bytes),
        "MACs": wording.quantity("macs", cost.macs),
    }
