"""Objectives without a limit: the agents that can pursue them look for policies all along the front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from automc.agents.auto import auto
from automc.agents.ilp import ilp
from automc.agents.nsga2 import nsga2
from automc.agents.tpe import tpe
from automc.pareto import front, hypervolume
from automc.protocols import Agent, Problem
from automc.testing import Toy, drive, toy_problem
from automc.trial import Trial

TRIALS = 60
Maker = Callable[[Problem, int], Agent]


def _toy(*objectives: str) -> Toy:
    toy = toy_problem(groups=4, levels=5, layers=6, ranks=2, budget=("70%",), n_trials=TRIALS)
    return replace(toy, problem=replace(toy.problem, objectives=objectives))


def _inside(toy: Toy, trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if toy.problem.budget.holds(replace(trial.cost, latency_interval_s=None))]


@pytest.mark.parametrize("make", [auto, ilp, tpe])
def test_the_front_spreads_along_an_objective(make: Maker) -> None:
    """It dominates more of score against size than the same agent's without the objective, and goes as far down."""
    areas, smallest = [], []
    for toy in (_toy(), _toy("size_bytes")):
        dense = toy.problem.predictor.predict(toy.problem.space.dense[None])[0].size_bytes or 0.0
        found = _inside(toy, drive(make(toy.problem, 0), toy, TRIALS))
        areas.append(hypervolume(found, "size_bytes", (dense, 0.5)) / dense)
        smallest.append(min(t.cost.size_bytes or 0.0 for t in front(found, ("size_bytes",))) / dense)
    assert areas[1] > areas[0]
    assert smallest[1] <= smallest[0]


@pytest.mark.parametrize("make", [auto, nsga2])
def test_two_objectives_spread_the_front_in_both(make: Maker) -> None:
    toy = _toy("size_bytes", "macs")
    found = front(_inside(toy, drive(make(toy.problem, 0), toy, TRIALS)), ("latency_s", "size_bytes", "macs"))
    for metric in ("size_bytes", "macs"):
        costs = np.array([trial.cost.get(metric) for trial in found], dtype=float)
        assert costs.max() > 2.0 * costs.min()


def test_optuna_is_told_the_objectives_as_shares_of_the_dense_model() -> None:
    """NSGA-II spreads along the usage of the budget anyway, so the front alone does not show it."""
    toy = _toy("size_bytes")
    agent = nsga2(toy.problem, 0)
    (trial,) = drive(agent, toy, 1)
    dense = toy.problem.predictor.predict(toy.problem.space.dense[None])[0]
    score, usage, size = agent.study.trials[0].values
    assert score == trial.score
    assert usage <= 1.0
    assert size == pytest.approx((trial.cost.size_bytes or 0.0) / (dense.size_bytes or 1.0))


def test_the_budget_alone_is_asked_first_and_nothing_twice() -> None:
    toy = _toy("size_bytes")
    plain = drive(ilp(replace(toy.problem, objectives=()), 0), toy, 4)
    asked = [trial.policy for trial in drive(ilp(toy.problem, 0), toy, TRIALS)]
    assert asked[:4] == [trial.policy for trial in plain]
    assert len(set(asked)) == len(asked) == TRIALS
