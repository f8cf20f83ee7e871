"""Reinforcement learning over the layers of a policy: what AMC and HAQ share.

The actor walks through the environment and chooses domain by domain; when the policy has a score, every step of its episode is
remembered with that reward less its moving average (AMC, 1802.03494, equation 5), and the networks are trained. Exploration draws actions
from a normal distribution around the actor's, truncated to [0, 1], whose deviation decays (section 3.2 there).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automc.env import LayerwiseEnv
from automc.policy import Policy
from automc.pricing import Pricing
from automc.protocols import Problem
from automc.space import Codes
from automc.trial import Trial

from .frontier import Frontier
from .learner import Algorithm, Learner
from .ledger import Ledger, is_scored

__all__ = ["Layerwise"]

Observation = NDArray[np.float32]
_BATCH = 64
_STEPS = 4
"""Gradient steps per scored policy of the actor's."""
_WARMUP_SHARE = 0.25
_DEVIATION, _LEAST_DEVIATION = 0.5, 0.05
_AVERAGE = 0.95
_ABREAST = 8
"""Episodes walked at a time: a predictor prices all their choices in the time of one. The last were chosen by an actor a few policies old."""
_PATIENCE = 3
_REPEATED = 4
"""After so many proposals in a row for which every episode repeated an earlier one, the actor is no longer asked."""


@dataclass(frozen=True)
class Episode:
    """A walk: (steps + 1) observations and (steps,) actions."""

    observations: Sequence[Observation]
    actions: Sequence[float]


class Layerwise:
    """Asks what the actor chooses with noise; a quarter of the trials, before anything is learned, are random episodes.

    Args:
        env: the environment, None where the space leaves nothing to choose.
        finish: (domains,) codes of an episode -> codes inside the budget.
        scale: what a score is multiplied by to be a reward.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        env: LayerwiseEnv | None,
        algorithm: Algorithm,
        finish: Callable[[Codes], Codes],
        scale: float = 1.0,
    ) -> None:
        self._ledger = Ledger(problem.space)
        self._rng = np.random.default_rng(seed)
        self._frontier = Frontier(env.pricing if env else Pricing(problem), self._ledger, self._rng)
        self._env, self._finish, self._scale = env, finish, scale
        self._learner = Learner(env, algorithm, seed, _BATCH) if env else None
        self._episodes: dict[bytes, Episode] = {}
        self._walked: deque[tuple[Codes, Episode]] = deque()
        self._average: float | None = None
        self._warmup = max(1.0, _WARMUP_SHARE * problem.n_trials)
        self._decay = (_LEAST_DEVIATION / _DEVIATION) ** (1.0 / max(1.0, problem.n_trials - self._warmup))
        self._asked = self._repeated = 0

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new policies inside the budget; where episodes repeat, what lies next to those known."""
        asked = self._ledger.fill(count, self._new)
        self._asked += len(asked)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Remember the episodes of scored policies and learn from them; those of others are replayed to be remembered."""
        noted = self._ledger.record(trials)
        if self._env is None or self._learner is None:
            return
        for row, trial in noted:
            episode = self._episodes.pop(row.tobytes(), None)
            if is_scored(trial):
                self._remember(self._learner, episode or Episode(*self._env.replay(row)), self._scale * trial.merit)
                self._learner.train(_STEPS if episode else 0)

    def _new(self) -> Codes | None:
        if self._env is None or self._repeated >= _REPEATED or not self._env.pricing.reachable:
            return self._frontier.next()
        for _ in range(_PATIENCE):
            if not self._walked:
                self._walked.extend(self._walk(self._env))
            walked, episode = self._walked.popleft()
            row = self._finish(walked)
            if self._ledger.is_new(row):
                changed = (row != walked).any()
                self._episodes[row.tobytes()] = Episode(*self._env.replay(row)) if changed else episode
                self._repeated = 0
                return row
        self._repeated += 1
        return self._frontier.next()

    def _walk(self, env: LayerwiseEnv) -> list[tuple[Codes, Episode]]:
        """The rows of some episodes and what was seen and done in them, walked abreast: the choices of all are priced in one call."""
        walkers = [copy(env) for _ in range(_ABREAST)]
        observations, actions = [[walker.begin() for walker in walkers]], []
        while not walkers[0].done:
            chosen = self._explored(np.array(observations[-1]))
            rows = [walker.options() for walker in walkers]
            usage = np.split(env.pricing.usage(np.concatenate(rows)), len(walkers))
            observations.append([w.choose(a, u) for w, a, u in zip(walkers, chosen.tolist(), usage, strict=True)])
            actions.append([walker.action for walker in walkers])
        seen, done = zip(*observations, strict=True), zip(*actions, strict=True)
        return [(w.row, Episode(o, a)) for w, o, a in zip(walkers, seen, done, strict=True)]

    def _explored(self, observations: Observation) -> NDArray[np.float64]:
        """(count,) actions for (count, 11) observations."""
        if self._asked < self._warmup or self._learner is None:
            return self._rng.random(len(observations))
        deviation = max(_LEAST_DEVIATION, _DEVIATION * self._decay ** (self._asked - self._warmup))
        actions = self._learner.act(observations).tolist()
        return np.array([truncated_normal(action, deviation, self._rng) for action in actions])

    def _remember(self, learner: Learner, episode: Episode, reward: float) -> None:
        self._average = reward if self._average is None else _AVERAGE * self._average + (1 - _AVERAGE) * reward
        last = len(episode.actions) - 1
        for step, action in enumerate(episode.actions):
            before, after = episode.observations[step : step + 2]
            learner.remember(before, after, action, reward - self._average, done=step == last)


def truncated_normal(mean: float, deviation: float, rng: np.random.Generator) -> float:
    """A draw from the normal distribution around `mean` in [0, 1], truncated to [0, 1], by rejection: two draws on average at most."""
    while True:
        draws = mean + deviation * rng.standard_normal(8)
        inside = draws[(draws >= 0.0) & (draws <= 1.0)]
        if len(inside):
            return float(inside[0])
