"""The search as a gymnasium environment: one step a choice, layer by layer, so that any agent for one can be trained on it.

After AMC (He et al. 2018, 1802.03494): the 11 features of equation 1, bounds on each action that keep the budget within reach (algorithm 1), and a
reward when the last choice is made. Importing this module registers `automc/Layerwise-v0`:

    import gymnasium, automc.env
    env = gymnasium.make("automc/Layerwise-v0", problem=problem, evaluate=lambda policy: ...)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from automc.errors import InputError
from automc.policy import Policy
from automc.pricing import Pricing
from automc.protocols import Problem
from automc.space import Codes, summed

__all__ = ["LayerwiseEnv", "proxy"]

Array = NDArray[np.float64]
Observation = NDArray[np.float32]
_STATE = 11


class LayerwiseEnv(gymnasium.Env):
    """Observation (11,) in [0, 1]: index, seven features of the layer, usage taken off so far, usage that the rest could still take
    off, last action. Action (1,) in [0, 1]: 0 is dense, 1 the most compressed choice.

    Args:
        evaluate: policy -> score, at most 1, higher is better; None scores by the summed sensitivities.
        columns: the domains that are chosen, in this order; None takes all. The others stay dense.
        bounded: whether actions are moved to choices from which the budget can still be held.
        reward: "resource" is -error (equation 3 of AMC, for a budget that is enforced), "accuracy" is -error x log(MACs)
            (equation 4, for as small a model as loses nothing); error is 1 - score.

    Raises:
        InputError: there is nothing to choose, or nothing to score by.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own attribute

    def __init__(
        self,
        problem: Problem,
        evaluate: Callable[[Policy], float] | None = None,
        *,
        columns: Sequence[int] | None = None,
        bounded: bool = True,
        reward: Literal["resource", "accuracy"] = "resource",
        render_mode: str | None = None,
    ) -> None:
        self.problem, self.pricing = problem, Pricing(problem)
        offered = range(len(problem.space)) if columns is None else columns
        self.columns = [column for column in offered if len(problem.space.domains[column]) > 1]
        if not self.columns:
            raise InputError(
                "The search space leaves nothing to choose.", remedy="`automc check` lists what it offers."
            )
        self.render_mode = render_mode
        self._evaluate = evaluate
        self._bounded, self._reward = bounded, reward
        self._static = _static(problem, self.columns)
        self._dense_usage = float(self.pricing.usage(problem.space.dense[None]).max())
        self._least_usage = self._completed_usage()
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (_STATE,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.begin()

    @property
    def done(self) -> bool:
        """Whether every choice is made."""
        return self._at == len(self.columns)

    def begin(self) -> Observation:
        """Start over from dense; the first observation."""
        self.row: Codes = self.problem.space.dense
        self._at, self._action = 0, 0.0
        self._spent, self._least = self._dense_usage, self._least_usage
        return self._observe()

    def choose(self, action: float, usage: Array | None = None) -> Observation:
        """Make the next choice, `action` in [0, 1], moved inside the bounds; the next observation.

        A choice c of n stands for actions from c / n to (c + 1) / n (HAQ, 1811.08886, equation 3).

        Args:
            usage: of the rows of `options`, where they have been priced already: (rows, limits).
        """
        count = len(self.problem.space.domains[self.columns[self._at]])
        priced = (self.pricing.usage(self.options()) if usage is None else usage).max(axis=1).reshape(2, count)
        code = self._nearest(min(int(action * count), count - 1), priced[1])
        return self._take(code, float(priced[0, code]), float(priced[1, code]))

    def replay(self, row: Codes) -> tuple[list[Observation], list[float]]:
        """The (steps + 1) observations and (steps,) actions of the episode that ends in (domains,) `row`, whatever the bounds."""
        count = len(self.columns)
        rows = np.repeat(self.problem.space.dense[None], 2 * (count + 1), axis=0)
        rows[count + 1 :, self.columns] = self.pricing.smallest[self.columns]
        for step, column in enumerate(self.columns):
            rows[step + 1 : count + 1, column] = rows[count + 2 + step :, column] = row[column]
        spent, least = self.pricing.usage(rows).max(axis=1).reshape(2, -1)
        observations, actions = [self.begin()], []
        for step, column in enumerate(self.columns):
            observations.append(self._take(int(row[column]), float(spent[step + 1]), float(least[step + 1])))
            actions.append(self._action)
        return observations, actions

    def _take(self, code: int, spent: float, least: float) -> Observation:
        column = self.columns[self._at]
        self.row[column] = code
        self._at, self._action = self._at + 1, (code + 0.5) / len(self.problem.space.domains[column])
        self._spent, self._least = spent, least
        return self._observe()

    @property
    def action(self) -> float:
        """The action that stands for the last choice, in [0, 1]."""
        return self._action

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        return self.begin(), {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Make one choice; after the last one the policy is scored and stands in `info` with its score and its usage."""
        observation = self.choose(float(np.clip(np.asarray(action, dtype=float).ravel()[0], 0.0, 1.0)))
        if not self.done:
            return observation, 0.0, False, False, {}
        policy = self.problem.space.decode(self.row[None])[0]
        score = float(self._evaluate(policy)) if self._evaluate else proxy(self.problem, self.row)
        info = {"policy": policy, "score": score, "usage": self._spent}
        return observation, self.rewarded(score), True, False, info

    def rewarded(self, score: float) -> float:
        """The reward of the policy just chosen for its score; that of score 0 where there is none."""
        error = 1.0 - (score if math.isfinite(score) else 0.0)
        if self._reward == "resource":
            return -error
        return -error * math.log(max(float(self.problem.predictor.predict(self.row[None]).macs[0]), math.e))

    def _nearest(self, code: int, least: Array) -> int:
        """The allowed code nearest to `code`, the more compressed of two; (choices,) `least` is what each could still come to."""
        if not self._bounded:
            return code
        allowed = np.flatnonzero(least <= self.pricing.ceiling)
        if not len(allowed):
            return int(least.argmin())
        return int(allowed[np.argmin(np.abs(allowed - code) - 0.25 * (allowed > code))])

    def options(self) -> Codes:
        """(2 x choices, domains) each next choice with what follows left dense, then each with what follows at its smallest."""
        column, later = self.columns[self._at], self.columns[self._at + 1 :]
        count = len(self.problem.space.domains[column])
        rows = np.repeat(self.row[None], 2 * count, axis=0)
        rows[:, column] = np.tile(np.arange(count), 2)
        rows[count:, later] = self.pricing.smallest[later]
        return rows

    def _completed_usage(self) -> float:
        """Of the dense row with every choice at its smallest."""
        row = self.problem.space.dense
        row[self.columns] = self.pricing.smallest[self.columns]
        return float(self.pricing.usage(row[None]).max())

    def _observe(self) -> Observation:
        at = min(self._at, len(self.columns) - 1)
        reduced, rest = self._dense_usage - self._spent, self._spent - self._least
        state = [
            at / len(self.columns),
            *self._static[at],
            reduced / self._dense_usage,
            rest / self._dense_usage,
            self._action,
        ]
        return np.clip(state, 0.0, 1.0).astype(np.float32)


def proxy(problem: Problem, row: Codes) -> float:
    """A score without evaluating: the dense score times exp(-sum of single-choice losses).

    Raises:
        InputError: the problem has no sensitivities.
    """
    if problem.sensitivity is None:
        raise InputError("There is nothing to score policies by.", remedy="Give `evaluate`, or sensitivities.")
    loss = float(summed(problem.sensitivity, row))
    return problem.dense_score * math.exp(-max(loss, 0.0)) if math.isfinite(loss) else 0.0


def _static(problem: Problem, columns: Sequence[int]) -> Array:
    """(columns, 7) features of the layers, each as a share of its largest; of problems without layers, the numbers of choices."""
    features = problem.features
    if features is None:
        features = np.zeros((len(problem.space), 7))
        features[:, 0] = problem.space.cardinalities
    chosen = features[list(columns)]
    shares: Array = chosen / np.maximum(chosen.max(axis=0), 1e-12)
    return shares


if "automc/Layerwise-v0" not in gymnasium.registry:
    gymnasium.register(id="automc/Layerwise-v0", entry_point="automc.env:LayerwiseEnv")
