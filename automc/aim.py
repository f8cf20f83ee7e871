"""Aiming at a budget with a predictor that errs: what the last finalists took, against what was expected of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from automc.budget import Budget
from automc.policy import Policy
from automc.predict.simulated import Pricer
from automc.protocols import Costs, Predictor
from automc.space import Codes, SearchSpace
from automc.trial import Cost
from automc.units import METRICS

__all__ = ["Aim", "Expected", "learn_aim"]


@dataclass(frozen=True)
class Aim:
    """How much more than predicted the finalists near the budget cost, per metric (1.1: a tenth more).

    What agents find at the edge of a budget is what the predictor prices too low, so they are told prices times `ratio`.
    """

    ratio: Mapping[str, float] = field(default_factory=dict)

    def cost(self, cost: Cost) -> Cost:
        """The expected cost, without an interval."""
        return replace(
            cost,
            latency_s=_times(cost.latency_s, self.ratio.get("latency_s", 1.0)),
            energy_j=_times(cost.energy_j, self.ratio.get("energy_j", 1.0)),
            size_bytes=_times(cost.size_bytes, self.ratio.get("size_bytes", 1.0)),
            macs=_times(cost.macs, self.ratio.get("macs", 1.0)),
            latency_interval_s=None,
        )

    def holds(self, budget: Budget, cost: Cost) -> bool:
        """Whether a predicted cost is expected to hold the budget; measuring will tell."""
        return budget.holds(self.cost(cost))


@dataclass(frozen=True)
class Expected:
    """A predictor as agents see it: expected costs with the interval closed.

    Aiming with the upper end of the interval would leave out the best policies by the width of the interval; since finalists are
    measured, the expectation is enough.
    """

    inner: Predictor
    aim: Aim

    def predict(self, codes: Codes) -> Costs:
        """The inner predictor's costs times the aim's ratios."""
        costs = self.inner.predict(codes)
        ratio = self.aim.ratio
        latency_s = ratio.get("latency_s", 1.0) * costs.latency_s
        return replace(
            costs,
            latency_s=latency_s,
            latency_low_s=latency_s,
            latency_high_s=latency_s,
            energy_j=None if costs.energy_j is None else ratio.get("energy_j", 1.0) * costs.energy_j,
            size_bytes=ratio.get("size_bytes", 1.0) * costs.size_bytes,
            macs=ratio.get("macs", 1.0) * costs.macs,
        )


def learn_aim(
    predictor: Pricer, space: SearchSpace, measured: Sequence[tuple[Policy, Cost]], latest: int
) -> tuple[Pricer, Aim]:
    """The predictor corrected by everything measured, and the aim by its misses on the `latest` policies.

    Each of these is predicted by the predictor corrected with all others: what it still misses there, it will miss on the
    next ones too. Where nothing can be measured and the cost is a prediction itself, nothing is corrected, and the aim makes up for the
    width of the interval, whose upper end has to hold the budget.
    """
    known = [(policy, cost.latency_s) for policy, cost in measured if not _is_priced(cost)]
    pairs = [(policy, latency_s) for policy, latency_s in known if latency_s is not None]
    ratios: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for policy, cost in measured[-latest:]:
        others = predictor.corrected([pair for pair in pairs if pair[0] != policy])
        expected = others.predict(space.encode([policy]))[0]
        for metric in METRICS:
            actual, guess = _to_hold(metric, cost), expected.get(metric)
            if actual and guess:
                ratios[metric].append(actual / guess)
    aim = Aim({metric: max(1.0, float(np.median(values))) for metric, values in ratios.items() if values})
    return predictor.corrected(pairs), aim


def _is_priced(cost: Cost) -> bool:
    return cost.source.get("latency_s") in ("predicted", "simulated")


def _to_hold(metric: str, cost: Cost) -> float | None:
    """What a budget is held against."""
    return cost.upper(metric) if _is_priced(cost) else cost.get(metric)


def _times(value: float | None, ratio: float) -> float | None:
    return None if value is None else value * ratio
