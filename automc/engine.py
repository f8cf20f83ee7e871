"""From a prepared model to a certified winner: search, certify, correct, search on, recover, certify again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from automc import registry
from automc.budget import Budget, Limit
from automc.certify import Candidate, Certified, Certifier
from automc.errors import AutomcError
from automc.evaluate.accuracy import Cached, Stitched
from automc.execute.serial import Serial
from automc.loop import Loop
from automc.policy import Policy, Quantize
from automc.prepare import Clock, Prepared
from automc.protocols import Agent, Costs, Observer, Predictor, Problem
from automc.recover import recover
from automc.result import Finalist
from automc.space import Codes
from automc.trial import Cost, Trial

__all__ = ["Engine", "Settings"]

FINALISTS = 3
MAX_ROUNDS = 4
TOLERATED_LOSS = 0.005
"""Where the dense model already holds the budget, the winner is the fastest that loses no more than this of its score."""


NOTICEABLE = 0.002
"""A difference in score worth another round of measuring."""


@dataclass(frozen=True)
class Settings:
    """How to search. `recover_s` is for all finalists together; 0 turns recovery off."""

    budget: Budget
    agent: str = "ilp"
    trials: int = 100
    timeout_s: float | None = None
    seed: int = 0
    recover_s: float = 60.0
    batch_size: int = 1


@dataclass(frozen=True)
class Central:
    """A predictor that promises what it expects: agents may aim at the budget itself, since finalists are measured.

    Aiming with the upper end of the interval would leave out the best policies by the width of the interval. `bias` is how much
    longer than predicted the last finalists took: what agents find at the edge of a budget is what the predictor
    prices too low.
    """

    inner: Predictor
    bias: float = 1.0

    def predict(self, codes: Codes) -> Costs:
        """The inner predictor's costs with the interval closed."""
        costs = self.inner.predict(codes)
        latency_s = self.bias * costs.latency_s
        return replace(costs, latency_s=latency_s, latency_low_s=latency_s, latency_high_s=latency_s)


@dataclass
class Engine:
    """One search over one prepared model. `trials()` does the work and yields what happens; then `best` is the winner.

    Attributes:
        record: told every trial as it ends, before it is yielded: the run directory and the tracker.
        known: trials of an earlier attempt at the same search; they are not evaluated again.
    """

    prepared: Prepared
    settings: Settings
    observer: Observer
    clock: Clock
    record: Callable[[Trial], None] = lambda _: None
    known: Sequence[Trial] = ()
    certified: list[Certified] = field(default_factory=list)
    done: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._bias = 1.0
        self._next = 1 + max((trial.number for trial in self.known), default=-1)
        self.certifier = Certifier(self.prepared, self.settings.budget, self.settings.batch_size, self.settings.seed)
        self.limits = self.prepared.limits(self.settings.budget)
        self._stitched = Cached(Stitched(self.prepared.stitcher, self.prepared.data.validation, self.prepared.score))

    @property
    def dense(self) -> Finalist:
        """The uncompressed model, measured and scored."""
        return self.certifier.dense

    @property
    def best(self) -> Certified | None:
        """The winner so far: of what holds the budget as measured, the best validation score; the faster of equals."""
        holding = [c for c in self.certified if c.finalist.holds]
        if self.dense.holds and holding:
            enough = [c for c in holding if c.finalist.validation >= self.dense.validation - TOLERATED_LOSS]
            return min(enough, key=_latency_s, default=None) or max(holding, key=_merit, default=None)
        return max(holding, key=_merit, default=None)

    @property
    def smallest(self) -> Certified | None:
        """What came nearest to the budget as measured."""
        return min(self.certified, key=lambda c: self.limits.violation(c.finalist.cost), default=None)

    def trials(self) -> Iterator[Trial]:
        """Search, certify and recover; yields each trial as it ends, finalists and recovered ones too.

        Raises:
            AutomcError: not a single policy could be evaluated.
        """
        if self.dense.holds:
            self.observer.message(f"The dense model already meets {self.settings.budget}; searching for a faster one.")
            yield from self._certify([Candidate(Policy(), self.prepared.traced.model)])
        self.done = [trial for trial in self.known if trial.stage == "search"]
        for attempt in range(MAX_ROUNDS):
            yield from self._search(attempt)
            fresh = self._finalists()
            if not fresh:
                break
            yield from self._certify(fresh)
            self._correct()
            if self.best is not None and not self._better_expected():
                break
        if self.settings.recover_s > 0 and self.certified:
            yield from self._recover()
        self.clock.stop()

    def _search(self, attempt: int) -> Iterator[Trial]:
        """One stretch of the search; later stretches have what the first left over, and a corrected predictor."""
        wanted = self.settings.trials if attempt else max(1, round(0.8 * self.settings.trials))
        if attempt and self.best is None:
            wanted = len(self.done) + max(4, self.settings.trials // 10)
        self.clock.start("search")
        self.observer.stage("search", max(0, wanted - len(self.done)))
        loop = Loop(
            self.prepared.space, self._agent(attempt), self._stitched, Serial(), self.prepared.predictor,
            out_of_time=self._out_of_time,
        )  # fmt: skip
        for trial in loop.run(wanted, self.done, self._next):
            self._next += 1
            self.done.append(trial)
            self.record(trial)
            self.observer.advance(1.0, self._note())
            yield trial
        self.clock.stop()
        if self.done and all(trial.state == "failed" for trial in self.done):
            raise AutomcError(f"No policy could be evaluated; the first failed with {self.done[0].reason}.")

    def _agent(self, attempt: int) -> Agent:
        problem = Problem(
            space=self.prepared.space,
            budget=self._target(),
            predictor=Central(self.prepared.predictor, self._bias),
            sensitivity=self.prepared.sensitivity,
            dense_score=self.dense.validation,
            n_trials=self.settings.trials,
        )
        agent: Agent = registry.load("agent", self.settings.agent)(problem, self.settings.seed + attempt)
        return agent

    def _target(self) -> Budget:
        """What agents aim at: the budget, or half the dense latency where the dense model already holds the budget."""
        if not self.dense.holds:
            return self.limits
        latency_s = self.dense.cost.latency_s or 0.0
        others = tuple(limit for limit in self.limits if limit.metric != "latency_s")
        return Budget((Limit("latency_s", 0.5 * latency_s), *others))

    def _out_of_time(self) -> bool:
        timeout = self.settings.timeout_s
        return timeout is not None and time.monotonic() - self._start > timeout

    def _note(self) -> str:
        best = max((t for t in self.done if t.score is not None and self._likely(t)), key=_score, default=None)
        if best is None or best.cost.latency_s is None:
            return f"{len(self.done)} trials"
        return f"best {_score(best):.4f} at {1e3 * best.cost.latency_s:.1f} ms predicted"

    def _finalists(self) -> list[Candidate]:
        """The most promising trials not yet measured: the best scores, and the least sum of single-choice losses."""
        scored = [t for t in self.done if t.state == "complete" and not self._is_measured(t.policy) and len(t.policy)]
        holding = [t for t in scored if self._likely(t)]
        if not holding:
            nearest = sorted(scored, key=lambda t: self.limits.violation(t.cost))
            return self._candidates(t.policy for t in nearest) if self.best is None else []
        ranked = sorted(holding, key=lambda t: (-_score(t), self._loss(t.policy)))
        gentlest = min(holding, key=lambda t: self._loss(t.policy))
        return self._candidates(t.policy for t in (*ranked[: FINALISTS - 1], gentlest, *ranked[:FINALISTS]))

    def _candidates(self, policies: Iterable[Policy]) -> list[Candidate]:
        """The first FINALISTS different ones, with every layer that runs on integers named."""
        explicit = list(dict.fromkeys(self._explicit(policy) for policy in policies))[:FINALISTS]
        return [Candidate(policy, self.prepared.stitcher.apply(policy)) for policy in explicit]

    def _is_measured(self, policy: Policy) -> bool:
        return self._explicit(policy).digest in {c.candidate.policy.digest for c in self.certified}

    def _explicit(self, policy: Policy) -> Policy:
        """The policy with every layer that runs on integers named."""
        rounded = self.prepared.stitcher.integer_layers(policy)
        return Policy.of([*(c for c in policy if not isinstance(c[1], Quantize)), *rounded.items()])

    def _loss(self, policy: Policy) -> float:
        """Sum of the losses of the policy's single choices: a better guide to the recovered score than the score before."""
        codes = self.prepared.space.encode([policy])[0]
        return float(sum(curve[code] for curve, code in zip(self.prepared.sensitivity, codes, strict=True)))

    def _certify(self, candidates: Sequence[Candidate]) -> Iterator[Trial]:
        self.clock.start("certify")
        self.observer.stage("measure the finalists", None)
        start = time.perf_counter()
        found = self.certifier.certify(candidates)
        seconds = (time.perf_counter() - start) / max(1, len(found))
        self.certified.extend(found)
        for certified in found:
            trial = self._measured_trial(certified, seconds)
            self.record(trial)
            yield trial
        self.clock.stop()

    def _measured_trial(self, certified: Certified, seconds: float) -> Trial:
        finalist = certified.finalist
        stage: Literal["finalist", "recovered"] = "recovered" if finalist.stage == "recovered" else "finalist"
        self._next += 1
        return Trial(self._next - 1, finalist.policy, finalist.cost, finalist.validation, seconds=seconds, stage=stage)

    def _correct(self) -> None:
        """Refit the predictor to what was measured, price the trials anew, and aim lower by what the last ones missed."""
        latest = [c for c in self.certified[-FINALISTS:] if len(c.candidate.policy)]
        misses = [c.certificate.latency_s * self._drift(c) / (c.finalist.predicted_latency_s or np.nan) for c in latest]
        self._bias = max(1.0, self._bias, float(np.nanmedian(misses))) if misses else self._bias
        pairs = [
            (c.candidate.policy, c.certificate.latency_s * self._drift(c))
            for c in self.certified
            if c.candidate.stage == "finalist"
        ]
        self.prepared.predictor = self.prepared.predictor.corrected(pairs)
        costs = self.prepared.predictor.predict(self.prepared.space.encode([t.policy for t in self.done]))
        self.done = [replace(trial, cost=costs[i]) for i, trial in enumerate(self.done)]

    def _drift(self, certified: Certified) -> float:
        """How the machine ran when this was measured, against the dense measurement that the budget was resolved with."""
        reference: Cost = self.prepared.dense_cost
        return (reference.latency_s or 1.0) / certified.certificate.dense_latency_s

    def _better_expected(self) -> bool:
        """Whether an unmeasured trial that should hold the budget scored clearly better than the winner."""
        best = self.best
        assert best is not None
        left = [t for t in self.done if t.state == "complete" and not self._is_measured(t.policy)]
        return any(self._likely(t) and _score(t) > best.finalist.validation + NOTICEABLE for t in left)

    def _likely(self, trial: Trial) -> bool:
        """Whether the trial holds the budget if it takes as long as predicted; measuring it will tell."""
        latency_s = None if trial.cost.latency_s is None else self._bias * trial.cost.latency_s
        return self.limits.holds(replace(trial.cost, latency_s=latency_s, latency_interval_s=None))

    def _recover(self) -> Iterator[Trial]:
        """Fine-tune the two best finalists that hold, half the time shared, half for the better of them."""
        pool = [c for c in self.certified if c.finalist.holds and len(c.candidate.policy)] or [
            c for c in (self.smallest,) if c is not None
        ]
        chosen = sorted(pool, key=_merit, reverse=True)[:1]
        rest = [c for c in pool if c not in chosen]
        chosen += sorted(rest, key=lambda c: self._loss(c.candidate.policy))[:1]
        self.clock.start("recover")
        self.observer.stage("recover the finalists", self.settings.recover_s)
        share = self.settings.recover_s / len(chosen)
        recovered = []
        for certified in chosen:
            model = recover(
                certified.candidate.model, self.prepared, seconds=share, seed=self.settings.seed,
                advance=self.observer.advance,
            )  # fmt: skip
            before = (certified.finalist.validation, certified.finalist.test)
            recovered.append(Candidate(certified.candidate.policy, model, "recovered", before))
        self.clock.stop()
        yield from self._certify(recovered)


def _score(trial: Trial) -> float:
    return -np.inf if trial.score is None else trial.score


def _latency_s(certified: Certified) -> float:
    return certified.certificate.latency_s


def _merit(certified: Certified) -> tuple[float, float]:
    return certified.finalist.validation, -certified.certificate.latency_s
