"""Figures in words: numbers as a reader of the report sees them, and policies as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping

from automc.policy import LowRank, Policy, Prune, Quantize, Sparsify
from automc.result import Finalist, Summary
from automc.trial import Cost
from automc.units import format_limit, format_quantity, format_range

__all__ = [
    "METRIC_NAMES",
    "change",
    "interval",
    "is_share",
    "known",
    "knob_rows",
    "policy_lines",
    "score",
    "score_change",
    "told",
    "verdict",
]

METRIC_NAMES = {"latency_s": "latency", "energy_j": "energy", "size_bytes": "size", "macs": "MACs"}


def is_share(summary: Summary) -> bool:
    """Whether the score is a share of right answers, to be read in percent."""
    return summary.score_name == "accuracy"


def score(summary: Summary, value: float | None) -> str:
    """A score: accuracies in percent, anything else as a plain number, a dash where it is unknown."""
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if is_share(summary) else f"{value:.4g}"


def score_change(summary: Summary, before: float | None, after: float | None) -> str:
    """What a score gained or lost: points of a hundred for accuracies."""
    if before is None or after is None:
        return "–"
    return f"{100 * (after - before):+.2f} points" if is_share(summary) else f"{after - before:+.4g}"


def known(metric: str, value: float | None) -> str:
    """A cost with its unit, or a dash where it is unknown."""
    return "–" if value is None else format_quantity(metric, value)


def told(metric: str, cost: Cost) -> str:
    """A cost with its unit and how it is known: 43.1 ms measured."""
    return f"{known(metric, cost.get(metric))} {cost.source.get(metric, 'predicted')}"


def change(before: float | None, after: float | None) -> str:
    """By how much a cost changed: -53 %."""
    return f"{100 * (after / before - 1):+.0f} %" if before and after is not None else "–"


def interval(cost: Cost) -> str:
    """A latency's 95 % interval in the unit that suits the latency: 42.8 to 43.5 ms."""
    if cost.latency_s is None or cost.latency_interval_s is None or cost.source.get("latency_s") == "simulated":
        return "–"
    return format_range("latency_s", *cost.latency_interval_s, around=cost.latency_s)


def verdict(summary: Summary) -> str:
    """The outcome in a sentence or two."""
    limits = " and ".join(format_quantity(metric, value) for metric, value in summary.limits.items())
    best, dense = summary.best, summary.dense
    if best is None:
        nearest = summary.smallest or dense
        return f"Nothing that was {nearest.source()} holds {summary.promise(nearest) or limits}.{_nearest(summary)}"
    already = " The dense model held the budget already." if summary.dense_meets_budget else ""
    return f"The winner holds {summary.promise(best)}: {_gain(best, dense)}; {_price(summary, best)}.{already}"


def knob_rows(policy: Policy, widths: Mapping[str, int]) -> list[tuple[str, str, str, str]]:
    """One (target, channels, rank, zeros and bits) row per target that the policy changes; "" where a knob is left dense."""
    rows = []
    for target in dict.fromkeys(target for target, _ in policy):
        prune, rank, bits = policy.get(target, Prune), policy.get(target, LowRank), policy.get(target, Quantize)
        kept = "" if prune is None else f"{prune.keep} of {widths[target]}" if target in widths else prune.label
        weights = ", ".join(spec.label for spec in (policy.get(target, Sparsify), bits) if spec is not None)
        rows.append((target, kept, rank.label if rank else "", weights))
    return rows


def policy_lines(policy: Policy, widths: Mapping[str, int]) -> list[str]:
    """One line per target that the policy changes: "layer1.0.conv1: 8 of 16, svd 8, w8a8"."""
    return [f"{target}: {', '.join(filter(None, cells))}" for target, *cells in knob_rows(policy, widths)]


def _gain(best: Finalist, dense: Finalist) -> str:
    if best.cost.latency_s is None or dense.cost.latency_s is None:
        return "see the table"
    figures = f"{known('latency_s', best.cost.latency_s)} instead of {known('latency_s', dense.cost.latency_s)}"
    return f"{figures} ({dense.cost.latency_s / best.cost.latency_s:.2f} times as fast)"


def _price(summary: Summary, best: Finalist) -> str:
    split, before, after = "test", summary.dense.test, best.test
    if before is None or after is None:
        split, before, after = "validation", summary.dense.validation, best.validation
    return f"{split} {summary.score_name} {score(summary, after)} instead of {score(summary, before)}"


def _nearest(summary: Summary) -> str:
    if summary.smallest is None:
        return ""
    cost = summary.smallest.cost
    upper = {metric: cost.upper(metric) for metric in summary.limits}
    costs = " and ".join("–" if value is None else format_limit(metric, value) for metric, value in upper.items())
    return f" The nearest that was {summary.smallest.source()} needs {costs}: relax the budget to that, or widen the search space."
