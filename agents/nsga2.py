"""NSGA-II through Optuna: Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II".

Objectives are the score, the usage of the budget, so that a generation spreads along the front below the budget, and those of the problem;
constrained domination (section VI of the paper) keeps it inside.
"""

from __future__ import annotations

import optuna

from automc.protocols import Problem

from .study import Study

__all__ = ["nsga2"]

_GENERATIONS = 6
_FEWEST, _MOST = 4, 50


def nsga2(problem: Problem, seed: int) -> Study:
    """About six generations in the trials there are; the first is random."""
    population = min(max(problem.n_trials // _GENERATIONS, _FEWEST), _MOST)
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
    return Study(problem, seed, sampler, "nsga2", startup=population, front=True)
