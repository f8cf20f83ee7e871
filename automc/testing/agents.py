"""The contract of an agent, as tests to inherit. The built-in agents pass it; so should yours.

from automc.testing import AgentContract

class TestMyAgent(AgentContract):
    def make(self, problem, seed):
        return MyAgent(problem, seed)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from automc.policy import Policy, Prune
from automc.protocols import Agent, Problem
from automc.testing.fakes import Toy, drive, small_toy, toy_problem
from automc.trial import Cost, Trial

__all__ = ["AgentContract"]

_MANY = 40


class AgentContract:
    """Inherit, define `make`, and pytest runs every test of the contract on your agent."""

    def make(self, problem: Problem, seed: int) -> Agent:
        """The agent under test."""
        raise NotImplementedError(f"{type(self).__name__} must define make(problem, seed)")

    def test_asks_policies_of_the_space_and_never_more_than_wanted(self) -> None:
        toy = _medium()
        agent = self.make(toy.problem, 0)
        for count in (1, 5, 2):
            asked = agent.ask(count)
            assert len(asked) <= count, f"asked for {count}, got {len(asked)}"
            foreign = [policy for policy in asked if not toy.problem.space.contains(policy)]
            assert not foreign, f"{type(agent).__name__} asked for policies that the space does not have: {foreign}"
            agent.tell([toy.trial(i, policy) for i, policy in enumerate(asked)])

    def test_first_proposals_hold_the_budget_as_predicted(self) -> None:
        for toy in (small_toy(), _medium(), toy_problem(budget=("60%", "70%size"))):
            told = drive(self.make(toy.problem, 0), toy, 12)
            assert any(toy.problem.budget.holds(trial.cost) for trial in told), (
                "12 proposals, none inside a budget that can be held"
            )

    def test_never_asks_the_same_policy_twice(self) -> None:
        for toy in (small_toy(), _medium()):
            told = drive(self.make(toy.problem, 0), toy, _MANY)
            assert len({trial.policy for trial in told}) == len(told)

    def test_never_asks_what_it_was_told_before_asking(self) -> None:
        toy = small_toy()
        first = drive(self.make(toy.problem, 0), toy, 20)
        agent = self.make(toy.problem, 0)
        agent.tell(first)
        again = drive(agent, toy, 20)
        assert not {trial.policy for trial in first} & {trial.policy for trial in again}

    def test_same_seed_same_trials(self) -> None:
        toy = _medium()
        first, second = (_policies(drive(self.make(toy.problem, 3), toy, 20)) for _ in range(2))
        assert first == second

    def test_survives_failures_told_late_and_out_of_order(self) -> None:
        toy = _medium()
        agent = self.make(toy.problem, 1)
        late: list[Trial] = []
        for _ in range(4):
            asked = list(agent.ask(4))
            told = [_spoil(toy.trial(len(late) + i, policy), i) for i, policy in enumerate(asked)]
            agent.tell(told[:2])
            late.extend(told[2:])
        agent.tell(late[::-1])
        assert agent.ask(1), "16 trials, half of them failed, must not end a search of an enormous space"

    def test_survives_being_told_nothing_but_failures(self) -> None:
        toy = _medium()
        agent = self.make(toy.problem, 1)
        for number in range(6):
            agent.tell([_spoil(toy.trial(number, policy), 1) for policy in agent.ask(2)])
        assert agent.ask(1)

    def test_survives_trials_of_policies_that_the_space_does_not_offer(self) -> None:
        toy = small_toy()
        agent = self.make(toy.problem, 0)
        agent.tell([Trial(0, Policy.of([("elsewhere", Prune(3))]), Cost(latency_s=1e-3), 0.5)])
        agent.tell([])
        assert agent.ask(1)

    def test_goes_on_until_nothing_inside_the_budget_is_left(self) -> None:
        for toy in (_tiny("60%"), _flat(_tiny("60%")), _flat(_tiny("100%"))):
            told = drive(self.make(toy.problem, 0), toy, 1000)
            inside = {trial.policy for trial in told if toy.problem.budget.holds(trial.cost)}
            left = [policy for policy in _all_inside(toy) if policy not in inside]
            assert not left, f"stopped after {len(told)} proposals with {len(left)} inside the budget never proposed"

    def test_goes_on_where_nothing_tells_policies_apart(self) -> None:
        for budget in ("40%", "97%", "500%"):
            toy = _flat(_medium(budget))
            told = drive(self.make(toy.problem, 0), toy, _MANY)
            assert len({trial.policy for trial in told}) == _MANY, f"{len(told)} of {_MANY} trials at {budget}"

    def test_ends_when_a_tiny_space_is_exhausted(self) -> None:
        toy = toy_problem(groups=1, levels=3, layers=2, ranks=1, budget=("100%",))
        told = drive(self.make(toy.problem, 0), toy, 1000)
        assert 1 <= len(told) <= toy.problem.space.size
        assert len({trial.policy for trial in told}) == len(told)

    def test_answers_a_space_without_choices(self) -> None:
        empty = toy_problem(groups=0, layers=0, budget=("100%",))
        single = toy_problem(groups=2, levels=1, layers=2, ranks=1, int8=False, budget=("110%",))
        for toy in (empty, single):
            told = drive(self.make(toy.problem, 0), toy, 10)
            assert _policies(told) in ([], [Policy()]), "the dense model is all there is to propose"

    def test_offers_the_smallest_for_a_budget_that_nothing_holds(self) -> None:
        for toy in (_impossible(small_toy()), _impossible(_medium())):
            told = drive(self.make(toy.problem, 0), toy, 20)
            assert told, "the search needs the smallest policy to say what would be reachable"
            latency = [trial.cost.latency_s or 0.0 for trial in told]
            dense = toy.problem.predictor.predict(toy.problem.space.dense[None]).latency_s[0]
            assert min(latency) < 0.5 * dense

    def test_a_budget_that_everything_holds(self) -> None:
        toy = _medium("500%")
        told = drive(self.make(toy.problem, 0), toy, 10)
        assert all(trial.state == "complete" for trial in told)
        assert told


def _medium(budget: str = "40%") -> Toy:
    """22 domains, 10^13 policies: too many to stumble on the answer, few enough for a quick test."""
    return toy_problem(groups=6, levels=6, layers=8, ranks=3, budget=(budget,), noise=0.002)


def _tiny(budget: str) -> Toy:
    """144 policies."""
    return toy_problem(groups=2, levels=3, layers=2, ranks=2, budget=(budget,))


def _flat(toy: Toy) -> Toy:
    """The same problem with no sensitivities to speak of, and the dense score for whatever is proposed."""
    nothing = [np.zeros(n) for n in toy.problem.space.cardinalities]
    evaluator = replace(toy.evaluator, losses=nothing, noise=0.0)
    return replace(toy, problem=replace(toy.problem, sensitivity=nothing), evaluator=evaluator)


def _all_inside(toy: Toy) -> list[Policy]:
    space = toy.problem.space
    codes = np.array(list(np.ndindex(*space.cardinalities)), dtype=np.int64)
    return space.decode(codes[toy.problem.predictor.predict(codes).violation(toy.problem.budget) <= 0.0])


def _policies(trials: Sequence[Trial]) -> list[Policy]:
    return [trial.policy for trial in trials]


def _spoil(trial: Trial, index: int) -> Trial:
    """Every second trial failed."""
    return replace(trial, state="failed", score=None, reason="spoiled by the contract") if index % 2 else trial


def _impossible(toy: Toy) -> Toy:
    limit = toy.problem.budget.limits[0]
    budget = replace(toy.problem.budget, limits=(replace(limit, value=limit.value * 1e-6),))
    return replace(toy, problem=replace(toy.problem, budget=budget))
