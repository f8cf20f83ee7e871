"""The Pareto front: trials that no other trial beats in the score and every budgeted metric at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from automc.trial import Trial

__all__ = ["dominated_share", "front", "hypervolume", "knee", "non_dominated"]


def non_dominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(count,) mask of the rows of (count, objectives) `points`, all to be minimised, that no other row dominates.

    Of equal rows the first is kept.
    """
    keep = np.ones(len(points), dtype=bool)
    for i, point in enumerate(points):
        no_worse = (points <= point).all(axis=1)
        better = (points < point).any(axis=1)
        earlier_equal = (points == point).all(axis=1) & (np.arange(len(points)) < i)
        keep[i] = not ((no_worse & better) | earlier_equal).any()
    return keep


def front(trials: Iterable[Trial], metrics: Sequence[str] = ("latency_s",)) -> list[Trial]:
    """The complete trials that are not dominated in (score, *metrics), cheapest in the first metric first.

    Trials whose cost in one of `metrics` is unknown are left out, and those whose score is an estimate: others beat them.
    """
    scored = [t for t in trials if t.state == "complete" and t.samples is None]
    known = [t for t in scored if all(t.cost.get(m) is not None for m in metrics)]
    if not known:
        return []
    points = np.array([[-_score(t), *(_value(t, m) for m in metrics)] for t in known])
    kept = [t for t, keep in zip(known, non_dominated(points), strict=True) if keep]
    return sorted(kept, key=lambda t: _value(t, metrics[0]))


def hypervolume(trials: Iterable[Trial], metric: str, reference: tuple[float, float]) -> float:
    """Area that the front dominates between it and `reference` = (worst cost, worst score) (Zitzler and Thiele 1999)."""
    worst_cost, worst_score = reference
    area, best = 0.0, worst_score
    for trial in front(trials, (metric,)):
        cost, score = _value(trial, metric), _score(trial)
        if cost < worst_cost and score > best:
            area += (worst_cost - cost) * (score - best)
            best = score
    return area


def dominated_share(trials: Iterable[Trial], metric: str, dense: tuple[float, float]) -> float:
    """The hypervolume as a share of the box from (no cost, dense score) to (dense cost, worst score): 0 to about 1.

    `dense` is the dense model's (cost, score). The worst score is 0, or as far below a negative dense score as that is
    below 0.
    """
    cost, score = dense
    worst = 0.0 if score > 0 else 2.0 * score - 1e-9
    return hypervolume(trials, metric, (cost, worst)) / (cost * (score - worst))


def knee(trials: Sequence[Trial], *metrics: str) -> Trial:
    """The trial of a front farthest above the plane through its ends: where more cost stops buying score.

    Das 1999, "On characterizing the knee of the Pareto curve". Each of `metrics` (latency where none is given) and the score
    count from 0 to 1 over the front.

    Raises:
        ValueError: `trials` is empty.
    """
    chosen = metrics or ("latency_s",)
    ordered = front(trials, chosen)
    if not ordered:
        raise ValueError("an empty front has no knee")
    points = np.array([[_score(t), *(_value(t, metric) for metric in chosen)] for t in ordered])
    spans = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(spans > 0, spans, 1.0)
    return ordered[int(np.argmax(scaled[:, 0] - scaled[:, 1:].mean(axis=1)))]


def _score(trial: Trial) -> float:
    assert trial.score is not None
    return trial.score


def _value(trial: Trial, metric: str) -> float:
    value = trial.cost.get(metric)
    assert value is not None
    return value
