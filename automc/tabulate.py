"""The cost tables of a search, from its predictor and sensitivities.

Costs of single changes add up near their anchor alone. So besides the policies that a search found, the tables have rungs: what
the solver answers for limits from the dense model's cost down to the least, each around the one before and priced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from automc.policy import Policy
from automc.predict.roofline import Floats
from automc.predict.simulated import Pricer
from automc.prepare import Prepared
from automc.solver import smallest, solve
from automc.space import Codes, SearchSpace
from automc.tables import Anchor, Ragged, Tables

__all__ = ["tabulate"]

MOST_ANCHORS = 12
MOST_ENTRIES = 200_000
"""Numbers that the anchors of a run may take on disk: a model of many layers gets fewer anchors."""
MOST_RUNGS = 20
_STEP = 0.8
"""The limit of a rung as a share of the one above."""
_METRICS = ("latency_s", "size_bytes", "macs", "energy_j")


def tabulate(prepared: Prepared, predictor: Pricer, policies: Iterable[Policy]) -> Tables:
    """The tables around the dense model and around `policies`, of which some are left out where there are many."""
    known = list({p.digest: p for p in (Policy(), *policies)}.values())
    space = prepared.space
    inside = [policy for policy in known if space.contains(policy)]
    affordable = max(2, MOST_ENTRIES // max(1, len(_METRICS) * int(space.cardinalities.sum())))
    count = min(MOST_ANCHORS, affordable // 2)
    chosen = [inside[i] for i in np.unique(np.linspace(0, len(inside) - 1, count).astype(int))]
    tables = Tables(
        domains=space.domains,
        loss=tuple(tuple(float(value) for value in curve) for curve in prepared.sensitivity),
        anchors=tuple(_anchor(predictor, row, space.cardinalities) for row in space.encode(chosen)),
        layers=tuple(layer.name for layer in prepared.traced.graph.layers),
        layers_s=_by_digest(inside, predictor.layers_s(space.encode(inside))),
        layers_j=_by_digest(inside, predictor.layers_j(space.encode(inside))),
    )
    for metric in ("latency_s", "size_bytes"):
        tables = _with_rungs(tables, predictor, space, metric, min(MOST_RUNGS, affordable // 4))
    return tables


def _with_rungs(tables: Tables, predictor: Pricer, space: SearchSpace, metric: str, count: int) -> Tables:
    """The tables with up to `count` more anchors, at falling limits of one metric; a limit that was missed is tried again."""
    limit = _STEP * (tables.anchors[0].cost.get(metric) or 0.0)
    known = {tables.policy(anchor.codes) for anchor in tables.anchors}
    for _ in range(count):
        answer = solve(tables, {metric: limit}) or smallest(tables, {metric: limit})
        if answer is None:
            break
        held = answer.policy in known
        if not held:
            known.add(answer.policy)
            anchor = _anchor(predictor, space.encode([answer.policy])[0], space.cardinalities)
            tables = replace(tables, anchors=(*tables.anchors, anchor))
            held = (anchor.cost.get(metric) or 0.0) <= limit
        elif answer.overrun({metric: limit}) > 0.0:  # the least there is
            break
        limit *= _STEP if held else 1.0
    return tables


def _anchor(predictor: Pricer, codes: Codes, cardinalities: Codes) -> Anchor:
    """Price every row that differs from (domains,) `codes` in one domain."""
    domain = np.repeat(np.arange(len(codes)), cardinalities)
    rows = np.tile(codes, (len(domain), 1))
    first = np.cumsum(cardinalities) - cardinalities
    rows[np.arange(len(domain)), domain] = np.arange(len(domain)) - first[domain]
    costs = predictor.predict(np.concatenate([codes[None], rows]))
    ends = np.cumsum(cardinalities)[:-1]
    changed: dict[str, Ragged] = {
        metric: tuple(_rounded(part) for part in np.split(costs.array(metric, upper=False)[1:], ends))
        for metric in _METRICS
        if metric != "energy_j" or costs.energy_j is not None
    }
    return Anchor(tuple(codes.tolist()), costs[0], changed)


def _by_digest(policies: Sequence[Policy], values: Floats | None) -> dict[str, tuple[float, ...]]:
    """Policy digest -> its row; empty where there are no values."""
    return {} if values is None else {p.digest: _rounded(row) for p, row in zip(policies, values, strict=True)}


def _rounded(values: Sequence[float] | Floats) -> tuple[float, ...]:
    """Six significant digits: a tenth of the file, and far below what predictions are good for."""
    return tuple(float(f"{value:.6g}") for value in values)
