"""The cost tables of a search, from its predictor and sensitivities.

Costs of single changes add up near their anchor alone. So besides the policies that a search found, the tables have rungs: what
the solver answers for limits from the dense model's cost down to the least, each around those before, priced as a whole and, where it
then misses its limit, asked for again by as much less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from automc.policy import Policy
from automc.predict.roofline import Floats
from automc.predict.simulated import Pricer
from automc.prepare import Prepared
from automc.solver import solve
from automc.space import Codes, SearchSpace
from automc.tables import Anchor, Ragged, Tables
from automc.units import METRICS

__all__ = ["tabulate"]

MOST_ANCHORS = 12
MOST_ENTRIES = 200_000
"""Numbers that the anchors of a run may take on disk: a model of many layers gets fewer anchors."""
MOST_RUNGS = 28
"""Of each metric that is limited or drawn; a little more than the points of a curve."""
_TRIES = 4
_NEAR = 0.005
"""How far a rung may be off its limit without being asked for again."""
_ROUNDS = 60
_SAVED = 1e-4
"""Share of the cost that a change has to save: prices are rounded."""
_RUNGS = ("latency_s", "size_bytes", "macs")
"""What rungs are cut for; energy goes with latency."""


def tabulate(prepared: Prepared, predictor: Pricer, policies: Iterable[Policy]) -> Tables:
    """The tables around the dense model and around `policies`, of which some are left out where there are many."""
    known = list({p.digest: p for p in (Policy(), *policies)}.values())
    space = prepared.space
    inside = [policy for policy in known if space.contains(policy)]
    affordable = max(2, MOST_ENTRIES // max(1, len(METRICS) * int(space.cardinalities.sum())))
    count = min(MOST_ANCHORS, affordable // 2)
    chosen = [inside[i] for i in np.unique(np.linspace(0, len(inside) - 1, count).astype(int))]
    tables = Tables(
        domains=space.domains,
        loss=tuple(tuple(float(value) for value in curve) for curve in prepared.sensitivity),
        anchors=tuple(_anchor(predictor, row, space.cardinalities) for row in space.encode(chosen)),
        layers=predictor.layers,
        layers_s=_by_digest(inside, predictor.layers_s(space.encode(inside))),
        layers_j=_by_digest(inside, predictor.layers_j(space.encode(inside))),
    )
    for metric in _RUNGS:
        tables = _with_rungs(tables, predictor, space, metric, min(MOST_RUNGS, affordable // (2 * len(_RUNGS))))
    return tables


def _with_rungs(tables: Tables, predictor: Pricer, space: SearchSpace, metric: str, count: int) -> Tables:
    """The tables with up to `count` more anchors, at limits of one metric that fall evenly from the dense model's cost to the least."""
    least = _least(tables.anchors[0], predictor, space, metric)
    top, bottom = tables.anchors[0].cost.get(metric) or 0.0, least.cost.get(metric) or 0.0
    if not 0.0 < bottom < top:
        return tables
    known = {anchor.codes for anchor in tables.anchors}
    for limit in np.geomspace(top, bottom, count + 1)[1:-1].tolist():
        rung = _rung(tables, predictor, space, metric, limit)
        if rung is not None and rung.codes not in known:
            known.add(rung.codes)
            tables = replace(tables, anchors=(*tables.anchors, rung))
    return tables if least.codes in known else replace(tables, anchors=(*tables.anchors, least))


def _rung(tables: Tables, predictor: Pricer, space: SearchSpace, metric: str, limit: float) -> Anchor | None:
    """The anchor that comes nearest to a limit, none above it where one is below; None where the solver has no answer."""
    best: Anchor | None = None
    aim = limit
    for _ in range(_TRIES):
        answer = solve(tables, {metric: aim})
        if answer is None:
            break
        anchor = _anchor(predictor, space.encode([answer.policy])[0], space.cardinalities)
        cost = anchor.cost.get(metric) or 0.0
        if best is None or _miss(anchor, metric, limit) < _miss(best, metric, limit):
            best = anchor
        if abs(cost / limit - 1.0) <= _NEAR:
            break
        aim *= limit / cost
        tables = replace(tables, anchors=(*tables.anchors, anchor))
    return best


def _miss(anchor: Anchor, metric: str, limit: float) -> tuple[bool, float]:
    cost = anchor.cost.get(metric) or 0.0
    return cost > (1.0 + _NEAR) * limit, abs(cost / limit - 1.0)


def _least(dense: Anchor, predictor: Pricer, space: SearchSpace, metric: str) -> Anchor:
    """The anchor of least cost: each domain's cheapest choice at once, then single changes for as long as they save anything."""
    cheapest = np.array([int(np.argmin(row)) for row in dense.changed[metric]], dtype=np.int64)
    anchor = min(
        (dense, _anchor(predictor, cheapest, space.cardinalities)), key=lambda one: one.cost.get(metric) or np.inf
    )
    for _ in range(_ROUNDS):
        changed = anchor.changed[metric]
        domain = int(np.argmin([min(row) for row in changed])) if changed else 0
        if not changed or min(changed[domain]) >= (1.0 - _SAVED) * (anchor.cost.get(metric) or 0.0):
            break
        codes = np.array(anchor.codes, dtype=np.int64)
        codes[domain] = int(np.argmin(changed[domain]))
        anchor = _anchor(predictor, codes, space.cardinalities)
    return anchor


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
        for metric in METRICS
        if metric != "energy_j" or costs.energy_j is not None
    }
    return Anchor(tuple(codes.tolist()), costs[0], changed)


def _by_digest(policies: Sequence[Policy], values: Floats | None) -> dict[str, tuple[float, ...]]:
    """Policy digest -> its row; empty where there are no values."""
    return {} if values is None else {p.digest: _rounded(row) for p, row in zip(policies, values, strict=True)}


def _rounded(values: Sequence[float] | Floats) -> tuple[float, ...]:
    """Six significant digits: a tenth of the file, and far below what predictions are good for."""
    return tuple(float(f"{value:.6g}") for value in values)
