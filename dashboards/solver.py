"""What the search's tables answer for any budget, at once: a multiple-choice knapsack around the nearest anchor.

Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers": for a multiplier m every domain takes the
choice of least loss + m x cost by itself; m is bisected until the costs fit, and what room is left goes to the choices that
lose less. The costs are those of changing one choice of the anchor, so an answer far from it is rougher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automc.policy import Policy
from automc.tables import Anchor, Ragged, Tables

__all__ = ["Answer", "solve"]

Array = NDArray[np.float64]
_STEPS = 40
_SPAN = 40.0
"""The multiplier is sought within e^+-20 of the typical loss per cost."""


@dataclass(frozen=True)
class Answer:
    """A policy that should hold the limit: `cost` is an estimate, `loss` the summed losses of its choices in nats.

    `moved` choices differ from the anchor around which it was sought.
    """

    policy: Policy
    cost: float
    loss: float
    moved: int


def solve(tables: Tables, metric: str, limit: float) -> Answer | None:
    """The policy of least summed loss whose estimated cost is at most `limit`; None where no choice of the tables gets there."""
    anchors = [a for a in tables.anchors if metric in a.changed and a.cost.get(metric)]
    nearest_first = sorted(anchors, key=lambda anchor: _distance(anchor, metric, limit))
    answers = (_around(tables, anchor, metric, limit) for anchor in nearest_first)
    return next((answer for answer in answers if answer is not None), None)


def _distance(anchor: Anchor, metric: str, limit: float) -> float:
    return float(abs(np.log((anchor.cost.get(metric) or limit) / limit)))


def _around(tables: Tables, anchor: Anchor, metric: str, limit: float) -> Answer | None:
    """The answer around one anchor."""
    own = anchor.cost.get(metric) or 0.0
    losses, costs = _padded(tables.loss, np.inf), _padded(anchor.changed[metric], np.inf) - own
    if own + costs.min(axis=1, initial=np.inf).sum() > limit:
        return None
    codes = _relaxed(losses, costs, limit - own)
    codes = _refined(losses, costs, limit - own, codes)
    rows = np.arange(len(codes))
    moved = int((codes != np.array(anchor.codes)).sum())
    policy = tables.policy(codes.tolist())
    return Answer(policy, own + float(costs[rows, codes].sum()), float(losses[rows, codes].sum()), moved)


def _padded(rows: Ragged, fill: float) -> Array:
    """(domains, most choices)."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), fill)
    for padding, row in zip(padded, rows, strict=True):
        padding[: len(row)] = row
    return padded


def _relaxed(losses: Array, costs: Array, room: float) -> NDArray[np.int64]:
    """(domains,) codes of the smallest multiplier whose summed cost is within `room`; the cheapest where none is."""
    known = np.isfinite(losses) & np.isfinite(costs)
    typical = np.abs(losses[known]).mean() / max(float(np.abs(costs[known]).mean()), 1e-30)
    middle = np.log(max(float(typical), 1e-30))
    low, high = middle - _SPAN / 2, middle + _SPAN / 2
    best = np.where(known, costs, np.inf).argmin(axis=1)
    for _ in range(_STEPS):
        half = (low + high) / 2
        codes = np.where(known, losses + np.exp(half) * np.where(known, costs, 0.0), np.inf).argmin(axis=1)
        if _sum(costs, codes) <= room:
            best, high = codes, half
        else:
            low = half
    return best


def _refined(losses: Array, costs: Array, room: float, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Spend the room that the relaxation leaves: again and again the change that loses less by most and still fits."""
    codes, rows = codes.copy(), np.arange(len(codes))
    while True:
        gains = losses[rows, codes][:, None] - losses
        extra = costs - costs[rows, codes][:, None]
        fits = (gains > 0) & np.isfinite(gains) & (_sum(costs, codes) + extra <= room)
        if not fits.any():
            return codes
        domain, code = np.unravel_index(int(np.where(fits, gains, -np.inf).argmax()), gains.shape)
        codes[domain] = code


def _sum(costs: Array, codes: NDArray[np.int64]) -> float:
    return float(costs[np.arange(len(costs)), codes].sum())
