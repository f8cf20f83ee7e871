"""CMA-ES through Optuna: Hansen 2016, "The CMA evolution strategy: a tutorial" (1604.00772), with a margin for integers.

The margin (Hamano et al. 2022, 2205.13482) keeps the probability of every neighbouring code above a floor, so that a domain does not freeze
at one code. CMA-ES has no constraints: a proposal outside the budget is repaired, and it learns from the repaired one.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import optuna

from automc.errors import MissingError
from automc.protocols import Problem

from .study import STARTUP, Study

__all__ = ["cmaes"]

if find_spec("cmaes") is None:
    raise MissingError("The agent 'cmaes' needs the package cmaes.", remedy="Install it: pip install automc[cmaes]")


def cmaes(problem: Problem, seed: int) -> Study:
    """A Gaussian over the codes, adapted to the best of each generation; policies on random paths come first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.CmaEsSampler(
            seed=seed, n_startup_trials=STARTUP, with_margin=True, warn_independent_sampling=False
        )
    return Study(problem, seed, sampler, "cmaes", constrained=False, multiple=False)
