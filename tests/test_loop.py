"""The loop: nothing is evaluated twice, failures are data, and a search goes on where it stopped."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from automc.execute.serial import Serial, evaluated
from automc.loop import Loop
from automc.policy import Policy, Prune
from automc.protocols import Costs, Outcome
from automc.space import Codes, Domain, SearchSpace
from automc.trial import Cost, Trial

SPACE = SearchSpace(
    (Domain("a", "prune", (None, Prune(8), Prune(4), Prune(2))), Domain("b", "prune", (None, Prune(1))))
)


class Linear:
    """Latency falls by 10 ms per code."""

    def predict(self, codes: Codes) -> Costs:
        latency = 0.1 - 0.01 * codes.sum(1).astype(float)
        return Costs(latency, latency, latency, latency, latency)


class InOrder:
    """Proposes every policy of the space in turn, again and again where `endless`."""

    def __init__(self, endless: bool = False) -> None:
        self.left = [np.array([[i, j]]) for i in range(4) for j in range(2)]
        self.endless = endless
        self.told: list[Trial] = []

    def ask(self, count: int) -> Sequence[Policy]:
        taken, self.left = self.left[:count], self.left[count:] + (self.left[:count] if self.endless else [])
        return [SPACE.decode(code)[0] for code in taken]

    def tell(self, trials: Sequence[Trial]) -> None:
        self.told.extend(trials)


class Scorer:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def evaluate(self, policy: Policy) -> float:
        self.calls.append(policy.digest)
        if policy.get("a", Prune) == Prune(4):
            raise RuntimeError("out of memory")
        return math.nan if policy.get("a", Prune) == Prune(2) else 1.0 - 0.1 * len(policy)


def loop(agent: InOrder, scorer: Scorer, **options: object) -> Loop:
    return Loop(SPACE, agent, Serial(scorer), Linear(), **options)  # type: ignore[arg-type]


def test_every_policy_is_evaluated_priced_and_told() -> None:
    agent, scorer = InOrder(), Scorer()
    trials = list(loop(agent, scorer).run(100))
    assert [t.number for t in trials] == list(range(8))
    assert agent.told == trials
    assert trials[0].cost.latency_s == pytest.approx(0.1)
    assert trials[1].cost.source["latency_s"] == "predicted"


def test_failures_and_scores_that_are_no_number_are_recorded_with_their_reason() -> None:
    trials = list(loop(InOrder(), Scorer()).run(100))
    failed = [t for t in trials if t.state == "failed"]
    assert len(failed) == 4
    assert {t.reason for t in failed} == {"RuntimeError: out of memory", "the score is nan"}


def test_a_search_goes_on_where_it_stopped() -> None:
    whole = list(loop(InOrder(), Scorer()).run(100))
    first = list(loop(InOrder(), Scorer()).run(3))
    agent, scorer = InOrder(), Scorer()
    rest = list(loop(agent, scorer).run(100, first))
    assert [t.policy for t in first + rest] == [t.policy for t in whole]
    assert [t.number for t in rest] == [3, 4, 5, 6, 7]
    assert not set(scorer.calls) & {t.policy.digest for t in first}
    assert agent.told[:3] == first


def test_the_number_of_trials_counts_the_known_ones() -> None:
    first = list(loop(InOrder(), Scorer()).run(3))
    assert len(list(loop(InOrder(), Scorer()).run(5, first))) == 2


def test_an_agent_that_only_repeats_itself_ends_the_search() -> None:
    scorer = Scorer()
    assert len(list(loop(InOrder(endless=True), scorer).run(100))) == 8
    assert len(scorer.calls) == 8


def test_time_that_is_over_ends_the_search() -> None:
    over = iter([False, False, True])
    assert len(list(loop(InOrder(), Scorer(), batch=2, out_of_time=lambda: next(over)).run(100))) == 4


class Backwards:
    """Three workers of which the last to begin is the first to end."""

    slots = 3

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.running: list[Policy] = []
        self.most = 0

    def submit(self, policy: Policy, rival: float) -> None:
        self.running.append(policy)
        self.most = max(self.most, len(self.running))

    def collect(self) -> Sequence[Outcome]:
        return [evaluated(self.scorer, self.running.pop(), -math.inf)]

    def pause(self) -> None:
        assert not self.running


def test_an_asynchronous_search_keeps_the_workers_busy_and_tells_results_as_they_arrive() -> None:
    agent, workers = InOrder(), Backwards(Scorer())
    trials = list(Loop(SPACE, agent, workers, Linear(), synchronous=False).run(6))
    assert agent.told == trials
    assert sorted(t.number for t in trials) == list(range(6))
    assert workers.most == 4  # one waits for the first worker that is free
    assert not workers.running


class Pensive(InOrder):
    """Asked again, thinks until a result has come in meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.thinking, self.heard = threading.Event(), threading.Event()
        self.asked = 0

    def ask(self, count: int) -> Sequence[Policy]:
        self.asked += 1
        if self.asked == 2:
            self.thinking.set()
            assert self.heard.wait(60)
        return super().ask(count)


class Heard(Backwards):
    def __init__(self, agent: Pensive) -> None:
        super().__init__(Scorer())
        self.agent, self.collected = agent, 0

    def collect(self) -> Sequence[Outcome]:
        self.collected += 1
        if self.collected == 2:
            assert self.agent.thinking.wait(60)
            self.agent.heard.set()
        return super().collect()


def test_results_come_in_while_the_agent_thinks() -> None:
    agent = Pensive()
    trials = list(Loop(SPACE, agent, Heard(agent), Linear(), synchronous=False).run(8))
    assert sorted(t.number for t in trials) == list(range(8))
    assert {t.policy.digest for t in agent.told} == {t.policy.digest for t in trials}


def test_a_synchronous_search_is_the_same_whatever_ends_first() -> None:
    agents = InOrder(), InOrder()
    for agent, executor in zip(agents, (Backwards(Scorer()), Serial(Scorer())), strict=True):
        list(Loop(SPACE, agent, executor, Linear()).run(100))
    assert _untimed(agents[0].told) == _untimed(agents[1].told)


def _untimed(trials: Sequence[Trial]) -> list[Trial]:
    return [replace(trial, seconds=0.0, ended=None) for trial in trials]


class Learning(InOrder):
    """Proposes the next policy only of what it was told, each once, so that another order of telling leads elsewhere."""

    def ask(self, count: int) -> Sequence[Policy]:
        turn = hash(tuple(t.policy.digest for t in self.told)) if len(self.told) % 4 else len(self.told)
        self.left = self.left[turn % max(1, len(self.left)) :] + self.left[: turn % max(1, len(self.left))]
        return super().ask(count)


@pytest.mark.parametrize("kept", range(9))
def test_a_search_broken_off_anywhere_goes_on_to_the_same_end(kept: int) -> None:
    whole, again, scorer = Learning(), Learning(), Scorer()
    ended = list(Loop(SPACE, whole, Backwards(Scorer()), Linear(), batch=3).run(8))
    list(Loop(SPACE, again, Backwards(scorer), Linear(), batch=3).run(8, recorded=ended[:kept]))
    assert [t.policy for t in again.told] == [t.policy for t in whole.told]
    assert [t.score for t in again.told] == [t.score for t in whole.told]
    assert len(scorer.calls) == 8 - kept
    assert not set(scorer.calls) & {t.policy.digest for t in ended[:kept]}


def test_an_agent_that_departs_from_the_record_is_told_all_of_it() -> None:
    record = list(loop(InOrder(), Scorer()).run(8))[4:7]
    agent, scorer = InOrder(), Scorer()
    trials = list(loop(agent, scorer, batch=2).run(5, recorded=record))
    assert [t.number for t in trials] == [7, 8, 4, 5, 6]
    assert agent.told == trials
    assert len(scorer.calls) == 2


def test_a_trial_cannot_be_complete_without_a_score() -> None:
    with pytest.raises(ValueError, match="score is nan"):
        Trial(0, Policy(), Cost(), math.nan)
    with pytest.raises(ValueError, match="says no reason"):
        Trial(0, Policy(), Cost(), None, "failed")
