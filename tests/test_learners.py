"""The agents that learn: rewards move the actor, budgets are kept, and the databases of Optuna are ones that others open."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import optuna
import pytest

from automc.agents.amc import amc_sac, amc_td3
from automc.agents.cmaes import cmaes
from automc.agents.evolution import Evolution
from automc.agents.gp import GaussianProcess, Posterior
from automc.agents.greedy_sensitivity import GreedySensitivity
from automc.agents.haq import haq, haq_joint, lowered
from automc.agents.knapsack import Knapsack
from automc.agents.layerwise import truncated_normal
from automc.agents.learner import Learner
from automc.agents.nsga2 import nsga2
from automc.agents.random import Random
from automc.agents.spdy import SPDY, cheapest
from automc.agents.tpe import tpe
from automc.env import LayerwiseEnv
from automc.errors import InputError, MissingError
from automc.pricing import Pricing
from automc.protocols import Agent, Problem
from automc.registry import load, names
from automc.testing import Toy, brute_force, drive, large_toy, small_toy, toy_problem
from automc.trial import Trial

Make = Callable[[Problem, int], Agent]


def best(toy: Toy, trials: list[Trial]) -> float:
    return max(t.score for t in trials if t.score is not None and toy.problem.budget.holds(t.cost))


@pytest.mark.parametrize("make", [Evolution, GaussianProcess, GreedySensitivity, SPDY])
def test_beats_random_at_equal_trials(make: Make) -> None:
    """Five toys of ResNet-20's size, all won: an agent no better than random passes with probability 2^-5 = 3 %."""
    for seed in range(5):
        toy = large_toy(seed, n_trials=20)
        ours, theirs = (best(toy, drive(agent(toy.problem, seed), toy, 20)) for agent in (make, Random))
        assert ours > theirs


def test_the_first_answer_of_dynamic_programming_is_near_the_optimum() -> None:
    for seed in range(4):
        toy = small_toy(seed)
        (policy,) = SPDY(toy.problem, 0).ask(1)
        assert toy.evaluator.evaluate(policy) >= 0.97 * brute_force(toy)[1]


def test_dynamic_programming_is_exact_up_to_its_buckets() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([3, 4, 2, 5], dtype=np.int64)
    knapsack, loss, usage = Knapsack(sizes), rng.random(14), -rng.random(14)
    everything = np.array(list(np.ndindex(*sizes)), dtype=np.int64)
    for room in (-2.5, -1.5, -0.5):
        found = cheapest(knapsack, loss, usage, room)
        fits = everything[knapsack.at(usage, everything).sum(axis=1) <= room - 0.02]
        assert knapsack.at(usage, found).sum() <= room + 1e-9
        assert knapsack.at(loss, found).sum() <= knapsack.at(loss, fits).sum(axis=1).min() + 1e-9


def test_a_gaussian_process_knows_what_it_was_told_and_doubts_the_rest() -> None:
    x = np.random.default_rng(0).random((20, 3))
    scores = 0.8 + 0.1 * np.sin(3.0 * x[:, 0])
    mean, deviation = Posterior.fitted(x, scores).at(np.vstack([x, [[5.0, 5.0, 5.0]]]))
    assert mean[:-1] == pytest.approx(scores, abs=0.01)
    assert deviation[-1] > 5.0 * deviation[:-1].max()


def test_rewards_move_the_actor() -> None:
    """Actions near 0.9 are rewarded and those near 0.1 punished: the actor ends above the middle."""
    env = LayerwiseEnv(small_toy().problem)
    learner = Learner(env, "ddpg", 0, 32)
    rng = np.random.default_rng(0)
    seen = rng.random((200, 11)).astype(np.float32)
    for observation in seen:
        action = float(rng.random())
        learner.remember(observation, observation, action, action - 0.5, done=True)
    learner.train(200)
    assert np.mean(learner.act(seen[:20])) > 0.7


def test_exploration_stays_between_dense_and_most_compressed() -> None:
    rng = np.random.default_rng(0)
    draws = [truncated_normal(mean, 0.5, rng) for mean in (0.0, 0.5, 1.0) for _ in range(200)]
    assert 0.0 <= min(draws) < max(draws) <= 1.0


@pytest.mark.parametrize("make", [amc_td3, amc_sac, haq_joint])
def test_the_other_learners_search_inside_the_budget(make: Make) -> None:
    toy = toy_problem(groups=3, levels=4, layers=4, ranks=2, budget=("50%",), n_trials=16)
    trials = drive(make(toy.problem, 0), toy, 16)
    assert len(trials) == 16
    assert all(toy.problem.budget.holds(trial.cost) for trial in trials)


def test_bits_are_lowered_before_anything_else() -> None:
    toy = toy_problem(groups=3, levels=4, layers=4, ranks=2, budget=("70%",))
    pricing, columns = Pricing(toy.problem), toy.problem.space.columns("quantize")
    row = lowered(pricing, toy.problem.space.dense, columns)
    assert pricing.holds(row[None])[0]
    assert set(np.flatnonzero(row)) <= set(columns)


def test_bits_where_the_space_has_none_are_refused_with_the_remedy() -> None:
    toy = toy_problem(groups=3, levels=4, layers=4, ranks=2, int8=False)
    with pytest.raises(InputError, match="haq-joint"):
        haq(toy.problem, 0)


@pytest.mark.parametrize("make", [tpe, nsga2, cmaes])
def test_the_study_is_kept_where_others_can_open_it(make: Make, tmp_path: Path) -> None:
    toy = toy_problem(n_trials=12)
    problem = replace(toy.problem, options={"storage": str(tmp_path / "optuna.log")})
    for _ in range(2):
        drive(make(problem, 0), toy, 12)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.log"))
    studies = optuna.get_all_study_summaries(optuna.storages.JournalStorage(backend))
    assert [study.study_name.rpartition("-")[2] for study in studies] == ["1", "2"]
    assert all(study.n_trials >= 12 for study in studies)


@pytest.mark.parametrize(
    ("agent", "package"), [("cmaes", "cmaes"), ("amc", "stable_baselines3"), ("haq", "stable_baselines3")]
)
def test_what_is_not_installed_is_named_with_the_command(
    agent: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("cmaes", "amc", "haq", "layerwise", "learner"):
        monkeypatch.delitem(sys.modules, f"automc.agents.{module}", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingError, match="pip install automc"):
        load("agent", agent)


@pytest.mark.parametrize("name", sorted(set(names("agent")) - {"uniform", "random"}))
def test_sensitivities_and_scores_that_are_not_numbers_are_survived(name: str) -> None:
    toy = toy_problem(groups=2, levels=3, layers=2, ranks=2, n_trials=12)
    assert toy.problem.sensitivity is not None
    unknown = [np.where(np.arange(len(s)) == 1, np.nan, s) for s in toy.problem.sensitivity]
    agent: Agent = load("agent", name)(replace(toy.problem, sensitivity=unknown), 0)
    for number in range(6):
        asked = agent.ask(2)
        assert asked
        lost = [replace(toy.trial(number, p), state="failed", score=None, reason="the score is nan") for p in asked[:1]]
        agent.tell([*lost, *(toy.trial(number, p) for p in asked[1:])])


def test_every_agent_that_is_registered_opens_with_what_it_follows() -> None:
    for name in names("agent"):
        module = import_module(load("agent", name).__module__)
        assert module.__doc__
        assert len(module.__doc__) > 80
