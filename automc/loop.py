"""The loop: ask, price, evaluate, tell. A generator of trials, resumable from the ones already known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from automc.policy import Policy
from automc.protocols import Agent, Estimate, Evaluator, Executor, Predictor, Racer
from automc.space import SearchSpace
from automc.trial import Cost, Trial

__all__ = ["Loop"]


@dataclass
class Loop:
    """Everything one search loop needs.

    Attributes:
        batch: how many policies are asked for at a time.
        out_of_time: tells when to stop asking.
        metrics: of the front; a trial that is beaten in score by one that costs no more in any of them may be estimated.
    """

    space: SearchSpace
    agent: Agent
    evaluator: Evaluator
    executor: Executor
    predictor: Predictor
    batch: int = 4
    out_of_time: Callable[[], bool] = lambda: False
    metrics: Sequence[str] = ("latency_s",)

    def run(self, n_trials: int, known: Sequence[Trial] = (), number: int | None = None) -> Iterator[Trial]:
        """Yield new trials, each already told to the agent, until `n_trials` exist with the `known` ones.

        Ends early when the agent has nothing left to propose or `out_of_time` says so. Policies of `known` are never
        evaluated again: an agent that proposes one is told its result. New trials are numbered from `number` on, by
        default after the known ones.
        """
        done = {trial.policy.digest: trial for trial in known}
        number = 1 + max((trial.number for trial in known), default=-1) if number is None else number
        self.agent.tell(list(known))
        idle = 0
        while len(done) < n_trials and not self.out_of_time() and idle < 10:
            asked = list(self.agent.ask(min(self.batch, n_trials - len(done))))
            if not asked:
                return
            self.agent.tell([done[p.digest] for p in asked if p.digest in done])
            fresh = list({p.digest: p for p in asked if p.digest not in done}.values())
            idle = 0 if fresh else idle + 1
            for trial in self._evaluate(fresh, number, list(done.values())):
                done[trial.policy.digest] = trial
                number += 1
                self.agent.tell([trial])
                yield trial

    def _evaluate(self, policies: Sequence[Policy], number: int, done: Sequence[Trial]) -> Iterator[Trial]:
        if not policies:
            return
        costs = self.predictor.predict(self.space.encode(policies))
        rivals = {p.digest: self._rival(costs[i], done) for i, p in enumerate(policies)}
        results = iter(self.executor.map(self._scorer(rivals), policies))
        for i, policy in enumerate(policies):
            start = time.perf_counter()
            result = next(results)
            yield _trial(number + i, policy, costs[i], result, time.perf_counter() - start)

    def _scorer(self, rivals: Mapping[str, float]) -> Callable[[Policy], float]:
        evaluator = self.evaluator
        if not isinstance(evaluator, Racer):
            return evaluator.evaluate
        return lambda policy: evaluator.race(policy, rivals[policy.digest])

    def _rival(self, cost: Cost, done: Sequence[Trial]) -> float:
        """The best score among trials that cost no more, and -inf where there are none: what a new trial has to exceed."""
        scores = [t.score for t in done if t.score is not None and t.samples is None and self._no_more(t.cost, cost)]
        return max(scores, default=-np.inf)

    def _no_more(self, cost: Cost, than: Cost) -> bool:
        pairs = [(cost.get(metric), than.get(metric)) for metric in self.metrics]
        return all(a is not None and b is not None and a <= b for a, b in pairs)


def _trial(number: int, policy: Policy, cost: Cost, result: float | Exception, seconds: float) -> Trial:
    if isinstance(result, Exception):
        reason = f"{type(result).__name__}: {result}"
    elif not np.isfinite(result):
        reason = f"the score is {result}"
    else:
        samples = result.samples if isinstance(result, Estimate) else None
        return Trial(number, policy, cost, float(result), seconds=seconds, samples=samples)
    return Trial(number, policy, cost, state="failed", reason=reason, seconds=seconds)
