"""From a prepared model to a certified winner: search, certify, correct, search on, recover, certify again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from automc import registry
from automc.aim import Expected
from automc.budget import Budget, Limit
from automc.certify import Candidate, Certified, Certifier, Failed
from automc.clock import Clock
from automc.errors import AutomcError
from automc.evaluate.fast import is_comparable
from automc.evaluate.models import model_digest
from automc.execute.remembering import Remembering
from automc.execute.serial import Serial
from automc.guard import Guarded
from automc.idle import idle_knobs, without_idle
from automc.loop import Loop
from automc.policy import Policy
from automc.predict.bottleneck import bottleneck
from automc.predict.predictor import LearnedPredictor
from automc.prepare import Prepared
from automc.protocols import Agent, Evaluator, Executor, Observer, Scored
from automc.recipe import Fidelity
from automc.recovery.fidelity import halve
from automc.recovery.planning import Effort, fine_tuned
from automc.recovery.recover import recover, refine_within
from automc.result import Finalist
from automc.standing import Standing
from automc.trial import Cost, Trial
from automc.warm import WarmStart

__all__ = ["Engine", "Settings"]

MAX_ROUNDS = 5
BATCH = 4
"""Policies asked for at a time; more where there are more workers."""
RECOVERING = 0.3
"""Share of a limited time that recovery has at most, and fine-tuning behind it the same."""
HALVING = 0.4
"""Share of the time for recovery in which candidates are told apart by short distillations, where their scores cannot."""
REFINING = 0.25
"""Share of the time for recovery in which layers are solved again, before they are trained."""


@dataclass(frozen=True)
class Settings:
    """How to search.

    Attributes:
        objectives: metrics without a limit that the front is drawn in too.
        recover_s: for all finalists together, 0 turns recovery off.
        deadline: a time.monotonic(); `timeout_s` before it the search was asked for.
        fidelity: whether candidates are distilled for a while to be told apart; "on", "off", or "auto": where the winner lost much.
        finetune_epochs: of the winner, on Ray Tune, with as many trainings at a time as there are `workers`; 0 turns it off.
        ray_address: of the cluster that fine-tunes; None takes this machine.
        synchronous: the same seed gives the same trials, at the price of workers that wait for each other; see `Loop`.
    """

    budget: Budget
    agent: str = "auto"
    trials: int = 60
    deadline: float | None = None
    timeout_s: float = np.inf
    finetune_epochs: int = 0
    fidelity: Fidelity = "auto"
    workers: int = 1
    ray_address: str | None = None
    seed: int = 0
    recover_s: float = 60.0
    batch_size: int = 1
    synchronous: bool = True
    objectives: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of the front: the limited ones first."""
        return tuple(dict.fromkeys((*self.budget.metrics, *self.objectives)))

    @property
    def watched(self) -> Budget:
        """The budget with a limit that everything holds for each objective: what has to be priced."""
        loose = (Limit(metric, np.inf) for metric in self.metrics if metric not in self.budget.metrics)
        return Budget((*self.budget.limits, *loose))

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, infinite where there is none."""
        return np.inf if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def reserved_s(self) -> float:
        """Seconds that the search leaves to what follows it."""
        share = RECOVERING * self.timeout_s
        return min(self.recover_s, share) + (share if self.finetune_epochs and np.isfinite(share) else 0.0)


@dataclass
class Engine:
    """One search over one prepared model. `trials()` does the work and yields what happens; then `standing.best` is the winner.

    Attributes:
        record: told every trial as it ends, before it is yielded: the run directory and the tracker.
        keep: called whenever finalists have been measured, so that the best so far is on disk whatever happens next.
        known: trials of an earlier attempt at the same search; they are not evaluated again.
        starts: policies of the space that are tried before the agent is asked.
        options: what single agents understand, such as where Optuna keeps its study.
        execute: makes what evaluates from what scores a policy; `release` ends its workers, once the search is over.
        trained: models that an earlier attempt trained; they are measured again with the finalists.
        checkpoints: where fine-tuning keeps them; None turns it off.
        standing: what was found so far; its `best` is the winner.
    """

    prepared: Prepared
    settings: Settings
    observer: Observer
    clock: Clock
    record: Callable[[Trial], None] = lambda _: None
    keep: Callable[[], None] = lambda: None
    known: Sequence[Trial] = ()
    starts: Sequence[Policy] = ()
    options: dict[str, object] = field(default_factory=dict)
    execute: Callable[[Evaluator], Executor] = Serial
    release: Callable[[], None] = lambda: None
    trained: Sequence[Candidate] = ()
    checkpoints: Path | None = None

    def __post_init__(self) -> None:
        self._next = 1 + max((trial.number for trial in self.known), default=-1)
        self.certifier = Certifier(self.prepared, self.settings.budget, self.settings.batch_size, self.settings.seed)
        limits = self.settings.budget.resolve(self.dense.cost)
        self.standing = Standing(self.prepared, self.settings.budget, limits, self.dense, self.prepared.predictor)
        # Priced anew, the space may have narrowed.
        searched = (trial for trial in self.known if trial.stage == "search")
        self._recorded = {t.policy.digest: t for t in searched if self.prepared.space.contains(t.policy)}
        self._executor = self._remembering()
        self._searches, self._certify_s, self._halved_s = True, 0.0, 0.0

    def _remembering(self) -> Remembering:
        explicit = self.prepared.stitcher.explicit
        evaluator = self.prepared.evaluator(self.dense.validation, self.observer)
        self._recorded = {d: t for d, t in self._recorded.items() if t.score is None or is_comparable(t, evaluator)}
        executor = Remembering(self.execute(evaluator), lambda policy: explicit(policy).digest)
        full = (t for t in self._recorded.values() if t.samples is None)
        executor.known.update(
            (explicit(t.policy).digest, Scored(t.score, t.worth)) for t in full if t.score is not None
        )
        return executor

    @property
    def dense(self) -> Finalist:
        """The uncompressed model, measured and scored."""
        return self.certifier.dense

    @property
    def limiting(self) -> str | None:
        """Where nothing holds the budget and it limits latency: what takes the time of what came nearest."""
        nearest = self.standing.smallest
        if self.standing.best is not None or nearest is None or self.standing.limits.limit("latency_s") is None:
            return None
        predictor = self.standing.predictor
        return bottleneck(predictor, nearest.candidate.policy) if isinstance(predictor, LearnedPredictor) else None

    def trials(self) -> Iterator[Trial]:
        """Search, certify and recover; yields each trial as it ends, finalists and recovered ones too.

        Raises:
            AutomcError: not a single policy could be evaluated.
        """
        if not self.settings.synchronous:
            self._take_recorded()
        if self.dense.holds:
            self.observer.message(f"The dense model already meets {self.settings.budget}; searching for a faster one.")
            yield from self._certify([Candidate(Policy(), self.prepared.traced.model)])
        for attempt in range(MAX_ROUNDS):
            yield from self._search(attempt)
            fresh = self.standing.finalists()
            if fresh:
                yield from self._certify(fresh)
                self.standing.correct(len(fresh))
            if (not fresh or self._is_settled()) and not self._take_recorded():
                break
        if self.trained:
            yield from self._certify(self.trained)
        if self.standing.best is not None and min(self.settings.recover_s, self._left_s) > 0:
            yield from self._halve()
            yield from self._recover()
        if self.standing.best is not None and self.settings.finetune_epochs and self.checkpoints is not None:
            yield from self._finetune(self.standing.best, self.checkpoints)
        self.clock.stop()

    @property
    def _left_s(self) -> float:
        """Seconds that may be spent before what comes of them has to be measured."""
        return max(0.0, self.settings.left_s - self._certify_s)

    def _is_late(self) -> bool:
        return self._left_s <= self.settings.reserved_s

    def _is_settled(self) -> bool:
        return (self.standing.best is not None and not self.standing.better_expected()) or self._is_late()

    def _take_recorded(self) -> bool:
        """Count what an earlier attempt recorded and this one did not propose; whether there is any."""
        rest, self._recorded = list(self._recorded.values()), {}
        self.standing.done.extend(rest)
        self.standing.reprice()
        return bool(rest)

    def _search(self, attempt: int) -> Iterator[Trial]:
        """One stretch of the search: all trials first, a tenth more after each round that was measured."""
        wanted = self.settings.trials if attempt == 0 else len(self.standing.done) + max(4, self.settings.trials // 10)
        self.clock.start("search")
        self.observer.stage("search", max(0, wanted - len(self.standing.done)))
        for trial in self._loop(attempt).run(wanted, self.standing.done, self._next, list(self._recorded.values())):
            self.standing.done.append(trial)
            self.observer.advance(1.0, self._note())
            if self._recorded.pop(trial.policy.digest, None) is None:
                self._next = max(self._next, trial.number + 1)
                self.record(trial)
                yield trial
        self.clock.stop()
        if self.standing.done and all(trial.state == "failed" for trial in self.standing.done):
            raise AutomcError(f"No policy could be evaluated; the first failed with {self.standing.done[0].reason}.")

    def _loop(self, attempt: int) -> Loop:
        return Loop(
            self.prepared.space, self._agent(attempt), self._executor, self.standing.predictor,
            batch=max(BATCH, self._executor.slots), synchronous=self.settings.synchronous,
            out_of_time=lambda: bool(self.standing.done) and self._is_late(), metrics=self.settings.metrics,
        )  # fmt: skip

    def _agent(self, attempt: int) -> Agent:
        expected = Expected(self.standing.predictor, self.standing.aim)
        problem = replace(
            self.prepared.problem(self._target(), expected, self.dense.validation, self.settings.trials),
            objectives=tuple(m for m in self.settings.objectives if m not in self.settings.budget.metrics),
            options=self.options,
        )
        seed = self.settings.seed + attempt
        felt = without_idle(problem)
        if attempt == 0 and (knobs := idle_knobs(problem, felt)):
            self.observer.message(f"Nothing that is limited feels {' or '.join(knobs)}: left out of the search.")
        make = registry.load("agent", self.settings.agent)
        agent = Guarded.of(self.settings.agent, lambda: make(felt, seed), felt.space)
        starts = [kept for policy in self.starts if len(kept := felt.space.restricted(policy))]
        return WarmStart(agent, felt, starts, seed) if starts else agent

    def _target(self) -> Budget:
        """What agents aim at: the budget, or half the dense latency where the dense model already holds the budget."""
        if not self.dense.holds:
            return self.standing.limits
        latency_s = self.dense.cost.latency_s or 0.0
        others = tuple(limit for limit in self.standing.limits if limit.metric != "latency_s")
        return Budget((Limit("latency_s", 0.5 * latency_s), *others))

    def _note(self) -> str:
        full = (
            t for t in self.standing.done if t.score is not None and t.samples is None and self.standing.is_likely(t)
        )
        best = max(full, key=_score, default=None)
        if best is None or best.cost.latency_s is None:
            return f"{len(self.standing.done)} trials"
        return f"best {_score(best):.4f} at {1e3 * best.cost.latency_s:.1f} ms predicted"

    def _certify(self, candidates: Sequence[Candidate]) -> Iterator[Trial]:
        self.clock.start("certify")
        self.observer.stage("measure the finalists", None)
        if self._searches:
            self._executor.pause()
        start = time.perf_counter()
        found = self.certifier.certify(candidates)
        self._certify_s = time.perf_counter() - start
        seconds = self._certify_s / max(1, len(found))
        trials = [self._trial_of(one, seconds) for one in found]
        self.standing.certified.extend(
            one for one in found if isinstance(one, Certified) and not self.standing.has_better(one)
        )
        self.standing.measured.extend(trial for trial in trials if trial.state == "complete")
        self.keep()
        for trial in trials:
            self.record(trial)
            yield trial
        self.clock.stop()

    def _trial_of(self, one: Certified | Failed, seconds: float) -> Trial:
        number, policy = self._next, one.candidate.policy
        self._next += 1
        if isinstance(one, Failed):
            stage: Literal["finalist", "recovered"] = "recovered" if one.candidate.stage == "recovered" else "finalist"
            self.standing.failed.add(policy.digest)
            self.observer.message(f"A {stage} could not be measured: {one.reason}", "warning")
            return Trial(number, policy, Cost(), state="failed", reason=one.reason, seconds=seconds, stage=stage)
        return one.finalist.trial(number, seconds)

    def _recovery_s(self) -> float:
        """Seconds for all of recovery."""
        left_s = self._left_s * (0.5 if self.settings.finetune_epochs else 1.0)
        return min(self.settings.recover_s, left_s + self._halved_s)

    def _halve(self) -> Iterator[Trial]:
        """Tell candidates apart by short distillations where their scores cannot, and measure those that promise most."""
        if self.settings.fidelity == "off" or (self.settings.fidelity == "auto" and not self.standing.is_strained):
            return
        self.clock.start("distil")
        start = time.perf_counter()
        try:
            self.standing.promises = halve(
                self.standing.contenders(), self.prepared, seconds=HALVING * self._recovery_s(),
                seed=self.settings.seed, observer=self.observer,
            )  # fmt: skip
        except Exception as error:  # candidates that cannot be trained are told apart by their scores alone
            self.observer.message(f"Candidates could not be distilled: {type(error).__name__}: {error}", "warning")
        self._halved_s = time.perf_counter() - start
        self.clock.stop()
        promising = self.standing.promising()
        if promising:
            yield from self._certify(promising)

    def _recover(self) -> Iterator[Trial]:
        """Fine-tune the finalists that are worth it, for equal times."""
        chosen = self.standing.recoverable()
        if not chosen:
            return
        seconds = self._recovery_s() - self._halved_s
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

    def _finetune(self, best: Certified, folder: Path) -> Iterator[Trial]:
        """Fine-tune the winner on Ray Tune; what comes out is measured, and wins where it scores better."""
        candidate, finalist = best.candidate, best.finalist
        left_s = self._left_s
        if not len(candidate.policy) or left_s <= 0:
            return
        self.clock.start("finetune")
        self._searches = False
        self.release()
        effort = Effort(
            self.settings.finetune_epochs, None if np.isinf(left_s) else left_s, workers=self.settings.workers,
            address=self.settings.ray_address, seed=self.settings.seed,
        )  # fmt: skip
        try:
            place = folder / f"{candidate.policy.digest}-{model_digest(candidate.model)}"
            outcome = fine_tuned(candidate.model, self.prepared, effort, place, self.observer)
        except Exception as error:  # the winner is handed over as it is
            self.observer.message(f"Fine-tuning failed and is left out: {type(error).__name__}: {error}", "warning")
            return
        finally:
            self.clock.stop()
        before = finalist.before_recovery or (finalist.validation, finalist.test)
        yield from self._certify([replace(candidate, model=outcome.model, stage="recovered", before_recovery=before)])


def _score(trial: Trial) -> float:
    return -np.inf if trial.score is None else trial.score
