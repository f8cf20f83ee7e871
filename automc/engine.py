"""From a prepared model to a certified winner: search, certify, correct, search on, recover, certify again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from automc import registry
from automc.aim import Aim, Expected, learn_aim
from automc.budget import Budget, Limit
from automc.certify import Candidate, Certified, Certifier, Failed
from automc.errors import AutomcError
from automc.evaluate.accuracy import Cached
from automc.evaluate.fast import fast_evaluator
from automc.execute.serial import Serial
from automc.loop import Loop
from automc.policy import Policy, Quantize
from automc.predict.bottleneck import bottleneck
from automc.predict.predictor import LearnedPredictor
from automc.prepare import Clock, Prepared
from automc.protocols import Agent, Evaluator, Observer, Problem
from automc.recover import recover, refine_within
from automc.result import Finalist
from automc.trial import Cost, Trial

__all__ = ["Engine", "Settings"]

FINALISTS = 3
MAX_ROUNDS = 5
TOLERATED_LOSS = 0.005
"""Where the dense model already holds the budget, the winner is the fastest that loses no more than this share of its score."""
NOTICEABLE = 0.002
"""A difference, as a share of the dense score, worth another round of measuring."""


REFINING = 0.25
"""Share of the time for recovery in which layers are solved again, before they are trained."""
ROOM = 0.02
"""What one measuring session may differ from another, as a share of the latency."""


@dataclass(frozen=True)
class Settings:
    """How to search. `recover_s` is for all finalists together, 0 turns recovery off; `deadline` is a time.monotonic()."""

    budget: Budget
    agent: str = "ilp"
    trials: int = 60
    deadline: float | None = None
    seed: int = 0
    recover_s: float = 60.0
    batch_size: int = 1

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, infinite where there is none."""
        return np.inf if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclass
class Engine:
    """One search over one prepared model. `trials()` does the work and yields what happens; then `best` is the winner.

    Attributes:
        record: told every trial as it ends, before it is yielded: the run directory and the tracker.
        keep: called whenever finalists have been measured, so that the best so far is on disk whatever happens next.
        known: trials of an earlier attempt at the same search; they are not evaluated again.
        measured: the trials of finalists and recovered models.
    """

    prepared: Prepared
    settings: Settings
    observer: Observer
    clock: Clock
    record: Callable[[Trial], None] = lambda _: None
    keep: Callable[[], None] = lambda: None
    known: Sequence[Trial] = ()
    certified: list[Certified] = field(default_factory=list)
    done: list[Trial] = field(default_factory=list)
    measured: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._next = 1 + max((trial.number for trial in self.known), default=-1)
        self._aim = Aim()
        self._failed: set[str] = set()
        self._predictor: LearnedPredictor = self.prepared.predictor
        self.certifier = Certifier(self.prepared, self.settings.budget, self.settings.batch_size, self.settings.seed)
        self.limits = self.settings.budget.resolve(self.dense.cost)
        self._evaluator = Cached(self._fast_evaluator(), key=lambda policy: self._explicit(policy).digest)

    def _fast_evaluator(self) -> Evaluator:
        prepared = self.prepared
        return fast_evaluator(
            prepared.stitcher,
            prepared.space,
            prepared.data.validation,
            prepared.score,
            self.dense.validation,
            self.observer,
        )

    @property
    def dense(self) -> Finalist:
        """The uncompressed model, measured and scored."""
        return self.certifier.dense

    @property
    def best(self) -> Certified | None:
        """The winner so far: of what holds the budget as measured, the best validation score; the faster of equals."""
        holding = [c for c in self.certified if c.finalist.holds]
        if self.dense.holds:
            enough = [c for c in holding if self._is_tolerable(c.finalist.validation)]
            return min(enough, key=_latency_s, default=None) or max(holding, key=_merit, default=None)
        return max(holding, key=_merit, default=None)

    @property
    def smallest(self) -> Certified | None:
        """What came nearest to the budget as measured."""
        return min(self.certified, key=lambda c: self.limits.violation(c.finalist.cost), default=None)

    @property
    def limiting(self) -> str | None:
        """Where nothing holds the budget and it limits latency: what takes the time of what came nearest."""
        nearest = self.smallest
        if self.best is not None or nearest is None or self.limits.limit("latency_s") is None:
            return None
        return bottleneck(self._predictor, nearest.candidate.policy)

    @property
    def front(self) -> list[Trial]:
        """What the front is drawn from: measured models, and priced trials that were not measured."""
        return [*self.measured, *(trial for trial in self.done if not self._is_measured(trial.policy))]

    def trials(self) -> Iterator[Trial]:
        """Search, certify and recover; yields each trial as it ends, finalists and recovered ones too.

        Raises:
            AutomcError: not a single policy could be evaluated.
        """
        known = [trial for trial in self.known if trial.stage == "search"]
        self.done = [
            trial for trial in known if self.prepared.space.contains(trial.policy)
        ]  # priced anew, it may narrow
        self._reprice()
        if self.dense.holds:
            self.observer.message(f"The dense model already meets {self.settings.budget}; searching for a faster one.")
            yield from self._certify([Candidate(Policy(), self.prepared.traced.model)])
        for attempt in range(MAX_ROUNDS):
            yield from self._search(attempt)
            fresh = self._finalists()
            if not fresh:
                break
            yield from self._certify(fresh)
            self._correct(len(fresh))
            if (self.best is not None and not self._better_expected()) or self.settings.left_s <= 0:
                break
        if self.best is not None and min(self.settings.recover_s, self.settings.left_s) > 0:
            yield from self._recover()
        self.clock.stop()

    def _search(self, attempt: int) -> Iterator[Trial]:
        """One stretch of the search: all trials first, a tenth more after each round that was measured."""
        wanted = self.settings.trials if attempt == 0 else len(self.done) + max(4, self.settings.trials // 10)
        self.clock.start("search")
        self.observer.stage("search", max(0, wanted - len(self.done)))
        loop = Loop(
            self.prepared.space, self._agent(attempt), self._evaluator, Serial(), self._predictor,
            out_of_time=lambda: bool(self.done) and self.settings.left_s <= 0, metrics=self.settings.budget.metrics,
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
            predictor=Expected(self._predictor, self._aim),
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

    def _note(self) -> str:
        full = (t for t in self.done if t.score is not None and t.samples is None and self._is_likely(t))
        best = max(full, key=_score, default=None)
        if best is None or best.cost.latency_s is None:
            return f"{len(self.done)} trials"
        return f"best {_score(best):.4f} at {1e3 * best.cost.latency_s:.1f} ms predicted"

    def _finalists(self) -> list[Candidate]:
        """The most promising trials not yet measured: the best scores, and the least sum of single-choice losses.

        Where the dense model holds the budget, the fastest of those that lose little. Where what was measured missed the
        budget, the one with most room too. A trial whose score is an estimate can be chosen for its losses alone; like every
        finalist it is scored on all samples when it is measured.
        """
        scored = [t for t in self.done if t.state == "complete" and len(t.policy) and not self._is_measured(t.policy)]
        likely = [t for t in scored if self._is_likely(t)]
        if not likely:
            nearest = sorted(scored, key=lambda t: self.limits.violation(self._aim.cost(t.cost)))
            return self._candidates(nearest) if self.best is None else []
        gentlest = min(likely, key=lambda t: self._loss(t.policy))
        full = [t for t in likely if t.samples is None]
        ranked = sorted(full, key=lambda t: (-_score(t), self._loss(t.policy)))
        if self.dense.holds:
            ranked.sort(key=lambda t: (not self._is_tolerable(_score(t)), t.cost.latency_s or np.inf))
        if self.certified and self.best is None:
            return self._candidates([gentlest, min(likely, key=lambda t: self.limits.violation(t.cost)), *ranked])
        return self._candidates([*ranked[: FINALISTS - 1], gentlest, *ranked[FINALISTS - 1 :]])

    def _candidates(self, trials: Iterable[Trial]) -> list[Candidate]:
        """The first FINALISTS different ones, with every layer that runs on integers named."""
        predicted = {self._explicit(trial.policy): trial.cost for trial in reversed(list(trials))}
        chosen = list(reversed(predicted.items()))[:FINALISTS]
        stitcher = self.prepared.stitcher
        return [Candidate(policy, stitcher.finish(stitcher.apply(policy)), cost) for policy, cost in chosen]

    def _explicit(self, policy: Policy) -> Policy:
        """The policy with every layer that runs on integers named."""
        rounded = self.prepared.stitcher.integer_layers(policy)
        return Policy.of([*(c for c in policy if not isinstance(c[1], Quantize)), *rounded.items()])

    def _is_measured(self, policy: Policy) -> bool:
        digest = self._explicit(policy).digest
        return digest in self._failed or digest in {c.candidate.policy.digest for c in self.certified}

    def _is_likely(self, trial: Trial) -> bool:
        """Whether the trial is expected to hold the budget; measuring it will tell."""
        return self._aim.holds(self.limits, trial.cost)

    def _is_tolerable(self, score: float) -> bool:
        return score >= self.dense.validation - TOLERATED_LOSS * abs(self.dense.validation)

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
        trials = [self._trial_of(one, seconds) for one in found]
        self.certified.extend(one for one in found if isinstance(one, Certified))
        self.measured.extend(trial for trial in trials if trial.state == "complete")
        self.keep()
        for trial in trials:
            self.record(trial)
            yield trial
        self.clock.stop()

    def _trial_of(self, one: Certified | Failed, seconds: float) -> Trial:
        stage: Literal["finalist", "recovered"] = "recovered" if one.candidate.stage == "recovered" else "finalist"
        number, policy = self._next, one.candidate.policy
        self._next += 1
        if isinstance(one, Failed):
            self._failed.add(policy.digest)
            self.observer.message(f"A {stage} could not be measured: {one.reason}", "warning")
            return Trial(number, policy, Cost(), state="failed", reason=one.reason, seconds=seconds, stage=stage)
        return Trial(number, policy, one.finalist.cost, one.finalist.validation, seconds=seconds, stage=stage)

    def _correct(self, latest: int) -> None:
        """Refit the predictor to what was measured, aim by what it still misses, and price the trials anew."""
        pairs = [(c.candidate.policy, self._comparable(c)) for c in self.certified if c.candidate.stage == "finalist"]
        if pairs:
            self._predictor, self._aim = learn_aim(self.prepared.predictor, self.prepared.space, pairs, latest)
            self._reprice()

    def _reprice(self) -> None:
        if self.done:
            costs = self._predictor.predict(self.prepared.space.encode([t.policy for t in self.done]))
            self.done = [replace(trial, cost=costs[i]) for i, trial in enumerate(self.done)]

    def _comparable(self, certified: Certified) -> Cost:
        """The measured cost; where the latency limit is a share, as if the dense model ran as when the budget was resolved."""
        cost, limit = certified.finalist.cost, self.settings.budget.limit("latency_s")
        if limit is not None and not limit.relative:
            return cost
        drift = (self.dense.cost.latency_s or 1.0) / certified.certificate.dense_latency_s
        return replace(cost, latency_s=certified.certificate.latency_s * drift)

    def _better_expected(self) -> bool:
        """Whether an unmeasured trial that should hold the budget beats the winner clearly."""
        best = self.best
        assert best is not None
        left = [
            t
            for t in self.done
            if t.state == "complete" and t.samples is None and not self._is_measured(t.policy) and self._is_likely(t)
        ]
        if self.dense.holds:
            fast = 0.95 * best.certificate.latency_s
            return any(self._is_tolerable(_score(t)) and (t.cost.latency_s or np.inf) < fast for t in left)
        return any(_score(t) > best.finalist.validation + NOTICEABLE * abs(self.dense.validation) for t in left)

    def _recover(self) -> Iterator[Trial]:
        """Fine-tune the best finalist that holds, and the best that holds with room to spare, for equal times.

        Recovery changes no shapes, but the recovered model is measured anew, and the machine may be a little slower then.
        """
        pool = [c for c in self.certified if c.finalist.holds and len(c.candidate.policy)]
        if not pool:
            return
        roomy = [c for c in pool if self.limits.violation(c.finalist.cost) <= -ROOM]
        rest = sorted(pool, key=lambda c: self._loss(c.candidate.policy))
        second = max(roomy, key=_merit, default=rest[0])
        chosen = list({id(c): c for c in (max(pool, key=_merit), second)}.values())
        seconds = min(self.settings.recover_s, self.settings.left_s)
        self.clock.start("recover")
        self.observer.stage("recover the finalists", seconds)
        recovered = [one for c in chosen if (one := self._recovered(c, seconds / len(chosen))) is not None]
        self.clock.stop()
        yield from self._certify(recovered)

    def _recovered(self, certified: Certified, seconds: float) -> Candidate | None:
        candidate, finalist = certified.candidate, certified.finalist
        start = time.perf_counter()
        try:
            model = refine_within(candidate.policy, self.prepared, REFINING * seconds) or candidate.model
            left = seconds - (time.perf_counter() - start)
            self.observer.advance(seconds - left)
            model = recover(model, self.prepared, seconds=left, seed=self.settings.seed, advance=self.observer.advance)
        except Exception as error:  # a model that cannot be trained is handed over as it is
            self.observer.message(f"Recovery failed and is left out: {type(error).__name__}: {error}", "warning")
            return None
        before = (finalist.validation, finalist.test)
        return replace(candidate, model=model, stage="recovered", before_recovery=before)


def _score(trial: Trial) -> float:
    return -np.inf if trial.score is None else trial.score


def _latency_s(certified: Certified) -> float:
    return certified.certificate.latency_s


def _merit(certified: Certified) -> tuple[float, float]:
    return certified.finalist.validation, -certified.certificate.latency_s
