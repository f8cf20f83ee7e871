"""The loop: ask, price, evaluate, tell. A generator of trials, resumable from the ones already known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from automc.policy import Policy
from automc.protocols import Agent, Executor, Outcome, Predictor, Scored
from automc.space import SearchSpace
from automc.trial import Cost, Trial

__all__ = ["Loop"]

_AHEAD = 0.5
"""Policies that wait for a worker, as a share of the workers, so that none waits for the agent; asking for many at a time costs less each."""
_PATIENCE = 10
"""So many times in a row an agent may propose nothing but what is known."""


@dataclass
class Loop:
    """Everything one search loop needs.

    Attributes:
        batch: how many policies are asked for at a time when the search is synchronous.
        synchronous: the agent is asked again only when it has been told everything it asked for, in the order in which it
            asked, so that the same seed gives the same trials however long evaluations take. Otherwise it is asked ahead, while
            workers are busy, and told results as they arrive.
        out_of_time: tells when to stop asking; what is begun is finished.
        metrics: of the front; a trial whose score is beaten by the merit of one that costs no more in any of them may be estimated.
    """

    space: SearchSpace
    agent: Agent
    executor: Executor
    predictor: Predictor
    batch: int = 4
    synchronous: bool = True
    out_of_time: Callable[[], bool] = lambda: False
    metrics: Sequence[str] = ("latency_s",)

    def run(
        self, n_trials: int, known: Sequence[Trial] = (), number: int | None = None, recorded: Sequence[Trial] = ()
    ) -> Iterator[Trial]:
        """Yield trials until `n_trials` exist with the `known` ones.

        Ends early when the agent has nothing left to propose or `out_of_time` says so. The agent is told the `known` trials at
        the start. The `recorded` ones, of a search that was broken off, take the place of evaluations: they are yielded and
        told when the agent proposes them again, and all that are left as soon as it proposes something else. Neither are ever
        evaluated again. New trials are numbered from `number` on, by default after all others.
        """
        after = 1 + max((trial.number for trial in (*known, *recorded)), default=-1)
        course = _Course(self, known, recorded, after if number is None else number)
        self.agent.tell(list(known))
        yield from course.trials(n_trials)


class _Course:
    """Where one run of a loop stands.

    Attributes:
        done: digest -> trial of what the agent was told or is about to be.
        recorded: digest -> trial of what was recorded and not yet proposed.
        flying: digest -> trial without a result of what is being evaluated.
        landed: digest -> trial of what has ended and was not told yet.
        departed: the agent has last proposed something that the record has not.
    """

    def __init__(self, loop: Loop, known: Sequence[Trial], recorded: Sequence[Trial], number: int) -> None:
        self.loop = loop
        self.done = {trial.policy.digest: trial for trial in known}
        self.recorded = {t.policy.digest: t for t in recorded if t.policy.digest not in self.done}
        self.number = number
        self.idle = 0
        self.departed = False
        self.flying: dict[str, Trial] = {}
        self.landed: dict[str, Trial] = {}

    def trials(self, n_trials: int) -> Iterator[Trial]:
        if not self.loop.synchronous:
            yield from self._stream(n_trials)
            return
        while asked := self._ask(self._wanted(n_trials)):
            fresh = self._fresh(asked)
            yield from self._begin(fresh)
            while self.flying:
                yield from self._land(self.loop.executor.collect())
            self._tell([p.digest for p in fresh])
            yield from self._depart()

    def _stream(self, n_trials: int) -> Iterator[Trial]:
        """The agent thinks in a thread of its own while results come in, and is told them when it is done."""
        asking: Future[list[Policy]] | None = None
        is_dry = False  # the agent had nothing to propose for what it knows
        with ThreadPoolExecutor(1, "agent") as thinking:
            while True:
                if asking is None and not is_dry and (count := self._wanted(n_trials)):
                    asking = thinking.submit(self._ask, count)
                if asking is not None and (asking.done() or len(self.flying) < self.loop.executor.slots):
                    asked, asking = asking.result(), None
                    is_dry = not asked
                    yield from self._begin(self._fresh(asked))
                    yield from self._depart()
                elif self.flying:
                    yield from self._land(self.loop.executor.collect())
                    is_dry = False
                else:
                    return
                if asking is None:
                    self._tell(list(self.landed))

    def _wanted(self, n_trials: int) -> int:
        """How many policies to ask for now."""
        loop, flying = self.loop, len(self.flying)
        left = n_trials - len(self.done) - flying
        if left <= 0 or self.idle >= _PATIENCE or loop.out_of_time():
            return 0
        if loop.synchronous:
            return min(loop.batch, left)
        ahead = max(1, int(_AHEAD * loop.executor.slots))
        wanted = min(loop.executor.slots + ahead - flying, left)
        return wanted if wanted >= min(left, max(1, ahead // 2)) else 0

    def _ask(self, count: int) -> list[Policy]:
        return list(self.loop.agent.ask(count)) if count else []

    def _begin(self, fresh: Sequence[Policy]) -> Iterator[Trial]:
        """Have policies evaluated, those that the record has not."""
        self.departed = self._submit([p for p in fresh if p.digest not in self.recorded])
        yield from self._recall([p.digest for p in fresh if p.digest in self.recorded])

    def _depart(self) -> Iterator[Trial]:
        """Tell the rest of the record once the agent has left it."""
        if self.departed and self.recorded:
            rest = list(self.recorded)
            yield from self._recall(rest)
            self._tell(rest)

    def _fresh(self, asked: Sequence[Policy]) -> list[Policy]:
        """The policies without a result so far; of the others the agent is told again."""
        self.loop.agent.tell([self.done[p.digest] for p in asked if p.digest in self.done])
        fresh = {p.digest: p for p in asked if p.digest not in self.done and p.digest not in self.flying}
        self.idle = self.idle + 1 if asked and not fresh else 0
        return list(fresh.values())

    def _submit(self, policies: Sequence[Policy]) -> bool:
        """Have policies evaluated; whether there are any."""
        costs = self._prices(policies)
        rivals = [self._rival(cost) for cost in costs]
        for policy, cost, rival in zip(policies, costs, rivals, strict=True):
            self.flying[policy.digest] = Trial(self.number, policy, cost, state="failed", reason="not evaluated")
            self.number += 1
            self.loop.executor.submit(policy, rival)
        return bool(policies)

    def _land(self, outcomes: Sequence[Outcome]) -> Iterator[Trial]:
        for outcome in outcomes:
            trial = _ended(self.flying.pop(outcome.policy.digest), outcome)
            self.landed[trial.policy.digest] = self.done[trial.policy.digest] = trial
            yield trial

    def _recall(self, digests: Sequence[str]) -> Iterator[Trial]:
        """Recorded trials, priced as the predictor is now."""
        trials = [self.recorded.pop(digest) for digest in digests]
        for trial, cost in zip(trials, self._prices([t.policy for t in trials]), strict=True):
            self.landed[trial.policy.digest] = self.done[trial.policy.digest] = replace(trial, cost=cost)
            yield self.done[trial.policy.digest]

    def _tell(self, digests: Sequence[str]) -> None:
        if told := [self.landed.pop(digest) for digest in digests]:
            self.loop.agent.tell(told)

    def _prices(self, policies: Sequence[Policy]) -> list[Cost]:
        if not policies:
            return []
        costs = self.loop.predictor.predict(self.loop.space.encode(policies))
        return [costs[i] for i in range(len(policies))]

    def _rival(self, cost: Cost) -> float:
        """The best merit among trials that cost no more, and -inf where there are none: a score below it is worth less, however near the model."""
        done = self.done.values()
        merits = [t.merit for t in done if t.samples is None and self._no_more(t.cost, cost)]
        return max(merits, default=-np.inf)

    def _no_more(self, cost: Cost, than: Cost) -> bool:
        pairs = [(cost.get(metric), than.get(metric)) for metric in self.loop.metrics]
        return all(a is not None and b is not None and a <= b for a, b in pairs)


def _ended(trial: Trial, outcome: Outcome) -> Trial:
    trial = replace(trial, seconds=outcome.seconds, ended=time.time())
    score = outcome.score
    if score is None:
        return replace(trial, reason=outcome.reason)
    if not np.isfinite(score):
        return replace(trial, reason=f"the score is {score}")
    told = Scored.of(score)
    return replace(trial, score=float(score), worth=told.worth, state="complete", reason="", samples=told.samples)
