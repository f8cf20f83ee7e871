"""What the search's tables answer for any budget, at once: a multiple-choice knapsack around the nearest anchor.

Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers": for a multiplier m every domain takes the
choice of least loss + m x cost by itself; m is bisected until the costs fit, and what room is left goes to the choices that
lose less. Several limits share m by weights that move towards the limit with least room (Arora, Hazan and Kale 2012, "The
multiplicative weights update method"). The costs are those of changing one choice of the anchor, so an answer far from it is rougher.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automc.policy import Policy
from automc.space import summed
from automc.tables import Anchor, Ragged, Tables

__all__ = ["Answer", "smallest", "solve"]

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
_STEPS = 40
_SPAN = 40.0
"""The multiplier is sought within e^+-20 of the typical loss per cost."""
_ROUNDS = 12
_EAGER = 3.0
"""How fast weights move towards the limit with least room."""
_SLACK = 1e-9
_TRIED = 3
_REACH = float(np.log(1.15))
"""Anchors that are asked: the nearest, and a few more no farther than this from the limits: costs added up far away promise anything."""


@dataclass(frozen=True)
class Answer:
    """A policy that should hold the limits: `costs` (metric -> SI units) are estimates, `loss` the summed losses in nats.

    `moved` choices differ from the anchor around which it was sought.
    """

    policy: Policy
    costs: Mapping[str, float]
    loss: float
    moved: int

    def overrun(self, limits: Mapping[str, float]) -> float:
        """The largest cost over limit - 1; 0 or below inside."""
        return max(self.costs[metric] / limit - 1.0 for metric, limit in limits.items())


def solve(tables: Tables, limits: Mapping[str, float]) -> Answer | None:
    """The policy of least summed loss whose estimated costs hold all `limits`; None where nothing in the tables does.

    The best of what the nearest anchors answer, and of the anchors that hold the limits themselves.

    Args:
        limits: metric -> limit in SI units, at least one.
    """
    around = (_Around.of(tables, anchor, limits) for anchor in _nearest_first(tables, limits))
    answers = [one.answer(codes) for one in around if (codes := one.best()) is not None]
    found = [*_anchored(tables, limits), *(answer for answer in answers if answer.overrun(limits) <= _SLACK)]
    return min(found, key=lambda answer: answer.loss, default=None)


def smallest(tables: Tables, limits: Mapping[str, float]) -> Answer | None:
    """The policy whose estimated costs overrun `limits` least; None where the tables do not price one of the metrics."""
    around = [_Around.of(tables, anchor, limits) for anchor in _nearest_first(tables, limits)]
    found = [one.answer(codes) for one in around for codes in one.tightest()]
    return min(found, key=lambda answer: answer.overrun(limits), default=None)


def _priced(tables: Tables, limits: Mapping[str, float]) -> list[Anchor]:
    return [a for a in tables.anchors if all(metric in a.changed and a.cost.get(metric) for metric in limits)]


def _anchored(tables: Tables, limits: Mapping[str, float]) -> Iterator[Answer]:
    """The anchors that hold the limits, priced as a whole."""
    for anchor in _priced(tables, limits):
        loss = float(summed(tables.loss, anchor.codes))
        answer = Answer(tables.policy(anchor.codes), {m: anchor.cost.get(m) or 0.0 for m in anchor.changed}, loss, 0)
        if answer.overrun(limits) <= _SLACK and np.isfinite(loss):
            yield answer


def _nearest_first(tables: Tables, limits: Mapping[str, float]) -> list[Anchor]:
    known = sorted(_priced(tables, limits), key=lambda anchor: _distance(anchor, limits))[:_TRIED]
    return [anchor for i, anchor in enumerate(known) if i == 0 or _distance(anchor, limits) <= _REACH]


def _distance(anchor: Anchor, limits: Mapping[str, float]) -> float:
    return max(abs(float(np.log((anchor.cost.get(metric) or limit) / limit))) for metric, limit in limits.items())


@dataclass(frozen=True)
class _Around:
    """The linear programme around one anchor.

    Attributes:
        losses: (domains, most choices), infinite where there is no choice or its loss is unknown.
        usage: (limits, domains, most choices) what a choice adds to the anchor's costs, as a share of each limit.
        room: (limits,) what these may sum to.
    """

    tables: Tables
    anchor: Anchor
    losses: Array
    usage: Array
    room: Array

    @classmethod
    def of(cls, tables: Tables, anchor: Anchor, limits: Mapping[str, float]) -> _Around:
        own = {metric: anchor.cost.get(metric) or 0.0 for metric in limits}
        usage = np.stack(
            [(_padded(anchor.changed[m], np.inf) - own[m]) / limit for m, limit in limits.items()]
        )  # fmt: skip
        losses = np.where(np.isfinite(usage).all(axis=0), _padded(tables.loss, np.inf), np.inf)
        return cls(tables, anchor, losses, usage, np.array([1.0 - own[m] / limit for m, limit in limits.items()]))

    def best(self) -> Rows | None:
        """(domains,) codes of least loss among those found that hold every limit."""
        if (
            np.where(np.isfinite(self.losses), self.usage, np.inf).min(axis=2, initial=np.inf).sum(axis=1)
            > self.room + _SLACK
        ).any():
            return None
        found = [self._refined(codes) for codes in self._relaxed() if self._fits(codes)]
        return min(found, key=lambda codes: float(_sum(self.losses, codes)), default=None)

    def tightest(self) -> Iterator[Rows]:
        """(domains,) codes that use least of the limits, under several weights of these."""
        weights = np.ones(len(self.room))
        for _ in range(_ROUNDS if len(weights) > 1 else 1):
            codes = self._cheapest(np.inf, weights)
            yield codes
            weights = self._moved(weights, codes)

    def answer(self, codes: Rows) -> Answer:
        """What the codes stand for, priced in every metric of the anchor; where they are another anchor, by that."""
        same = (anchor for anchor in self.tables.anchors if anchor.codes == tuple(codes.tolist()))
        anchor = next(same, self.anchor)
        costs = {metric: anchor.estimate(metric, codes) for metric in self.anchor.changed}
        moved = int((codes != np.array(anchor.codes)).sum())
        return Answer(self.tables.policy(codes.tolist()), costs, float(_sum(self.losses, codes)), moved)

    def _relaxed(self) -> Iterable[Rows]:
        """(domains,) codes of the smallest multiplier that holds the limits, under several weights of these."""
        weights = np.ones(len(self.room))
        for _ in range(_ROUNDS if len(weights) > 1 else 1):
            codes = self._bisected(weights)
            yield codes
            weights = self._moved(weights, codes)

    def _bisected(self, weights: Array) -> Rows:
        known = np.isfinite(self.losses)
        if not known.any():
            return self._cheapest(np.inf, weights)
        combined = np.abs(np.tensordot(weights, np.where(known, self.usage, 0.0), 1)[known])
        typical = float(np.abs(self.losses[known]).mean()) / max(float(combined.mean()), 1e-30)
        middle = np.log(max(typical, 1e-30))
        low, high = middle - _SPAN / 2, middle + _SPAN / 2
        best = self._cheapest(np.inf, weights)
        for _ in range(_STEPS):
            half = (low + high) / 2
            codes = self._cheapest(float(np.exp(half)), weights)
            if self._fits(codes):
                best, high = codes, half
            else:
                low = half
        return best

    def _cheapest(self, multiplier: float, weights: Array) -> Rows:
        """(domains,) codes of least loss + multiplier x weighted usage; of least usage where the multiplier is infinite."""
        known = np.isfinite(self.losses)
        if not len(known):
            return np.zeros(0, dtype=np.int64)
        usage = np.tensordot(weights, np.where(known, self.usage, 0.0), 1)
        value = usage if multiplier == np.inf else np.where(known, self.losses, 0.0) + multiplier * usage
        codes: Rows = np.where(known, value, np.inf).argmin(axis=1)
        return codes

    def _moved(self, weights: Array, codes: Rows) -> Array:
        """Weights moved towards the limits that `codes` use most of."""
        excess = _sum(self.usage, codes) - self.room
        spread = max(float(np.ptp(excess)), 1e-12)
        moved = weights * np.exp(_EAGER * (excess - excess.max()) / max(spread, 0.1))
        return moved / moved.sum() * len(moved)

    def _fits(self, codes: Rows) -> bool:
        return bool((_sum(self.usage, codes) <= self.room + _SLACK).all())

    def _refined(self, codes: Rows) -> Rows:
        """Spend the room that the relaxation leaves: again and again the change that loses less by most and still fits."""
        codes, rows = codes.copy(), np.arange(len(codes))
        while True:
            gains = self.losses[rows, codes][:, None] - self.losses
            extra = self.usage - self.usage[:, rows, codes][:, :, None]
            after = _sum(self.usage, codes)[:, None, None] + extra
            fits = (gains > 0) & np.isfinite(gains) & (after <= self.room[:, None, None] + _SLACK).all(axis=0)
            if not fits.any():
                return codes
            domain, code = np.unravel_index(int(np.where(fits, gains, -np.inf).argmax()), gains.shape)
            codes[domain] = code


def _padded(rows: Ragged, fill: float) -> Array:
    """(domains, most choices)."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), fill)
    for padding, row in zip(padded, rows, strict=True):
        padding[: len(row)] = row
    return padded


def _sum(values: Array, codes: Rows) -> Array:
    """(...) sum over the domains of the entries of (..., domains, choices) `values` that `codes` choose."""
    summed: Array = values[..., np.arange(len(codes)), codes].sum(axis=-1)
    return summed
