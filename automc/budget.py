"""Budget: limits on Cost. "50ms", "60%" of the dense latency, "4MB", "50%macs"; several hold together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from automc.errors import BudgetSyntaxError, InputError
from automc.trial import Cost
from automc.units import METRICS, format_quantity, parse_quantity

__all__ = ["Budget", "Limit"]

_PERCENT = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*%\s*(?:of\s+)?([a-z_]*)\s*", re.IGNORECASE)
_PERCENT_OF = {
    "": "latency_s", "latency": "latency_s", "ms": "latency_s",
    "energy": "energy_j", "size": "size_bytes", "macs": "macs",
}  # fmt: skip
_EXAMPLES = "Write a number and a unit: 50ms, 30mJ, 2MB, 20MMACs, or a share of the dense model: 60%, 50%size, 50%macs."


@dataclass(frozen=True)
class Limit:
    """`metric` must not exceed `value` (SI units), or `value` times the dense model's when `relative`."""

    metric: str
    value: float
    relative: bool = False

    def __str__(self) -> str:
        if self.relative:
            name = {v: k for k, v in _PERCENT_OF.items() if k != "ms"}[self.metric]
            return f"{100 * self.value:g}% of the dense {name}"
        return format_quantity(self.metric, self.value)


@dataclass(frozen=True)
class Budget:
    """Limits that must hold at the same time, at most one per metric."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, *texts: str) -> Budget:
        """Read one or several limits, such as `Budget.parse("60%", "4MB")`.

        Raises:
            BudgetSyntaxError: not a number with a known unit, one of several units, zero or below, not finite, or no text at all.
            InputError: two limits on the same metric.
        """
        limits = tuple(_parse_limit(text) for text in texts)
        if not limits:
            raise BudgetSyntaxError("No budget was given.", remedy=_EXAMPLES)
        metrics = [limit.metric for limit in limits]
        for metric in metrics:
            if metrics.count(metric) > 1:
                raise InputError(f"Two budgets limit {metric}.", remedy="Give one limit per metric.")
        return cls(limits)

    def __iter__(self) -> Iterator[Limit]:
        return iter(self.limits)

    def __str__(self) -> str:
        return " and ".join(str(limit) for limit in self.limits)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The limited metrics, in the order given."""
        return tuple(limit.metric for limit in self.limits)

    def limit(self, metric: str) -> Limit | None:
        """The limit on `metric`, or None."""
        return next((limit for limit in self.limits if limit.metric == metric), None)

    def resolve(self, dense: Cost) -> Budget:
        """The same budget in absolute values, shares taken of the dense model's cost.

        Raises:
            InputError: the device cannot tell a limited metric, so nothing can be promised about it.
        """
        return Budget(tuple(_resolve(limit, dense) for limit in self.limits))

    def holds(self, cost: Cost) -> bool:
        """Whether every limit holds; latency, and energy predicted by it, by the upper end of its interval. Unknown figures do not hold."""
        return self.violation(cost) <= 0.0

    def violation(self, cost: Cost) -> float:
        """How far outside: the largest of value / limit - 1 over the limits; 0 or below inside; infinite where unknown.

        Raises:
            ValueError: the budget has relative limits; `resolve` it first.
        """
        return max(_excess(limit, cost) for limit in self.limits)

    def binding(self, cost: Cost) -> Limit:
        """The limit that is nearest to being, or most, exceeded."""
        return max(self.limits, key=lambda limit: _excess(limit, cost))


def _parse_limit(text: str) -> Limit:
    percent = _PERCENT.fullmatch(text)
    if percent is not None:
        name = percent[2].lower()
        if name not in _PERCENT_OF:
            raise BudgetSyntaxError(f"{text!r} is a share of {name!r}, which is not a metric.", remedy=_EXAMPLES)
        return _positive(text, Limit(_PERCENT_OF[name], float(percent[1]) / 100, relative=True))
    try:
        metric, value = parse_quantity(text)
    except ValueError:
        raise BudgetSyntaxError(f"{text!r} is not a budget.", remedy=_EXAMPLES) from None
    number = text.strip().removesuffix("M")
    if number != text.strip():  # units are read in any case, and a capital M alone is seldom meant as minutes
        raise BudgetSyntaxError(
            f"{text!r} may be minutes, megabytes or millions of MACs.",
            remedy=f"Write {number}min, {number}MB or {number}MMACs.",
        )
    return _positive(text, Limit(metric, value))


def _positive(text: str, limit: Limit) -> Limit:
    if math.isinf(limit.value):
        raise BudgetSyntaxError(f"The budget {text!r} is not finite.", remedy=_EXAMPLES)
    if not limit.value > 0:
        raise BudgetSyntaxError(f"The budget {text!r} is not above zero.", remedy=_EXAMPLES)
    return limit


def _resolve(limit: Limit, dense: Cost) -> Limit:
    reference = dense.get(limit.metric)
    if reference is None:
        known = ", ".join(_known(dense))
        raise InputError(
            f"The budget limits {limit.metric}, which this device cannot measure or predict.",
            remedy=f"Use a budget on: {known}.",
        )
    return Limit(limit.metric, limit.value * reference) if limit.relative else limit


def _known(cost: Cost) -> Iterable[str]:
    return (metric for metric in METRICS if cost.get(metric) is not None)


def _excess(limit: Limit, cost: Cost) -> float:
    if limit.relative:
        raise ValueError("resolve the budget against the dense model's cost first")
    value = cost.upper(limit.metric)
    return math.inf if value is None else value / limit.value - 1.0
