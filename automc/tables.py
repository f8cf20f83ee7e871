"""What a search knew when it chose: how much each single choice hurts and costs, and where the time goes, layer by layer.

Enough to answer other budgets later without the model or the device: a multiple-choice knapsack around one of the anchors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from automc.policy import SCHEMA_VERSION, Policy, Spec
from automc.space import Codes, Domain, SearchSpace
from automc.trial import Cost

__all__ = ["Anchor", "Ragged", "Tables"]

Ragged = tuple[tuple[float, ...], ...]
"""One row per domain, one entry per choice."""


@dataclass(frozen=True)
class Anchor:
    """A policy with its predicted cost, and the predicted cost after changing one of its choices.

    Attributes:
        codes: (domains,) the choices of the policy.
        changed: metric -> cost of the policy with that choice in that domain and everything else as it is.
    """

    codes: tuple[int, ...]
    cost: Cost
    changed: Mapping[str, Ragged]

    def estimate(self, metric: str, codes: Codes) -> float:
        """The cost of (domains,) codes: the anchor's, and what each changed choice adds to it."""
        own = self.cost.get(metric) or 0.0
        return own + sum(row[code] - own for row, code in zip(self.changed[metric], codes.tolist(), strict=True))


@dataclass(frozen=True)
class Tables:
    """The cost tables of a search (`runs/<name>/tables.json`).

    Attributes:
        loss: what each choice alone loses, in nats of divergence from the dense model's outputs; infinite where unknown.
        layers: names, in the order of the model.
        layers_s: policy digest -> (layers,) predicted seconds of each layer's kernels, for dense, the front and the finalists.
        layers_j: the same in joules; empty where nothing is known of energy.
    """

    domains: tuple[Domain, ...]
    loss: Ragged
    anchors: tuple[Anchor, ...]
    layers: tuple[str, ...]
    layers_s: Mapping[str, tuple[float, ...]]
    layers_j: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def by_layer(self, metric: str) -> Mapping[str, tuple[float, ...]]:
        """Policy digest -> (layers,) predicted seconds or joules; empty for a metric that is not told by layer."""
        return {"latency_s": self.layers_s, "energy_j": self.layers_j}.get(metric, {})

    @cached_property
    def space(self) -> SearchSpace:
        """The choices that the tables know."""
        return SearchSpace(self.domains)

    def codes(self, policy: Policy) -> Codes:
        """(domains,) the codes of a policy; choices that the tables do not know count as dense."""
        return self.space.encode([self.space.restricted(policy)])[0]

    def policy(self, codes: Sequence[int]) -> Policy:
        """The policy of (domains,) codes."""
        chosen = ((d.target, d.choices[code]) for d, code in zip(self.domains, codes, strict=True))
        return Policy.of((target, spec) for target, spec in chosen if spec is not None)

    def estimate(self, codes: Codes) -> dict[str, float]:
        """Metric -> cost of (domains,) codes: that of the anchor with the fewest other choices, and what each change adds."""
        if not self.anchors:
            return {}
        anchor = min(self.anchors, key=lambda a: sum(x != y for x, y in zip(a.codes, codes.tolist(), strict=True)))
        return {metric: anchor.estimate(metric, codes) for metric in anchor.changed}

    def shares(self, policy: Policy) -> dict[str, float]:
        """Layer -> its share of the policy's predicted kernel time; empty where it was not recorded."""
        seconds = self.layers_s.get(policy.digest, ())
        total = sum(seconds)
        return {name: s / total for name, s in zip(self.layers, seconds, strict=True)} if total else {}

    def slowed(self, factor: float) -> Tables:
        """The tables of a machine that takes `factor` times as long for everything."""
        anchors = [
            replace(
                a, cost=a.cost.slowed(factor), changed={m: _slowed(m, rows, factor) for m, rows in a.changed.items()}
            )
            for a in self.anchors
        ]
        seconds, joules = (
            {digest: tuple(factor * value for value in row) for digest, row in rows.items()}
            for rows in (self.layers_s, self.layers_j)
        )
        return replace(self, anchors=tuple(anchors), layers_s=seconds, layers_j=joules)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "domains": [_domain_to_json(domain) for domain in self.domains],
            "loss": [[value if math.isfinite(value) else None for value in row] for row in self.loss],
            "anchors": [{"codes": a.codes, "cost": a.cost.to_json(), "changed": dict(a.changed)} for a in self.anchors],
            "layers": self.layers,
            "layers_s": dict(self.layers_s),
            "layers_j": dict(self.layers_j),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tables:
        """Read what `to_json` wrote."""
        return cls(
            domains=tuple(_domain_from_json(domain) for domain in data["domains"]),
            loss=tuple(tuple(math.inf if value is None else value for value in row) for row in data["loss"]),
            anchors=tuple(
                Anchor(tuple(a["codes"]), Cost.from_json(a["cost"]), {m: _ragged(v) for m, v in a["changed"].items()})
                for a in data["anchors"]
            ),
            layers=tuple(data["layers"]),
            layers_s={digest: tuple(seconds) for digest, seconds in data["layers_s"].items()},
            layers_j={digest: tuple(joules) for digest, joules in data.get("layers_j", {}).items()},
        )


def _slowed(metric: str, rows: Ragged, factor: float) -> Ragged:
    return tuple(tuple(factor * v for v in row) for row in rows) if metric in ("latency_s", "energy_j") else rows


def _ragged(rows: Sequence[Sequence[float]]) -> Ragged:
    return tuple(tuple(row) for row in rows)


def _domain_to_json(domain: Domain) -> dict[str, Any]:
    choices = [None if spec is None else spec.to_json() for spec in domain.choices]
    return {"target": domain.target, "knob": domain.knob, "choices": choices}


def _domain_from_json(data: Mapping[str, Any]) -> Domain:
    target, knob = data["target"], data["knob"]
    return Domain(target, knob, tuple(_spec(target, knob, fields) for fields in data["choices"]))


def _spec(target: str, knob: str, fields: Mapping[str, Any] | None) -> Spec | None:
    if fields is None:
        return None
    return Policy.from_json({"schema": SCHEMA_VERSION, "choices": {target: {knob: fields}}}).choices[0][1]
