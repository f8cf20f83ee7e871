"""The front as a PNG picture, for MLflow's run page and for slides. matplotlib comes with MLflow."""

from __future__ import annotations

import io
from collections.abc import Sequence

from automc.pareto import front
from automc.result import Summary
from automc.trial import Trial
from automc.units import format_quantity

from .figures import BLACK, BLUE, ORANGE, SKY, VERMILLION, Axis, score_range

__all__ = ["pareto_png"]


def pareto_png(summary: Summary, trials: Sequence[Trial]) -> bytes:
    """What `figures.pareto` shows, without hovering."""
    from matplotlib.figure import Figure

    axis = Axis.of(summary)
    tried = [t for t in trials if t.state == "complete" and t.stage == "search" and t.cost.get(axis.metric) is not None]
    points = front(tried, (axis.metric,))
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    plot = figure.subplots()
    plot.scatter(
        [axis(t.cost) for t in tried], [t.score or 0.0 for t in tried], s=14, color=SKY, alpha=0.7, label="tried"
    )
    plot.step([axis(t.cost) for t in points], [t.score or 0.0 for t in points], where="post", color=BLUE, label="front")
    for models, look in (
        ([summary.dense], {"color": BLACK, "marker": "s", "label": "dense"}),
        (summary.finalists, {"color": ORANGE, "marker": "D", "label": "measured"}),
        ([summary.best] if summary.best else [], {"color": VERMILLION, "marker": "*", "s": 220, "label": "winner"}),
    ):
        plot.scatter([axis(f.cost) for f in models], [f.validation for f in models], **look)
    limit = summary.limits.get(axis.metric)
    if limit is not None:
        label = f"budget {format_quantity(axis.metric, limit)}"
        plot.axvline(axis.scale * limit, color=VERMILLION, linestyle="--", linewidth=1.2, label=label)
    plot.set(xlabel=axis.title, ylabel=f"{summary.score_name} (validation)", ylim=score_range(summary, tried))
    plot.grid(alpha=0.25)
    plot.legend(frameon=False, ncols=3, loc="lower right")
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
