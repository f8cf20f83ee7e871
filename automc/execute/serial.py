"""Evaluations one after another, in this process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from automc.policy import Policy
from automc.protocols import Evaluator, Outcome, Racer

__all__ = ["Serial", "evaluated"]


def evaluated(evaluator: Evaluator, policy: Policy, rival: float) -> Outcome:
    """Score one policy; whatever goes wrong becomes the reason."""
    start = time.perf_counter()
    try:
        race = isinstance(evaluator, Racer)
        score = evaluator.race(policy, rival) if race else evaluator.evaluate(policy)  # type: ignore[attr-defined]
        return Outcome(policy, score, seconds=time.perf_counter() - start)
    except Exception as error:
        return Outcome(policy, reason=f"{type(error).__name__}: {error}", seconds=time.perf_counter() - start)


class Serial:
    """The executor of a single worker: evaluates when it is asked for the outcome."""

    slots = 1

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._waiting: deque[tuple[Policy, float]] = deque()

    def submit(self, policy: Policy, rival: float) -> None:
        """Keep the policy until its turn."""
        self._waiting.append((policy, rival))

    def collect(self) -> Sequence[Outcome]:
        """Evaluate the policy that has waited longest."""
        return [evaluated(self.evaluator, *self._waiting.popleft())]

    def pause(self) -> None:
        """Nothing runs between two calls."""
