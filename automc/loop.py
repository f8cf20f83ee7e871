"""The loop: ask, price, evaluate, tell. A generator of trials, resumable from the ones already known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from automc.policy import Policy
from automc.protocols import Agent, Evaluator, Executor, Predictor
from automc.space import SearchSpace
from automc.trial import Cost, Trial

__all__ = ["Loop"]


@dataclass
class Loop:
    """Everything one search loop needs.

    Attributes:
        batch: how many policies are asked for at a time.
        out_of_time: tells when to stop asking.
    """

    space: SearchSpace
    agent: Agent
    evaluator: Evaluator
    executor: Executor
    predictor: Predictor
    batch: int = 4
    out_of_time: Callable[[], bool] = lambda: False

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
            for trial in self._evaluate(fresh, number):
                done[trial.policy.digest] = trial
                number += 1
                self.agent.tell([trial])
                yield trial

    def _evaluate(self, policies: Sequence[Policy], number: int) -> Iterator[Trial]:
        if not policies:
            return
        costs = self.predictor.predict(self.space.encode(policies))
        results = iter(self.executor.map(self.evaluator.evaluate, policies))
        for i, policy in enumerate(policies):
            start = time.perf_counter()
            result = next(results)
            yield _trial(number + i, policy, costs[i], result, time.perf_counter() - start)


def _trial(number: int, policy: Policy, cost: Cost, result: float | Exception, seconds: float) -> Trial:
    if isinstance(result, Exception):
        reason = f"{type(result).__name__}: {result}"
    elif not np.isfinite(result):
        reason = f"the score is {result}"
    else:
        return Trial(number, policy, cost, float(result), seconds=seconds)
    return Trial(number, policy, cost, state="failed", reason=reason, seconds=seconds)
