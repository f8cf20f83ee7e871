"""A toy problem in closed form: a chain of layers whose cost is a product over neighbours and whose loss is known exactly.

It has what makes the real problem hard (a layer's cost depends on the groups on both its sides, on its bits and on its rank;
crossing between float and integer layers costs extra; losses add up only roughly; the sensitivities given to agents are
off by a factor that differs from domain to domain) and none of what makes it slow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from automc.budget import Budget
from automc.policy import LowRank, Policy, Prune, Quantize, Spec
from automc.protocols import Agent, Costs, Problem
from automc.space import Codes, Domain, SearchSpace
from automc.trial import Trial

__all__ = ["Toy", "ToyEvaluator", "ToyPredictor", "brute_force", "drive", "large_toy", "small_toy", "toy_problem"]

Array = NDArray[np.float64]
_WIDTH = 64
_INT8_TIME, _INT8_SIZE = 0.45, 0.25
_CROSSING_S, _FIXED_S = 4e-5, 1e-3


@dataclass(frozen=True)
class ToyLayer:
    """One layer: the columns of the space that shape it (None where there is none) and its dense figures."""

    inputs: int | None
    outputs: int | None
    bits: int | None
    rank: int | None
    dense_s: float
    weights: float

    @property
    def columns(self) -> list[int]:
        """The columns that shape this layer."""
        return [c for c in (self.inputs, self.outputs, self.bits, self.rank) if c is not None]


@dataclass(frozen=True)
class ToyPredictor:
    """Prices codes in closed form.

    Attributes:
        layers: the chain, first layer first.
        shares: one array per domain, entry c the share of channels, bits or factor work that choice c keeps.
    """

    layers: Sequence[ToyLayer]
    shares: Sequence[Array]

    def predict(self, codes: Codes) -> Costs:
        """Costs of (count, domains) codes; the latency interval is +-3 %."""
        latency, size, macs = (np.zeros(len(codes)) for _ in range(3))
        before = np.zeros(len(codes), dtype=bool)
        for layer in self.layers:
            work = self._share(codes, layer.inputs) * self._share(codes, layer.outputs) * self._share(codes, layer.rank)
            integer = self._share(codes, layer.bits) < 1.0
            latency += layer.dense_s * work * np.where(integer, _INT8_TIME, 1.0) + _CROSSING_S * (integer != before)
            size += 4.0 * layer.weights * work * np.where(integer, _INT8_SIZE, 1.0)
            macs += layer.weights * 100.0 * work
            before = integer
        latency += _FIXED_S
        return Costs(latency, 0.97 * latency, 1.03 * latency, size + 1e3, macs + 1e3)

    def _share(self, codes: Codes, column: int | None) -> Array:
        return np.ones(len(codes)) if column is None else self.shares[column][codes[:, column]]


@dataclass(frozen=True)
class ToyEvaluator:
    """Scores policies: dense score x exp(-loss), the loss a sum over domains plus a part that couples each layer's knobs.

    Attributes:
        losses: one array per domain: the true loss of each choice alone (the sensitivities agents see are these, distorted).
        pairs: columns whose losses aggravate each other.
        noise: standard deviation added to each score, the same for the same policy.
    """

    space: SearchSpace
    losses: Sequence[Array]
    pairs: Sequence[tuple[int, int]]
    coupling: float = 0.5
    dense_score: float = 0.95
    noise: float = 0.0

    def evaluate(self, policy: Policy) -> float:
        """The score of one policy."""
        score = float(self.scores(self.space.encode([policy]))[0])
        seed = int(policy.digest, 16)
        return score + self.noise * float(np.random.default_rng(seed).standard_normal())

    def scores(self, codes: Codes) -> Array:
        """(count,) scores of codes, without the noise."""
        alone = [loss[codes[:, column]] for column, loss in enumerate(self.losses)]
        loss = np.sum(alone, axis=0) if alone else np.zeros(len(codes))
        for first, second in self.pairs:
            loss = loss + self.coupling * np.sqrt(alone[first] * alone[second])
        return self.dense_score * np.exp(-loss)


@dataclass(frozen=True)
class Toy:
    """A problem for an agent, and the truth that the agent does not see."""

    problem: Problem
    evaluator: ToyEvaluator

    def trial(self, number: int, policy: Policy) -> Trial:
        """What a search would report for `policy`."""
        cost = self.problem.predictor.predict(self.problem.space.encode([policy]))[0]
        return Trial(number, policy, cost, self.evaluator.evaluate(policy))


@dataclass
class _Draft:
    """Domains, shares and losses as they are being drawn."""

    rng: np.random.Generator
    domains: list[Domain] = field(default_factory=list)
    shares: list[Array] = field(default_factory=list)
    losses: list[Array] = field(default_factory=list)

    def add(self, target: str, knob: str, specs: Sequence[Spec], shares: Sequence[float], scale: float) -> int:
        kept = np.array([1.0, *shares])
        self.domains.append(Domain(target, knob, (None, *specs)))
        self.shares.append(kept)
        self.losses.append(scale * float(self.rng.lognormal(0.0, 1.0)) * (1.0 - kept) ** 2 / kept)
        return len(self.domains) - 1


def toy_problem(
    *,
    groups: int = 3,
    levels: int = 4,
    layers: int = 4,
    ranks: int = 2,
    int8: bool = True,
    budget: Sequence[str] = ("50%",),
    seed: int = 0,
    n_trials: int = 100,
    distortion: float = 0.5,
    noise: float = 0.0,
) -> Toy:
    """A chain of `layers` layers and `groups` channel groups (one group may serve several layers, as residual streams do).

    Args:
        levels: keep counts per group, dense included; 1 leaves pruning a single choice.
        ranks: choices of rank per layer, full rank included.
        distortion: standard deviation of the log of the factor by which each domain's sensitivity is off; 0 = exact.
    """
    rng = np.random.default_rng(seed)
    draft = _Draft(rng)
    keeps = [_WIDTH * (levels - i) // levels for i in range(1, levels)]
    for g in range(groups):
        draft.add(f"group{g}", Prune.knob, [Prune(k) for k in keeps], [k / _WIDTH for k in keeps], 0.04)
    chain = [_layer(draft, i, layers, groups, ranks, int8) for i in range(layers)]
    space = SearchSpace(tuple(draft.domains))
    predictor = ToyPredictor(chain, draft.shares)
    sensitivity = [loss * rng.lognormal(0.0, distortion) for loss in draft.losses]
    limits = Budget.parse(*budget).resolve(predictor.predict(space.dense[None])[0])
    pairs = [pair for layer in chain for pair in itertools.combinations(layer.columns, 2) if pair[0] != pair[1]]
    evaluator = ToyEvaluator(space, draft.losses, pairs, noise=noise)
    return Toy(Problem(space, limits, predictor, sensitivity, evaluator.dense_score, n_trials), evaluator)


def small_toy(seed: int = 0, budget: Sequence[str] = ("50%",)) -> Toy:
    """16,384 policies: small enough for `brute_force`. Sensitivities are exact and losses simply add up."""
    toy = toy_problem(seed=seed, budget=budget, distortion=0.0)
    return replace(toy, evaluator=replace(toy.evaluator, coupling=0.0))


def large_toy(seed: int = 0, budget: Sequence[str] = ("40%",), n_trials: int = 100, noise: float = 0.002) -> Toy:
    """About the size of ResNet-20: 12 groups x 8 keep counts, 20 layers x {float, int8} x 4 ranks; 52 domains."""
    return toy_problem(
        groups=12, levels=8, layers=20, ranks=4, budget=budget, seed=seed, n_trials=n_trials, noise=noise
    )


def brute_force(toy: Toy) -> tuple[Codes, float]:
    """The (domains,) codes that score best within the budget, and their score.

    Raises:
        ValueError: no policy holds the budget, or the space is too large to enumerate.
    """
    space = toy.problem.space
    if space.size > 1e6:
        raise ValueError(f"{space.size:.0f} policies are too many to enumerate")
    codes = np.array(list(itertools.product(*(range(n) for n in space.cardinalities))), dtype=np.int64)
    inside = codes[toy.problem.predictor.predict(codes).violation(toy.problem.budget) <= 0.0]
    if not len(inside):
        raise ValueError("no policy holds the budget")
    scores = toy.evaluator.scores(inside)
    return inside[int(np.argmax(scores))], float(scores.max())


def drive(agent: Agent, toy: Toy, trials: int, batch: int = 4) -> list[Trial]:
    """Run `agent` for `trials` trials, `batch` at a time, or until it asks nothing: a search without the machinery."""
    done: list[Trial] = []
    while len(done) < trials:
        asked = agent.ask(min(batch, trials - len(done)))
        if not asked:
            break
        told = [toy.trial(len(done) + i, policy) for i, policy in enumerate(asked)]
        agent.tell(told)
        done.extend(told)
    return done


def _layer(draft: _Draft, index: int, layers: int, groups: int, ranks: int, int8: bool) -> ToyLayer:
    """Layer `index` reads group `index - 1` and writes group `index`, counted round the groups; the ends are free."""
    kept = [0.7 * (ranks - i) / ranks for i in range(1, ranks)]
    specs = [LowRank(max(1, round(_WIDTH * share))) for share in kept]
    bits = draft.add(f"layer{index}", Quantize.knob, [Quantize(8, 8)] * int8, [_INT8_TIME] * int8, 0.006)
    rank = draft.add(f"layer{index}", LowRank.knob, specs, kept, 0.05)
    size = float(draft.rng.uniform(0.5, 2.0))
    inputs = (index - 1) % groups if groups and index else None
    outputs = index % groups if groups and index < layers - 1 else None
    return ToyLayer(inputs, outputs, bits, rank, size * 1e-3, size * 1e4)
