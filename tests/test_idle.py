"""Domains that change nothing that is limited are held at dense."""

from dataclasses import replace

import numpy as np
import pytest

from automc import registry
from automc.idle import idle, idle_knobs, without_idle
from automc.testing.fakes import drive, toy_problem


def test_bits_do_not_change_macs_so_they_are_held_at_dense():
    toy = toy_problem(budget=("50%macs",))
    held = idle(toy.problem)
    assert held == set(toy.problem.space.columns("quantize"))
    left = without_idle(toy.problem)
    assert idle_knobs(toy.problem, left) == ["quantize"]
    assert [len(d) == 1 for d in left.space.domains] == [d.knob == "quantize" for d in toy.problem.space.domains]
    assert [len(c) for c in left.sensitivity] == left.space.cardinalities.tolist()


@pytest.mark.parametrize("budget", [("50%",), ("50%macs", "60%size")])
def test_what_any_limit_feels_stays(budget):
    toy = toy_problem(budget=budget)
    assert idle(toy.problem) == frozenset()
    assert without_idle(toy.problem) is toy.problem


def test_what_only_an_objective_feels_stays():
    toy = toy_problem(budget=("50%macs",))
    assert idle(replace(toy.problem, objectives=("latency_s",))) == frozenset()


def test_choices_of_idle_domains_are_taken_off_a_start() -> None:
    toy = toy_problem(budget=("50%macs",))
    left = without_idle(toy.problem)
    row = toy.problem.space.cardinalities - 1
    policy = toy.problem.space.decode(row[None])[0]
    kept = left.space.restricted(policy)
    assert {spec.knob for _, spec in policy} - {spec.knob for _, spec in kept} == {"quantize"}
    assert left.space.contains(kept)


def test_codes_mean_what_they_meant():
    toy = toy_problem(budget=("50%macs",))
    left = without_idle(toy.problem)
    rows = left.space.sample(20, np.random.default_rng(0))
    assert left.space.decode(rows) == toy.problem.space.decode(rows)


@pytest.mark.parametrize("agent", [name for name in registry.names("agent") if name != "haq"])
def test_every_agent_gets_by_with_a_knob_that_has_no_choice(agent):
    toy = toy_problem(budget=("50%macs",), n_trials=12)
    left = replace(toy, problem=without_idle(toy.problem))
    trials = drive(registry.load("agent", agent)(left.problem, 0), left, 12)
    assert len({trial.policy for trial in trials}) == len(trials) == 12
    assert any(left.problem.budget.holds(trial.cost) for trial in trials)
