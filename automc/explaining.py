"""Why a policy is as it is: what each choice saves, what the next best would cost, which limit binds, and what to relax.

At the optimum of a knapsack every limit has a price, in loss per unit of cost (Everett 1963, "Generalized Lagrange multiplier
method"): the best exchange rate that is still to be had. By it the next best choice of each domain is the one that adds least
loss + price x cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automc.answering import Known, limits_of
from automc.budget import Budget
from automc.graph import module_of
from automc.policy import Policy
from automc.solver import smallest
from automc.tables import Anchor, Tables
from automc.trial import Cost

__all__ = ["Explained", "LimitState", "Reason", "explain_policy"]

Array = NDArray[np.float64]
_BINDS = 0.05
"""A limit binds where less than this share of it is left."""


@dataclass(frozen=True)
class Reason:
    """One choice of a policy. Costs and losses are differences, metric -> SI units; what is saved is above zero.

    Attributes:
        saves: against no compression there, with everything else as it is.
        loss: in nats, of this choice alone.
        next_choice: the next best choice there; None where there is no other.
        next_costs: what it would add to the costs, and `next_loss` to the loss.
    """

    target: str
    knob: str
    choice: str
    saves: Mapping[str, float]
    loss: float
    next_choice: str | None
    next_costs: Mapping[str, float]
    next_loss: float


@dataclass(frozen=True)
class LimitState:
    """A limit of the budget: what the policy takes of it, and how low it could go.

    Attributes:
        binds: it is the limit with least room, with less than a twentieth of it left.
        alone: the least that the tables know for this metric if nothing else were limited.
        together: what the metric takes in the policy that overruns all limits least.
    """

    metric: str
    limit: float
    value: float | None
    binds: bool
    alone: float | None
    together: float | None


@dataclass(frozen=True)
class Explained:
    """A policy explained.

    Attributes:
        exact: the tables were priced around this very policy; otherwise around the nearest one.
        reachable: the tables know a policy that should hold all limits.
        relax: metric -> the limit that is within reach, where nothing holds the budget as it is.
        left_alone_share: layer that no policy touches -> its share of the predicted time.
    """

    policy: Policy
    reasons: tuple[Reason, ...]
    limits: tuple[LimitState, ...]
    exact: bool
    reachable: bool
    relax: Mapping[str, float]
    left_alone_share: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "policy": self.policy.to_json(), "digest": self.policy.digest}


def explain_policy(known: Known, policy: Policy, budget: Budget, left_alone: Sequence[str] = ()) -> Explained:
    """Explain a policy against a resolved budget.

    Args:
        left_alone: the layers that are left alone, in all or in one knob.
    """
    tables = known.tables
    assert tables is not None
    touched = {domain.target for domain in tables.domains}
    untouched = [name for name in left_alone if name not in touched]
    codes = tables.codes(policy)
    anchor = min(tables.anchors, key=lambda a: int((np.array(a.codes) != codes).sum()))
    value = _costs(known, policy) or anchor.cost
    binding = budget.binding(value).metric
    price = {binding: _rate(tables, anchor, codes, binding)} if binding in anchor.changed else {}
    reasons = tuple(_reason(tables, anchor, codes, column, price) for column in range(len(codes)))
    exact = anchor.codes == tuple(codes.tolist())
    nearest, reachable = known.nearest(budget), known.solved(budget) is not None
    return Explained(
        policy=policy,
        reasons=reasons,
        limits=tuple(_states(known, budget, value, nearest.costs if nearest else {})),
        exact=exact,
        reachable=reachable,
        relax={} if reachable or nearest is None else _relaxed(budget, nearest.costs),
        left_alone_share=_shares(tables, policy, untouched),
    )


def _shares(tables: Tables, policy: Policy, names: Sequence[str]) -> dict[str, float]:
    """Of the named modules that were priced, the share of the policy's kernel time that all their calls take."""
    found: dict[str, float] = {}
    for layer, share in tables.shares(policy).items():
        if (name := module_of(layer)) in names:
            found[name] = found.get(name, 0.0) + share
    return found


def _costs(known: Known, policy: Policy) -> Cost | None:
    """The cost of a policy: as measured, else as it was predicted for a trial."""
    measured = [f.cost for f in known.finalists if f.policy == policy]
    tried = [t.cost for t in known.trials if t.policy == policy and t.stage == "search"]
    return next(iter([*measured, *tried]), None)


def _rate(tables: Tables, anchor: Anchor, codes: NDArray[np.int64], metric: str) -> float:
    """Loss that a unit of a metric is worth: the best rate at which spending more would still lower the loss."""
    best = 0.0
    for column, code in enumerate(codes.tolist()):
        for other, loss in enumerate(tables.loss[column]):
            cost = anchor.changed[metric][column][other] - anchor.changed[metric][column][code]
            gain = tables.loss[column][code] - loss
            if cost > 0 and gain > 0 and math.isfinite(gain):
                best = max(best, gain / cost)
    return best


def _reason(
    tables: Tables, anchor: Anchor, codes: NDArray[np.int64], column: int, price: Mapping[str, float]
) -> Reason:
    domain, code = tables.domains[column], int(codes[column])
    others = [c for c in range(len(domain)) if c != code and math.isfinite(tables.loss[column][c])]

    def dominated(choice: int) -> bool:
        return tables.loss[column][choice] >= tables.loss[column][code] and all(added(choice)[m] >= 0.0 for m in price)

    def added(choice: int) -> dict[str, float]:
        return {m: rows[column][choice] - rows[column][code] for m, rows in anchor.changed.items()}

    def worth(choice: int) -> float:
        extra = added(choice)
        return tables.loss[column][choice] + sum(price[metric] * extra[metric] for metric in price)

    following = min([c for c in others if not dominated(c)] or others, key=worth, default=None)
    return Reason(
        target=domain.target,
        knob=domain.knob,
        choice=domain.labels[code],
        saves=added(0),
        loss=tables.loss[column][code],
        next_choice=None if following is None else domain.labels[following],
        next_costs={} if following is None else added(following),
        next_loss=0.0 if following is None else tables.loss[column][following] - tables.loss[column][code],
    )


def _states(known: Known, budget: Budget, cost: Cost, together: Mapping[str, float]) -> list[LimitState]:
    tables = known.tables
    assert tables is not None
    binding = budget.binding(cost).metric
    states = []
    for limit in budget:
        value = cost.upper(limit.metric)
        tight = value is not None and value > (1.0 - _BINDS) * limit.value
        alone = smallest(tables, {limit.metric: 1e-9 * limit.value})
        least = _least(known, limit.metric, alone.costs[limit.metric] if alone else None)
        binds = limit.metric == binding and tight
        states.append(LimitState(limit.metric, limit.value, value, binds, least, together.get(limit.metric)))
    return states


def _least(known: Known, metric: str, estimated: float | None) -> float | None:
    """The least cost of what was measured, and of what the tables priced or estimate."""
    assert known.tables is not None
    costs = [*(anchor.cost for anchor in known.tables.anchors), *(finalist.cost for finalist in known.finalists)]
    priced = [value for cost in costs if (value := cost.get(metric)) is not None]
    return min([*priced, *([estimated] if estimated and estimated > 0.0 else [])], default=None)


def _relaxed(budget: Budget, nearest: Mapping[str, float]) -> dict[str, float]:
    """Metric -> the limit that would be within reach, for each limit that the nearest policy overruns."""
    return {m: nearest[m] for m, limit in limits_of(budget).items() if m in nearest and nearest[m] > limit}
