"""The pool, with workers that a script answers for: retries, timeouts, replacements, growth, and no endless wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pytest

from automc.errors import AutomcError, MissingError
from automc.execute.pool import Lost, Pool
from automc.policy import Policy, Prune
from automc.protocols import Outcome

POLICIES = [Policy.of([("a", Prune(keep))]) for keep in range(1, 9)]
NEVER = object()
"""What a worker that hangs answers."""


class Scripted:
    """Workers by number; `answer(worker, policy)` is an Outcome, a Lost, or NEVER. `loads(worker)` likewise, None where it loads."""

    def __init__(self, answer: Callable[[int, Policy], Any], loads: Callable[[int], Any] = lambda _: None) -> None:
        self.answer, self.loads = answer, loads
        self.started = 0
        self.stopped: list[int] = []
        self.calls: list[tuple[int, Policy]] = []
        self.room = 2
        self._tickets: dict[int, Any] = {}

    def start(self) -> int:
        self.started += 1
        return self.started

    def load(self, worker: int) -> Hashable:
        return self._ticket(self.loads(worker))

    def ping(self, worker: int) -> Hashable:
        return self._ticket(self.loads(worker))

    def evaluate(self, worker: int, policy: Policy, rival: float) -> Hashable:
        self.calls.append((worker, policy))
        return self._ticket(self.answer(worker, policy))

    def wait(self, tickets: Sequence[Hashable], timeout_s: float) -> Sequence[Hashable]:
        ended = [ticket for ticket in tickets if self._tickets[ticket] is not NEVER]  # type: ignore[index]
        if not ended:
            time.sleep(min(timeout_s, 0.01))
        return ended

    def result(self, ticket: Hashable) -> Any:
        answer = self._tickets[ticket]  # type: ignore[index]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self, worker: int) -> None:
        self.stopped.append(worker)

    def capacity(self) -> int:
        return self.room

    def _ticket(self, answer: Any) -> int:
        self._tickets[len(self._tickets)] = answer
        return len(self._tickets) - 1


def scored(worker: int, policy: Policy) -> Outcome:
    return Outcome(policy, float(worker))


def everything(pool: Pool, policies: Sequence[Policy]) -> dict[Policy, Outcome]:
    for policy in policies:
        pool.submit(policy, -np.inf)
    found: dict[Policy, Outcome] = {}
    while len(found) < len(policies):
        found.update({outcome.policy: outcome for outcome in pool.collect()})
    return found


def test_each_worker_has_one_evaluation_at_a_time_and_all_have_work() -> None:
    crew = Scripted(scored)
    found = everything(Pool(crew, 2), POLICIES)
    assert {outcome.score for outcome in found.values()} == {1.0, 2.0}
    assert [policy for _, policy in crew.calls] == POLICIES


def test_a_policy_whose_worker_dies_is_tried_once_more_on_another() -> None:
    def answer(worker: int, policy: Policy) -> Any:
        return Lost("the worker died") if worker == 1 else scored(worker, policy)

    crew = Scripted(answer)
    found = everything(Pool(crew, 2), POLICIES[:1])
    assert found[POLICIES[0]].score == 2.0
    assert crew.calls == [(1, POLICIES[0]), (2, POLICIES[0])]
    assert (crew.stopped, crew.started) == ([1], 3)


def test_what_raises_is_tried_elsewhere_though_its_worker_lives() -> None:
    crew = Scripted(
        lambda worker, policy: Outcome(policy, reason="ValueError: no") if worker == 1 else scored(2, policy)
    )
    assert everything(Pool(crew, 2), POLICIES[:1])[POLICIES[0]].score == 2.0
    assert not crew.stopped


def test_what_fails_twice_fails_with_its_reason_and_the_rest_goes_on() -> None:
    def answer(worker: int, policy: Policy) -> Any:
        return Lost("the worker ran out of memory") if policy == POLICIES[3] else scored(worker, policy)

    crew = Scripted(answer)
    found = everything(Pool(crew, 2), POLICIES)
    assert found[POLICIES[3]].reason == "the worker ran out of memory"
    assert sum(outcome.score is not None for outcome in found.values()) == len(POLICIES) - 1
    assert sum(policy == POLICIES[3] for _, policy in crew.calls) == 2


def test_both_reasons_are_told_where_they_differ() -> None:
    answers = iter([Lost("the worker died"), Outcome(POLICIES[0], reason="MemoryError: ")])
    found = everything(Pool(Scripted(lambda *_: next(answers)), 1), POLICIES[:1])
    assert found[POLICIES[0]].reason == "MemoryError:  (the first time: the worker died)"


def test_a_worker_that_hangs_is_replaced() -> None:
    crew = Scripted(lambda worker, policy: NEVER if policy == POLICIES[0] else scored(worker, policy))
    found = everything(Pool(crew, 2, trial_timeout_s=0.05), POLICIES)
    assert found[POLICIES[0]].reason == "it took longer than 0.05 s"
    assert len(crew.stopped) == 2
    assert sum(outcome.score is not None for outcome in found.values()) == len(POLICIES) - 1


def test_workers_that_never_start_end_the_search() -> None:
    crew = Scripted(scored, loads=lambda _: NEVER)
    with pytest.raises(MissingError, match=r"No worker could be started within 0\.05 s"):
        everything(Pool(crew, 2, start_timeout_s=0.05), POLICIES)


def test_workers_that_cannot_load_end_the_search_with_the_reason() -> None:
    crew = Scripted(scored, loads=lambda _: Lost("the worker raised ValueError: no"))
    with pytest.raises(AutomcError, match="Workers fail to start: the worker raised ValueError: no"):
        everything(Pool(crew, 2), POLICIES)
    assert crew.started < 6


def test_workers_that_died_while_nothing_ran_cost_no_policy_an_attempt() -> None:
    dead: set[int] = set()
    crew = Scripted(
        lambda worker, policy: Lost("gone") if worker in dead else scored(worker, policy),
        loads=lambda worker: Lost("gone") if worker in dead else None,
    )
    pool = Pool(crew, 2)
    everything(pool, POLICIES[:2])
    for seat in pool._seats:
        seat.since -= 120.0
    dead.update({1, 2})
    found = everything(pool, POLICIES[2:])
    assert all(outcome.score is not None for outcome in found.values())
    assert set(crew.stopped) == {1, 2}


def test_automatic_pools_use_room_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automc.execute.pool._LOOK_S", 0.0)
    crew = Scripted(scored)
    pool = Pool(crew, None)
    assert pool.slots == 2
    crew.room = 4
    found = everything(pool, POLICIES)
    assert pool.slots == 4
    assert {outcome.score for outcome in found.values()} > {1.0, 2.0}


def test_workers_that_wait_for_room_do_not_hold_up_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automc.execute.pool._LOOK_S", 0.05)
    Pool(Scripted(scored, loads=lambda worker: NEVER if worker == 2 else None), 2).pause()
