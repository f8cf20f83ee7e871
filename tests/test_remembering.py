"""No model is evaluated twice: policies of the same key share a score, and estimates and failures are not remembered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from automc.execute.remembering import Remembering
from automc.execute.serial import Serial
from automc.policy import Policy, Prune
from automc.protocols import Scored

ONE, OTHER, LONGER = (
    Policy.of([("a", Prune(4))]),
    Policy.of([("b", Prune(4))]),
    Policy.of([("a", Prune(4)), ("b", Prune(4))]),
)


class Scorer:
    """Scores by the length of a policy; `answers` come first, an exception is raised."""

    def __init__(self, answers: Sequence[float | Exception] = ()) -> None:
        self.answers = list(answers)
        self.calls: list[Policy] = []

    def evaluate(self, policy: Policy) -> float:
        self.calls.append(policy)
        answer = self.answers.pop(0) if self.answers else 1.0 / len(policy)
        if isinstance(answer, Exception):
            raise answer
        return answer


def collected(executor: Remembering, policies: Sequence[Policy]) -> list[tuple[Policy, float | None]]:
    for policy in policies:
        executor.submit(policy, -np.inf)
    found: list[tuple[Policy, float | None]] = []
    while len(found) < len(policies):
        found.extend((outcome.policy, outcome.score) for outcome in executor.collect())
    return found


def by_length(scorer: Scorer) -> Remembering:
    return Remembering(Serial(scorer), lambda policy: str(len(policy)))


def test_policies_that_are_the_same_model_share_a_score() -> None:
    scorer = Scorer()
    executor = by_length(scorer)
    assert collected(executor, [ONE, OTHER, LONGER]) == [(ONE, 1.0), (OTHER, 1.0), (LONGER, 0.5)]
    assert collected(executor, [OTHER]) == [(OTHER, 1.0)]
    assert scorer.calls == [ONE, LONGER]


def test_an_estimate_and_a_failure_are_each_policys_own() -> None:
    for answer in (Scored(0.2, samples=64), RuntimeError("no")):
        scorer = Scorer([answer])
        found = collected(by_length(scorer), [ONE, OTHER])
        assert found[0][1] == (None if isinstance(answer, RuntimeError) else 0.2)
        assert found[1] == (OTHER, 1.0)
        assert scorer.calls == [ONE, OTHER]


def test_what_is_known_from_elsewhere_is_not_evaluated() -> None:
    scorer = Scorer()
    executor = by_length(scorer)
    executor.known["1"] = 0.75
    assert collected(executor, [ONE]) == [(ONE, 0.75)]
    assert not scorer.calls
