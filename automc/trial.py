"""Cost and Trial: what a policy costs, what it scored, and how that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from automc.policy import Policy
from automc.units import METRICS

__all__ = ["Cost", "Source", "State", "Trial"]

Source = Literal["measured", "counted", "predicted", "simulated"]
State = Literal["complete", "failed"]


@dataclass(frozen=True)
class Cost:
    """What one inference of one batch costs, each figure with its source. None means unknown.

    `latency_interval_s` is the (low, high) end of the 95 % interval: of the median where measured, of the prediction
    where predicted.
    """

    latency_s: float | None = None
    energy_j: float | None = None
    size_bytes: float | None = None
    macs: float | None = None
    latency_interval_s: tuple[float, float] | None = None
    source: Mapping[str, Source] = field(default_factory=dict)

    def get(self, metric: str) -> float | None:
        """The value of one of METRICS.

        Raises:
            KeyError: `metric` is not one of METRICS.
        """
        if metric not in METRICS:
            raise KeyError(metric)
        value: float | None = getattr(self, metric)
        return value

    @property
    def latency_upper_s(self) -> float | None:
        """The upper end of the latency interval, or the latency itself where no interval is known."""
        return self.latency_interval_s[1] if self.latency_interval_s else self.latency_s

    def upper(self, metric: str) -> float | None:
        """What a limit on one of METRICS is held against: the upper end of the latency's interval, the value of others.

        A predicted energy is a power times the latency, so it has the upper end that the latency has.

        Raises:
            KeyError: `metric` is not one of METRICS.
        """
        value = self.get(metric)
        if metric == "latency_s":
            return self.latency_upper_s
        if metric == "energy_j" and value is not None and self.source.get(metric) == "predicted":
            return value * (self.latency_upper_s or 0.0) / self.latency_s if self.latency_s else value
        return value

    def with_measured_latency(self, median_s: float, interval_s: tuple[float, float]) -> Cost:
        """The same cost with its latency replaced by a measurement."""
        source: dict[str, Source] = {**self.source, "latency_s": "measured"}
        return replace(self, latency_s=median_s, latency_interval_s=interval_s, source=source)

    def slowed(self, factor: float) -> Cost:
        """The cost where everything takes `factor` times as long, and as much energy."""
        low, high = self.latency_interval_s or (0.0, 0.0)
        return replace(
            self,
            latency_s=None if self.latency_s is None else factor * self.latency_s,
            latency_interval_s=None if self.latency_interval_s is None else (factor * low, factor * high),
            energy_j=None if self.energy_j is None else factor * self.energy_j,
        )

    def with_energy(self, joules: float, source: Source) -> Cost:
        """The same cost with its energy, and how that is known."""
        return replace(self, energy_j=joules, source={**self.source, "energy_j": source})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; unknown figures are left out."""
        data: dict[str, Any] = {m: self.get(m) for m in METRICS if self.get(m) is not None}
        if self.latency_interval_s is not None:
            data["latency_interval_s"] = list(self.latency_interval_s)
        data["source"] = dict(self.source)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cost:
        """Read what `to_json` wrote."""
        interval = data.get("latency_interval_s")
        return cls(
            **{m: data[m] for m in METRICS if m in data},
            latency_interval_s=(interval[0], interval[1]) if interval else None,
            source=dict(data.get("source", {})),
        )


@dataclass(frozen=True)
class Trial:
    """One policy, what it costs and scored, and how it ended.

    `state` is `complete` (scored, inside the budget or not) or `failed` (raised or lost, with a reason). A score is higher-is-better and is None
    unless complete. `worth` is what a search goes by where the score alone tells little apart, see `automc.evaluate.worth`; None takes the score.
    """

    number: int
    policy: Policy
    cost: Cost
    score: float | None = None
    state: State = "complete"
    reason: str = ""
    seconds: float = 0.0
    ended: float | None = None
    """When its evaluation ended, in seconds since 1970; with `seconds` also when it began."""
    stage: Literal["search", "finalist", "recovered"] = "search"
    samples: int | None = None
    """How many samples the score was estimated from when the merit of trials that cost no more had beaten it; None where all were run."""
    worth: float | None = None
    before_recovery: tuple[float, float | None] | None = None
    """The (validation, test) score that the policy's model had before it was recovered; None of trials that were not."""

    def __post_init__(self) -> None:
        scored = self.score is not None and not math.isnan(self.score)
        if self.state == "complete" and not scored:
            raise ValueError(f"trial {self.number} is complete but its score is {self.score}")
        if self.state != "complete" and not self.reason:
            raise ValueError(f"trial {self.number} is {self.state} and says no reason")

    @property
    def merit(self) -> float:
        """What trials are ranked by, in the unit of the score: the worth, or else the score; -inf where there is none."""
        known = self.score if self.worth is None else self.worth
        return -math.inf if known is None else known

    def to_json(self) -> dict[str, Any]:
        """One line of trials.jsonl."""
        return {
            "number": self.number,
            "digest": self.policy.digest,
            "state": self.state,
            "score": self.score,
            "worth": self.worth,
            "cost": self.cost.to_json(),
            "reason": self.reason,
            "seconds": round(self.seconds, 4),
            "ended": None if self.ended is None else round(self.ended, 3),
            "stage": self.stage,
            "samples": self.samples,
            **({"before_recovery": list(self.before_recovery)} if self.before_recovery else {}),
            "policy": self.policy.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """Read what `to_json` wrote.

        Raises:
            InputError: a policy of another schema.
            KeyError: a field is missing.
        """
        before = data.get("before_recovery")
        return cls(
            number=data["number"],
            policy=Policy.from_json(data["policy"]),
            cost=Cost.from_json(data["cost"]),
            score=data["score"],
            worth=data.get("worth"),
            state=data["state"],
            reason=data["reason"],
            seconds=data["seconds"],
            ended=data.get("ended"),
            stage=data["stage"],
            samples=data.get("samples"),
            before_recovery=(before[0], before[1]) if before else None,
        )
