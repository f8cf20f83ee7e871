"""Train an agent of stable-baselines3 on the search, as on any gymnasium environment.

    pip install automc[rl]
    python examples/train_env_sb3.py

The problem is the toy of `automc.testing`, priced and scored in closed form, so that this takes seconds. With a model of your own,
`problem` and `evaluate` are what a search gives its agents.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import gymnasium
import numpy as np
from stable_baselines3 import SAC

from automc.policy import Policy
from automc.testing import toy_problem


def main() -> None:
    """Train for some episodes, and compare what was learned with random actions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    toy = toy_problem(groups=4, levels=6, layers=5, ranks=3, budget=("50%",))
    env = gymnasium.make("automc.env:automc/Layerwise-v0", problem=toy.problem, evaluate=toy.evaluator.evaluate)
    env.action_space.seed(arguments.seed)
    random = [played(env, lambda _: env.action_space.sample())[0] for _ in range(20)]
    learner = SAC("MlpPolicy", env, gamma=1.0, learning_starts=200, batch_size=64, seed=arguments.seed, device="cpu")
    learner.learn(arguments.episodes * len(env.unwrapped.columns))
    score, policy = played(env, lambda observation: learner.predict(observation, deterministic=True)[0])
    print(f"random episodes: {np.mean(random):.4f} on average, {max(random):.4f} at best")
    print(f"after {arguments.episodes} episodes: {score:.4f}")
    for target, spec in policy:
        print(f"  {target:10} {spec.label}")


def played(env: gymnasium.Env, act: Callable[[np.ndarray], np.ndarray]) -> tuple[float, Policy]:
    """The score and the policy of one episode."""
    observation, info = env.reset()
    done = False
    while not done:
        observation, _, done, _, info = env.step(act(observation))
    return info["score"], info["policy"]


if __name__ == "__main__":
    main()
