"""Figures by layer: where time and energy go, dense against compressed, and how much each choice alone hurts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from automc.policy import Policy
from automc.tables import Tables

from . import figures

__all__ = ["cost_rows", "energy", "latency", "sensitivity", "sensitivity_rows"]

_KNOBS = {"prune": "prune", "low_rank": "factorise", "sparsify": "thin out", "quantize": "quantise"}


def cost_rows(tables: Tables, policy: Policy, metric: str = "latency_s") -> list[tuple[str, float, float]]:
    """(layer, dense, now) in seconds or joules, in the order of the model; empty where the run did not record the policy."""
    known = tables.by_layer(metric)
    dense, now = known.get(Policy().digest), known.get(policy.digest)
    if dense is None or now is None:
        return []
    return list(zip(tables.layers, dense, now, strict=True))


def latency(tables: Tables, policy: Policy) -> go.Figure:
    """Predicted milliseconds of each layer's kernels, dense and compressed, the first layer on top."""
    return _bars(cost_rows(tables, policy), "predicted latency of the layer's kernels (ms)", "ms")


def energy(tables: Tables, policy: Policy) -> go.Figure:
    """Millijoules of each layer, dense and compressed, the first layer on top."""
    return _bars(cost_rows(tables, policy, "energy_j"), "energy of the layer (mJ)", "mJ")


def _bars(rows: Sequence[tuple[str, float, float]], title: str, unit: str) -> go.Figure:
    figure = go.Figure(layout=figures.layout())
    names = [name for name, _, _ in rows]
    dense, now = [1e3 * value for _, value, _ in rows], [1e3 * value for _, _, value in rows]
    for values, name, color in ((dense, "dense", figures.BLACK), (now, "compressed", figures.SKY)):
        figure.add_bar(
            y=names, x=values, orientation="h", name=name, marker={"color": color},
            hovertemplate=f"%{{y}}<br>%{{x:.3g}} {unit} {name}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text=title)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure.update_layout(height=120 + 26 * max(1, len(rows)), barmode="group", bargap=0.25)


def sensitivity_rows(tables: Tables) -> list[tuple[str, str, str, float]]:
    """(target, knob, choice, loss in nats) of every choice whose loss is known."""
    return [
        (domain.target, _KNOBS.get(domain.knob, domain.knob), label, loss)
        for domain, losses in zip(tables.domains, tables.loss, strict=True)
        for label, loss in zip(domain.labels[1:], losses[1:], strict=True)
        if math.isfinite(loss)
    ]


def sensitivity(tables: Tables) -> go.Figure:
    """Per layer and knob the loss of its mildest to its strongest choice; the further right, the more a choice alone hurts."""
    figure = go.Figure(layout=figures.layout())
    rows = sensitivity_rows(tables)
    looks = zip(_KNOBS.values(), (figures.BLUE, figures.ORANGE, figures.BLACK, figures.GREEN), _SYMBOLS, strict=True)
    for knob, color, symbol in looks:
        own = [row for row in rows if row[1] == knob]
        if own:
            figure.add_scatter(
                x=[max(row[3], _least(rows)) for row in own], y=[row[0] for row in own], mode="markers", name=knob,
                marker={"color": color, "symbol": symbol, "size": 9, "opacity": 0.8}, text=[row[2] for row in own],
                hovertemplate="%{y}<br>%{text}: %{x:.2g} nats<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title_text="loss of the choice alone (nats per sample)", type="log", exponentformat="power")
    figure.update_yaxes(autorange="reversed", automargin=True)
    targets = dict.fromkeys(row[0] for row in rows)
    return figure.update_layout(height=140 + 22 * max(1, len(targets)), hovermode="closest")


_SYMBOLS = ("circle", "diamond", "square", "triangle-up")


def _least(rows: Sequence[tuple[str, str, str, float]]) -> float:
    """What stands for no loss on a logarithmic axis: the smallest loss above 0."""
    return min((row[3] for row in rows if row[3] > 0), default=1e-6)
