"""Many candidates at once, and what an agent turns to when its own ideas run out."""

from __future__ import annotations

import numpy as np
import pytest

from automc.agents.frontier import Frontier
from automc.agents.ilp import ILP
from automc.agents.knapsack import Knapsack
from automc.agents.lagrange import relaxed
from automc.agents.ledger import Ledger
from automc.agents.variation import Variation
from automc.pricing import Pricing
from automc.testing import drive, large_toy, toy_problem


@pytest.mark.parametrize("seed", range(4))
def test_relaxed_answers_hold_the_room_and_are_near_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    knapsack = Knapsack(np.full(30, 6))
    curves = np.sort(rng.random((30, 6)), axis=1)
    loss, usage = (curves - curves[:, :1]).ravel(), -np.tile(np.arange(6) / 6, 30)
    room = np.array([-12.0])
    exact = knapsack.solve(loss, usage[:, None], room, np.zeros(30, dtype=np.int64), 30, exact=True)
    (row,) = relaxed(knapsack, loss[None], usage[None], room)
    assert exact is not None
    assert knapsack.at(usage, row).sum() <= room[0]
    assert knapsack.at(loss, row).sum() <= 1.1 * knapsack.at(loss, exact).sum()


def test_variations_are_priced_as_the_predictor_says_and_many_hold_the_target() -> None:
    toy = large_toy(0)
    pricing, knapsack = Pricing(toy.problem), Knapsack(toy.problem.space.cardinalities)
    variation = Variation(pricing, knapsack, np.random.default_rng(0))
    losses = np.tile(np.concatenate(toy.evaluator.losses), (16, 1))
    rows, used = variation.around([toy.problem.space.encode(ILP(toy.problem, 0).ask(1))[0]], losses, 1.0)
    assert used == pytest.approx(pricing.usage(rows).max(axis=1))
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert (used <= 1.0).sum() > 8


def test_trades_ease_one_domain_and_press_another_inside_the_budget() -> None:
    toy = large_toy()
    pricing = Pricing(toy.problem)
    knapsack = Knapsack(toy.problem.space.cardinalities)
    variation = Variation(pricing, knapsack, np.random.default_rng(0))
    parent = toy.problem.space.encode(ILP(toy.problem, 0).ask(1))[0]
    rows = variation.traded(parent, np.concatenate(list(toy.problem.sensitivity or ())))
    assert len(rows) > 50
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert ((rows != parent).sum(axis=1) == 2).all()
    assert pricing.holds(rows).all()
    used = pricing.usage(rows).max(axis=1)
    assert used.min() > 0.9
    alone = np.array(
        [np.where(np.arange(len(parent)) == d, row, parent) for row in rows for d in np.flatnonzero(row != parent)]
    )
    spent = pricing.usage(alone).max(axis=1).reshape(-1, 2) - pricing.usage(parent[None]).max()
    assert (spent.max(axis=1) > 0).all()
    assert (spent.min(axis=1) <= 0).all()


def test_the_frontier_reaches_every_policy_inside_the_budget_once() -> None:
    toy = toy_problem(groups=2, levels=3, layers=2, ranks=2, budget=("70%",))
    pricing, ledger = Pricing(toy.problem), Ledger(toy.problem.space)
    frontier = Frontier(pricing, ledger, np.random.default_rng(0))
    found = []
    while (row := frontier.next()) is not None:
        found.append(ledger.propose(row))
    codes = np.array(list(np.ndindex(*toy.problem.space.cardinalities)), dtype=np.int64)
    assert len(set(found)) == len(found) == int(pricing.holds(codes).sum())


def test_more_trials_find_better_policies() -> None:
    """Sensitivities off by e^+-1: sixty trials find clearly better policies than the first seven."""
    for seed in range(3):
        toy = toy_problem(groups=6, levels=6, layers=8, ranks=3, distortion=1.0, seed=seed, n_trials=60)
        trials = drive(ILP(toy.problem, 0), toy, 60)
        scores = [t.score for t in trials if t.score is not None and toy.problem.budget.holds(t.cost)]
        assert len(trials) == 60
        assert np.log(0.95 / max(scores)) < 0.95 * np.log(0.95 / max(scores[:7]))
