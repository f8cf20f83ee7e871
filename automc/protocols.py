"""The seams: what a plug-in implements, few methods each. Vary by wrapping, not by subclassing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from automc.budget import Budget
from automc.policy import Policy
from automc.progress import Reference
from automc.result import Summary
from automc.space import Codes, SearchSpace
from automc.trial import Cost, Source, Trial

__all__ = [
    "SILENT",
    "Agent",
    "Costs",
    "Evaluator",
    "Executor",
    "Observer",
    "Outcome",
    "Predictor",
    "Problem",
    "Racer",
    "Scored",
    "Silent",
    "Status",
    "Tracker",
    "Watcher",
]


@dataclass(frozen=True)
class Costs:
    """Costs of many policies as arrays of shape (count,), in SI units. `energy_j` is None where the device has no model."""

    latency_s: NDArray[np.float64]
    latency_low_s: NDArray[np.float64]
    latency_high_s: NDArray[np.float64]
    size_bytes: NDArray[np.float64]
    macs: NDArray[np.float64]
    energy_j: NDArray[np.float64] | None = None
    source: Source = "predicted"

    def __len__(self) -> int:
        return len(self.latency_s)

    def __getitem__(self, index: int) -> Cost:
        """The cost of one policy, every figure marked with its `source`."""
        metrics = ("latency_s", "size_bytes", "macs") + (("energy_j",) if self.energy_j is not None else ())
        return Cost(
            latency_s=float(self.latency_s[index]),
            energy_j=None if self.energy_j is None else float(self.energy_j[index]),
            size_bytes=float(self.size_bytes[index]),
            macs=float(self.macs[index]),
            latency_interval_s=(float(self.latency_low_s[index]), float(self.latency_high_s[index])),
            source={metric: self.source for metric in metrics},
        )

    def array(self, metric: str, *, upper: bool = True) -> NDArray[np.float64]:
        """(count,) values of a metric; for latency, and energy predicted by it, the upper end of the interval unless `upper` is False.

        Raises:
            KeyError: the metric is unknown, or this device has no model of it.
        """
        arrays = {
            "latency_s": self.latency_high_s if upper else self.latency_s,
            "size_bytes": self.size_bytes,
            "macs": self.macs,
            "energy_j": self._energy_high_j if upper else self.energy_j,
        }
        values = arrays[metric]
        if values is None:
            raise KeyError(metric)
        return values

    @property
    def _energy_high_j(self) -> NDArray[np.float64] | None:
        if self.energy_j is None or self.source != "predicted":
            return self.energy_j
        known = self.latency_s > 0
        return self.energy_j * np.divide(self.latency_high_s, self.latency_s, out=np.ones(len(self)), where=known)

    def violation(self, budget: Budget) -> NDArray[np.float64]:
        """(count,) largest of value / limit - 1 over the limits of a resolved budget; 0 or below holds it."""
        excess = [self.array(limit.metric) / limit.value - 1.0 for limit in budget]
        return np.max(excess, axis=0)


@runtime_checkable
class Predictor(Protocol):
    """Prices policies without running them."""

    def predict(self, codes: Codes) -> Costs:
        """Costs of (count, domains) codes of the search space the predictor was made for; vectorised."""
        ...


class Evaluator(Protocol):
    """Scores policies."""

    def evaluate(self, policy: Policy) -> float:
        """The score of a policy, higher is better.

        Raises:
            Exception: whatever went wrong; the trial is recorded as failed with it.
        """
        ...


class Scored(float):
    """A score, and what else its evaluation tells.

    Attributes:
        worth: what a search goes by, in the unit of the score; see `automc.evaluate.worth`. None: the score itself.
        samples: of so many samples alone, because more could not have let it beat its rival; None: of all.
    """

    worth: float | None
    samples: int | None

    def __new__(cls, value: float, worth: float | None = None, samples: int | None = None) -> Scored:
        scored = super().__new__(cls, value)
        scored.worth, scored.samples = worth, samples
        return scored

    @classmethod
    def of(cls, value: float) -> Scored:
        """`value`, as it is or with nothing else told."""
        return value if isinstance(value, Scored) else cls(value)

    def __reduce__(self) -> tuple[type[Scored], tuple[float, float | None, int | None]]:
        return Scored, (float(self), self.worth, self.samples)


@runtime_checkable
class Racer(Protocol):
    """An evaluator that may end early."""

    def evaluate(self, policy: Policy) -> float:
        """As of an `Evaluator`."""
        ...

    def race(self, policy: Policy, rival: float) -> float:
        """The score of a policy, or that of the first samples once it is known to be below `rival`.

        Raises:
            Exception: as `evaluate`.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """How an evaluation ended: with a score, or with the reason why there is none. `seconds` is what it took."""

    policy: Policy
    score: float | None = None
    reason: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Where evaluations run."""

    @property
    def slots(self) -> int:
        """How many evaluations it can make use of at once."""
        ...

    def submit(self, policy: Policy, rival: float) -> None:
        """Have a policy scored; the evaluation may end early once its score is known to be below `rival`."""
        ...

    def collect(self) -> Sequence[Outcome]:
        """What has ended since the last call, in the order in which it ended; waits until there is something.

        Raises:
            AutomcError: nothing is left that could evaluate.
        """
        ...

    def pause(self) -> None:
        """Return once nothing that belongs to it loads the machine any more: it is about to be measured."""
        ...


Status = Literal["FINISHED", "KILLED", "FAILED"]
"""How a search ended."""


class Tracker(Protocol):
    """Where a search is recorded besides its folder. Never stops it: one that cannot write warns once and queues or drops."""

    def start(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """The search begins: its settings, and what to find it by."""
        ...

    def set_reference(self, cost: Cost, score: float, limits: Mapping[str, float]) -> None:
        """The dense model's cost and score, and the resolved budget (metric -> limit, SI units)."""
        ...

    def log(self, trial: Trial) -> None:
        """A trial ended."""
        ...

    def finish(self, summary: Summary | None, run_dir: Path, status: Status = "FINISHED") -> None:
        """The search ended; what it wrote lies in `run_dir`. `summary` is None when it did not get that far."""
        ...

    def close(self, timeout_s: float = 60.0) -> bool:
        """Wait until everything is recorded, for at most `timeout_s`; whether it is."""
        ...


class Observer(Protocol):
    """Who watches a job: the terminal view, a notebook, a test."""

    def stage(self, name: str, total: float | None) -> None:
        """A stage begins; `total` is the units of work it will advance by, or None where unknown."""
        ...

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """`amount` units of the current stage are done."""
        ...

    def message(self, text: str, level: str = "info") -> None:
        """A sentence for the person; `level` is "info" or "warning"."""
        ...


class Silent:
    """An observer that shows nothing."""

    def stage(self, name: str, total: float | None) -> None:
        """Nothing."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Nothing."""

    def message(self, text: str, level: str = "info") -> None:
        """Nothing."""


SILENT = Silent()
"""Who watches where nobody does."""


@runtime_checkable
class Watcher(Protocol):
    """What an observer may have besides, to draw the front as it grows."""

    def reference(self, reference: Reference) -> None:
        """The dense model was measured and the budget resolved."""
        ...

    def trial(self, trial: Trial) -> None:
        """A trial ended, or is known from an earlier attempt at the same search."""
        ...


@dataclass(frozen=True)
class Problem:
    """What an agent knows: the space, the resolved budget, a predictor, and how much each single choice hurts.

    Attributes:
        sensitivity: one array per domain, entry c the loss of choosing c there with everything else dense, in nats of
            divergence from the dense model's outputs per sample; entry 0 is 0. None when it was not measured: an agent
            that needs it says so in its constructor.
        dense_score: score of the dense model, higher is better.
        n_trials: how many trials the search will ask for in all; agents may spread their effort over it.
        features: (domains, 7) the layer behind each domain, as `layer_features` tells it; None where there are no layers.
        objectives: metrics without a limit that the front is drawn in too; agents that can look for policies all along it.
        options: what single agents understand, such as "storage".
    """

    space: SearchSpace
    budget: Budget
    predictor: Predictor
    sensitivity: Sequence[NDArray[np.float64]] | None = None
    dense_score: float = 1.0
    n_trials: int = 100
    features: NDArray[np.float64] | None = None
    objectives: tuple[str, ...] = ()
    options: dict[str, object] = field(default_factory=dict)


class Agent(Protocol):
    """A search controller. Built as `cls(problem, seed)`; works on codes, never on specs."""

    def ask(self, count: int) -> Sequence[Policy]:
        """Up to `count` new policies to evaluate; fewer, or none, when the agent has nothing left to propose.

        An agent may propose policies outside the budget, which are scored like any others, but should price first.
        """
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """The results of asked policies, or of any others (warm start), in any order."""
        ...
