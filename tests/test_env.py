"""The environment is one that gymnasium accepts, every episode of it holds the budget, and its rewards are the scores."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from automc.env import LayerwiseEnv
from automc.errors import InputError
from automc.features import FEATURES, layer_features
from automc.graph import LayerGraph
from automc.policy import Policy
from automc.testing import Toy, large_toy, small_toy, toy_problem


def test_gymnasium_accepts_it() -> None:
    check_env(LayerwiseEnv(small_toy().problem))


def test_gymnasium_makes_it_by_its_name() -> None:
    toy = small_toy()
    env = gymnasium.make("automc/Layerwise-v0", problem=toy.problem, evaluate=toy.evaluator.evaluate)
    assert env.reset(seed=0)[0].shape == (11,)


@pytest.mark.parametrize("budget", [("30%",), ("60%", "40%size")])
@pytest.mark.parametrize("seed", range(3))
def test_every_episode_holds_the_budget(budget: tuple[str, ...], seed: int) -> None:
    toy = toy_problem(groups=4, levels=6, layers=6, ranks=3, budget=budget, seed=seed)
    env = LayerwiseEnv(toy.problem, toy.evaluator.evaluate)
    rng = np.random.default_rng(seed)
    for strength in (0.0, 0.2, 1.0):
        info = episode(env, [strength * rng.random() for _ in env.columns])
        assert toy.problem.budget.holds(toy.trial(0, info["policy"]).cost)


def test_unbounded_episodes_do_what_they_are_told() -> None:
    toy = small_toy(budget=("30%",))
    info = episode(LayerwiseEnv(toy.problem, bounded=False), [0.0] * len(toy.problem.space))
    assert info["policy"] == Policy()


def test_the_last_reward_is_minus_the_error_and_the_others_are_nothing() -> None:
    toy = small_toy()
    env = LayerwiseEnv(toy.problem, toy.evaluator.evaluate)
    env.reset()
    rewards, info = [], {}
    for _ in env.columns:
        _, reward, _, _, info = env.step(np.array([0.7]))
        rewards.append(reward)
    assert rewards[:-1] == [0.0] * (len(env.columns) - 1)
    assert rewards[-1] == pytest.approx(toy.evaluator.evaluate(info["policy"]) - 1.0)


def test_the_accuracy_guaranteed_reward_prefers_the_smaller_of_equals() -> None:
    toy = small_toy()
    env = LayerwiseEnv(toy.problem, lambda _: 0.9, bounded=False, reward="accuracy")
    small, large = (last_reward(env, action) for action in (1.0, 0.0))
    assert small > large


def test_an_episode_is_replayed_from_its_policy() -> None:
    toy = toy_problem(groups=3, levels=5, layers=4, ranks=3, budget=("40%",))
    env = LayerwiseEnv(toy.problem)
    observations, actions = [env.begin()], []
    for action in np.random.default_rng(0).random(len(env.columns)):
        observations.append(env.choose(float(action)))
        actions.append(env.action)
    again, repeated = env.replay(env.row.copy())
    assert np.array(again) == pytest.approx(np.array(observations))
    assert repeated == actions


def test_a_score_that_is_not_a_number_is_as_bad_as_none() -> None:
    assert last_reward(LayerwiseEnv(small_toy().problem, lambda _: float("nan")), 0.5) == -1.0


def test_an_empty_space_is_refused() -> None:
    empty = toy_problem(groups=0, layers=0, budget=("100%",))
    with pytest.raises(InputError, match="nothing to choose"):
        LayerwiseEnv(empty.problem)


def test_without_scores_and_sensitivities_it_says_what_is_missing() -> None:
    env = LayerwiseEnv(replace(small_toy().problem, sensitivity=None))
    with pytest.raises(InputError, match="evaluate"):
        last_reward(env, 0.5)


def test_features_of_a_target_without_a_layer_are_nothing() -> None:
    toy: Toy = large_toy()
    features = layer_features(LayerGraph((), ()), toy.problem.space)
    assert features.shape == (len(toy.problem.space), len(FEATURES))


def test_the_example_trains_and_prints_a_policy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parent.parent / "examples" / "train_env_sb3.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--episodes", "2"])
    runpy.run_path(str(script), run_name="__main__")
    assert "after 2 episodes: 0." in capsys.readouterr().out


def episode(env: LayerwiseEnv, actions: list[float]) -> dict[str, object]:
    env.reset()
    info: dict[str, object] = {}
    for action in actions:
        info = env.step(np.array([action]))[4]
    return info


def last_reward(env: LayerwiseEnv, action: float) -> float:
    env.reset()
    return [env.step(np.array([action]))[1] for _ in env.columns][-1]
