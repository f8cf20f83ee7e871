"""Actor-critic learners of stable-baselines3, told one transition at a time instead of running the environment themselves.

DDPG (Lillicrap et al. 2016, 1509.02971), TD3 (Fujimoto et al. 2018, 1802.09477), SAC (Haarnoja et al. 2018, 1801.01290); rates as in
AMC's published code.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from automc.env import LayerwiseEnv
from automc.errors import MissingError

if find_spec("stable_baselines3") is None:
    raise MissingError(
        "The agents 'amc' and 'haq' learn with stable-baselines3, which is not installed.",
        remedy="Install it: pip install automc[rl]",
    )

from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.logger import Logger

__all__ = ["Algorithm", "Learner"]

Algorithm: TypeAlias = Literal["ddpg", "td3", "sac"]
Observation = NDArray[np.float32]
_ALGORITHMS = {"ddpg": DDPG, "td3": TD3, "sac": SAC}
_LAYERS = [64, 64]
"""AMC has 300 twice; there are fewer episodes to learn from here, and a tenth of the time."""
_RATE = 1e-3
_TAU = 0.01
_MEMORY_EPISODES = 100
"""How many episodes are remembered: old ones were chosen with other noise."""


class Learner:
    """Maps observations to actions in [0, 1].

    The generators of torch and numpy are seeded with `seed`, as stable-baselines3 does.
    """

    def __init__(self, env: LayerwiseEnv, algorithm: Algorithm, seed: int, batch: int) -> None:
        self._batch = batch
        self._model = _ALGORITHMS[algorithm](
            "MlpPolicy",
            env,
            learning_rate=_RATE,
            buffer_size=_MEMORY_EPISODES * len(env.columns),
            batch_size=batch,
            tau=_TAU,
            gamma=1.0,
            policy_kwargs={"net_arch": _LAYERS},
            seed=seed,
            device="cpu",
        )
        self._model.set_logger(Logger(None, []))
        self._stochastic = algorithm == "sac"

    def act(self, observations: Observation) -> Observation:
        """(count,) actions for (count, 11) observations, without exploration except SAC's own."""
        actions: Observation
        actions, _ = self._model.predict(observations, deterministic=not self._stochastic)
        return actions[:, 0]

    def remember(self, before: Observation, after: Observation, action: float, reward: float, *, done: bool) -> None:
        """Add one transition to the replay buffer."""
        scaled = self._model.policy.scale_action(np.array([[action]], dtype=np.float32))
        self._model.replay_buffer.add(before[None], after[None], scaled, np.array([reward]), np.array([done]), [{}])

    def train(self, steps: int) -> None:
        """Take `steps` gradient steps on batches from the replay buffer, once it holds a batch."""
        if steps and self._model.replay_buffer.size() >= self._batch:
            self._model.train(steps, self._batch)
