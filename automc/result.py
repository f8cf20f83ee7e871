"""What a search hands over: the certificate of its winner and the summary that the table, the report and MLflow show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from automc.budget import Budget
from automc.policy import Policy
from automc.trial import Cost, Source, Trial
from automc.units import format_limit, format_quantity

__all__ = [
    "Certificate",
    "Finalist",
    "PredictorReport",
    "Summary",
    "has_interval",
    "is_tolerable",
    "measured_under",
    "winner_of",
]

TOLERATED_LOSS = 0.005
"""Where the dense model already holds the budget, the winner is the fastest that loses no more than this share of its score."""


@dataclass(frozen=True)
class Certificate:
    """How a model's cost is known. Where it was measured: interleaved with the dense model, in the same rounds, on the device.

    Attributes:
        limits: the resolved budget, metric -> limit in SI units.
        latency_s: median over rounds of the round medians, of one batch; as priced where it was not measured, as all that follows.
        latency_interval_s: bootstrap 95 % interval of that median; the interval of the prediction.
        holds: every limit holds, latency by the upper end of its interval, and predicted energy by the energy of that.
        noise_floor: split-half repeatability of the rounds, or of those of the profile that prices the model, as a fraction.
        rounds_s: model name -> the median of each round; "dense" is the uncompressed model. Empty where nothing was measured.
        environment: processor, runtime and version, threads, operating system; how and when it was measured, or the profile was.
        export_error: relative root mean square error of the exported model's outputs against the PyTorch model's.
        source: how the latency is known: "measured", or "predicted" or "simulated" where the device is not at hand.
        energy_j: of one batch, None where the device tells none.
        energy_source: how the energy is known, None where there is none.
        dense_energy_j: of the dense model, beside the same rounds.
        watts: the power above idle that was stated, by which energy is predicted; None where it is known in another way.
    """

    limits: Mapping[str, float]
    batch_size: int
    latency_s: float
    latency_interval_s: tuple[float, float]
    dense_latency_s: float
    dense_latency_interval_s: tuple[float, float]
    size_bytes: int
    holds: bool
    noise_floor: float
    environment: Mapping[str, str]
    export_error: float = 0.0
    rounds_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    source: Source = "measured"
    energy_j: float | None = None
    energy_source: Source | None = None
    dense_energy_j: float | None = None
    watts: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """Read what `to_json` wrote."""
        fields = dict(data)
        for name in ("latency_interval_s", "dense_latency_interval_s"):
            fields[name] = tuple(fields[name])
        fields["rounds_s"] = {model: tuple(rounds) for model, rounds in fields.get("rounds_s", {}).items()}
        return cls(**fields)


@dataclass(frozen=True)
class PredictorReport:
    """How far to trust the predicted latencies of this search. Errors are fractions (0.03 = 3 %).

    Attributes:
        mape: mean absolute error on whole models held out of the fit, as a share of what was measured; None where none could be held out.
        kernel_mape: the same on kernels of no model learned from; None where every kernel is in several models.
        noise_floor: split-half repeatability of the measurements the errors are taken against.
        coverage: share of the dense latency that learned kernels explain; the rest is priced by a bound.
    """

    mape: float | None
    kernel_mape: float | None
    noise_floor: float
    kernels: int
    models: int
    coverage: float = 1.0


@dataclass(frozen=True)
class Finalist:
    """One exported, measured model. `before_recovery` is its (validation, test) score before fine-tuning, None if not recovered.

    Scores are those of the exported model, run by the runtime; `validation` served the search, `test` nothing.
    `noisy`: the machine was busy while the latency was measured. `divergence`: from the dense model on held-out inputs.
    `worth`: what versions are chosen by, see `automc.evaluate.worth`; None takes the validation score.
    `notes`: what the protocol asks for and could not have while the latency was measured (lock, pinning, rounds).
    """

    policy: Policy
    cost: Cost
    predicted_latency_s: float | None
    validation: float
    test: float | None
    holds: bool
    stage: Literal["dense", "finalist", "recovered"]
    before_recovery: tuple[float, float | None] | None = None
    noisy: bool = False
    divergence: float | None = None
    worth: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def merit(self) -> float:
        """The greater is kept."""
        return self.validation if self.worth is None else self.worth

    def source(self, metric: str = "latency_s") -> Source:
        """How a figure of its cost is known; what says nothing of itself was not measured."""
        return self.cost.source.get(metric, "predicted")

    def trial(self, number: int, seconds: float = 0.0) -> Trial:
        """The trial that records it; `seconds` is what measuring it took."""
        return Trial(
            number, self.policy, self.cost, self.validation, seconds=seconds, worth=self.worth,
            stage="recovered" if self.stage == "recovered" else "finalist", before_recovery=self.before_recovery,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "digest": self.policy.digest,
            "policy": self.policy.to_json(),
            "cost": self.cost.to_json(),
            "predicted_latency_s": self.predicted_latency_s,
            "validation": self.validation,
            "test": self.test,
            "holds": self.holds,
            "stage": self.stage,
            "before_recovery": list(self.before_recovery) if self.before_recovery else None,
            "noisy": self.noisy,
            "divergence": self.divergence,
            "worth": self.worth,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finalist:
        """Read what `to_json` wrote."""
        before = data["before_recovery"]
        return cls(
            policy=Policy.from_json(data["policy"]),
            cost=Cost.from_json(data["cost"]),
            predicted_latency_s=data["predicted_latency_s"],
            validation=data["validation"],
            test=data["test"],
            holds=data["holds"],
            stage=data["stage"],
            before_recovery=(before[0], before[1]) if before else None,
            noisy=data.get("noisy", False),
            divergence=data.get("divergence"),
            worth=data.get("worth"),
            notes=tuple(data.get("notes", ())),
        )


def measured_under(noisy: bool, notes: Sequence[str]) -> list[str]:
    """What limits the trust in measured figures, in sentences for people: whether the machine was busy, and each note."""
    busy = ["The machine was busy while this was measured: measure again before relying on it."] if noisy else []
    return [*busy, *(f"{note[:1].upper()}{note[1:]}." for note in notes)]


def has_interval(model: Finalist) -> bool:
    """Whether its latency has a 95 % interval; a simulated one is exact."""
    return model.source() != "simulated" and model.cost.latency_interval_s is not None


def is_tolerable(score: float, dense: Finalist) -> bool:
    """Whether a score is as good as the dense model's, or loses so little that being faster is worth it."""
    return score >= dense.validation - TOLERATED_LOSS * abs(dense.validation)


def winner_of(holding: Sequence[Finalist], dense: Finalist, *, dense_holds: bool) -> Finalist | None:
    """Of measured models that hold a budget, the one to hand over: what is worth most, the faster of equals.

    Where the dense model holds it too, the fastest of those that lose little.
    """
    enough = [f for f in holding if is_tolerable(f.validation, dense)] if dense_holds else []
    return min(enough, key=_latency_s, default=None) or max(
        holding, key=lambda f: (f.merit, -_latency_s(f)), default=None
    )


def _latency_s(finalist: Finalist) -> float:
    return math.inf if finalist.cost.latency_s is None else finalist.cost.latency_s


@dataclass(frozen=True)
class Summary:
    """The result of a search in one record (`runs/<name>/summary.json`).

    Attributes:
        limits: the resolved budget, metric -> limit in SI units.
        best: the winner; None when nothing held the budget as measured.
        smallest: the finalist nearest to the budget when nothing held it.
        dense_meets_budget: the dense model already held the budget; the front was searched all the same.
        left_alone: (layer, reason) of what no policy touched.
        seconds: stage -> wall-clock seconds.
        notes: what a reader of the scores has to know about the data, one sentence each.
        widths: channel group -> its dense width, so that a kept count can be read as a share.
    """

    name: str
    model: str
    device: str
    agent: str
    seed: int
    score_name: str
    batch_size: int
    budget: tuple[str, ...]
    limits: Mapping[str, float]
    dense: Finalist
    best: Finalist | None
    smallest: Finalist | None
    finalists: tuple[Finalist, ...]
    predictor: PredictorReport
    trials: int
    dense_meets_budget: bool
    left_alone: tuple[tuple[str, str], ...]
    seconds: Mapping[str, float]
    widths: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether latencies were measured on the device, not predicted or simulated."""
        return self.dense.source() == "measured"

    @property
    def priced(self) -> Source:
        """How the latencies of trials are known that were not certified."""
        return "simulated" if self.dense.source() == "simulated" else "predicted"

    def promise(self, model: Finalist, sure: str = "") -> str:
        """The limits, each with how the model's figure is known: "50.0 ms as measured and 30.0 mJ as predicted".

        `sure` is said after a latency that has an interval, and after energy that is predicted by it.
        """
        known: dict[str, list[str]] = {}
        for metric, limit in self.limits.items():
            spans = metric == "latency_s" or (metric == "energy_j" and model.source(metric) == "predicted")
            spread = sure if spans and has_interval(model) else ""
            known.setdefault(f"as {model.source(metric)}{spread}", []).append(format_quantity(metric, limit))
        return " and ".join(f"{' and '.join(limits)} {how}" for how, limits in known.items())

    def within(self, budget: Budget) -> Finalist | None:
        """The best measured model within a resolved budget: of the run's own the winner; None where nothing measured holds it."""
        if self.best is not None and {limit.metric: limit.value for limit in budget} == self.limits:
            return self.best
        holding = [f for f in self.finalists if budget.holds(f.cost)]
        return winner_of(holding, self.dense, dense_holds=budget.holds(self.dense.cost))

    @property
    def exceeded(self) -> str:
        """What the smallest found takes of each limit that it exceeds: "54.2 ms instead of 50.0 ms"; empty where it exceeds none."""
        taken = {} if self.smallest is None else {m: self.smallest.cost.upper(m) for m in self.limits}
        return " and ".join(
            f"{format_limit(metric, value)} instead of {format_quantity(metric, limit)}"
            for metric, limit in self.limits.items()
            if (value := taken.get(metric)) is not None and value > limit
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["dense"] = self.dense.to_json()
        data["best"] = self.best.to_json() if self.best else None
        data["smallest"] = self.smallest.to_json() if self.smallest else None
        data["finalists"] = [finalist.to_json() for finalist in self.finalists]
        data["predictor"] = dataclasses.asdict(self.predictor)
        data["left_alone"] = [list(pair) for pair in self.left_alone]
        data["budget"] = list(self.budget)
        data["notes"] = list(self.notes)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Summary:
        """Read what `to_json` wrote."""
        fields = dict(data)
        fields["dense"] = Finalist.from_json(data["dense"])
        fields["best"] = Finalist.from_json(data["best"]) if data["best"] else None
        fields["smallest"] = Finalist.from_json(data["smallest"]) if data["smallest"] else None
        fields["finalists"] = tuple(Finalist.from_json(f) for f in data["finalists"])
        fields["predictor"] = PredictorReport(**data["predictor"])
        fields["left_alone"] = tuple((name, reason) for name, reason in data["left_alone"])
        fields["budget"] = tuple(data["budget"])
        fields["notes"] = tuple(data.get("notes", ()))
        return cls(**fields)
