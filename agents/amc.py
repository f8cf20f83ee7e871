"""AMC (He et al. 2018, 1802.03494): reinforcement learning chooses how strongly each layer is compressed.

DDPG over the layers, 11 features a state (equation 1), actions bounded so that each episode holds the budget (algorithm 1), reward -error
(equation 3), truncated normal exploration with decay. Here an action covers every knob of the space, domain by domain.
"""

from __future__ import annotations

from automc.env import LayerwiseEnv
from automc.policy import Policy
from automc.protocols import Problem

from .layerwise import Layerwise
from .learner import Algorithm

__all__ = ["amc", "amc_sac", "amc_td3"]


def amc(problem: Problem, seed: int) -> Layerwise:
    """AMC with DDPG, as published."""
    return _amc(problem, seed, "ddpg")


def amc_td3(problem: Problem, seed: int) -> Layerwise:
    """AMC with TD3, whose two critics overestimate less."""
    return _amc(problem, seed, "td3")


def amc_sac(problem: Problem, seed: int) -> Layerwise:
    """AMC with SAC, which explores by itself as well."""
    return _amc(problem, seed, "sac")


def _amc(problem: Problem, seed: int, algorithm: Algorithm) -> Layerwise:
    env = LayerwiseEnv(problem, _scored_by_the_search) if (problem.space.cardinalities > 1).any() else None
    return Layerwise(problem, seed, env, algorithm, finish=lambda row: row)


def _scored_by_the_search(policy: Policy) -> float:
    raise AssertionError(f"the search scores policies, the environment does not: {policy}")
