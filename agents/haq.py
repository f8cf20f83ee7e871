"""HAQ (Wang et al. 2019, 1811.08886): reinforcement learning chooses the bits of each layer.

DDPG over the layers; an action in [0, 1] is divided evenly among a layer's choices (equation 3). Where the episode exceeds the budget, the choices
are lowered one after the other, layer by layer, until it holds (section 3.1); the reward is the change in score times 0.1 (equation 5). The
joint mode chooses channels and ranks as well.
"""

from __future__ import annotations

import numpy as np

from automc.env import LayerwiseEnv
from automc.errors import InputError
from automc.policy import Quantize
from automc.pricing import Pricing
from automc.protocols import Problem
from automc.space import Codes

from .layerwise import Layerwise

__all__ = ["haq", "haq_joint", "lowered"]

_SCALE = 0.1


def haq(problem: Problem, seed: int) -> Layerwise:
    """Bits alone; where the fewest bits exceed the budget, the other knobs are lowered after them.

    Raises:
        InputError: the space offers no bits, or none that change what the budget limits.
    """
    choice = problem.space.cardinalities > 1
    columns = [column for column in problem.space.columns(Quantize.knob) if choice[column]]
    if choice.any() and not columns:
        raise InputError(
            "The agent 'haq' chooses bits, and none here change what is limited.", remedy="Use --agent haq-joint."
        )
    return _haq(problem, seed, columns)


def haq_joint(problem: Problem, seed: int) -> Layerwise:
    """Every knob of the space."""
    return _haq(problem, seed, np.flatnonzero(problem.space.cardinalities > 1).tolist())


def _haq(problem: Problem, seed: int, columns: list[int]) -> Layerwise:
    env = LayerwiseEnv(problem, columns=columns, bounded=False) if columns else None
    pricing = env.pricing if env else Pricing(problem)
    return Layerwise(problem, seed, env, "ddpg", finish=lambda row: lowered(pricing, row, columns), scale=_SCALE)


def lowered(pricing: Pricing, row: Codes, columns: list[int]) -> Codes:
    """`row` with its domains taken one step at a time towards the smallest policy, those of `columns` in turn before the others, until
    it holds the budget."""
    rest = [column for column in range(len(row)) if column not in set(columns)]
    path = [row]
    for domains in (columns, rest):
        while (behind := [d for d in domains if path[-1][d] != pricing.smallest[d]]) != []:
            for domain in behind:
                stepped = path[-1].copy()
                stepped[domain] += np.sign(pricing.smallest[domain] - stepped[domain])
                path.append(stepped)
    inside: Codes = path[int(np.argmax(pricing.holds(np.array(path))))]
    return inside
