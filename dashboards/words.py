"""Searches in words: the outcome in a sentence, and policies as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping

from automc.policy import LowRank, Policy, Prune, Quantize, Sparsify
from automc.result import Finalist, Summary
from automc.units import format_limit, format_quantity
from automc.wording import NOTHING, quantity, score

__all__ = ["knob_rows", "policy_lines", "verdict"]


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
    figures = f"{quantity('latency_s', best.cost.latency_s)} instead of {quantity('latency_s', dense.cost.latency_s)}"
    return f"{figures} ({dense.cost.latency_s / best.cost.latency_s:.2f} times as fast)"


def _price(summary: Summary, best: Finalist) -> str:
    split, before, after = "test", summary.dense.test, best.test
    if before is None or after is None:
        split, before, after = "validation", summary.dense.validation, best.validation
    return f"{split} {summary.score_name} {score(summary.score_name, after)} instead of {score(summary.score_name, before)}"


def _nearest(summary: Summary) -> str:
    if summary.smallest is None:
        return ""
    cost = summary.smallest.cost
    upper = {metric: cost.upper(metric) for metric in summary.limits}
    costs = " and ".join(NOTHING if value is None else format_limit(metric, value) for metric, value in upper.items())
    return f" The nearest that was {summary.smallest.source()} needs {costs}: relax the budget to that, or widen the search space."
