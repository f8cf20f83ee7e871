"""Tree-structured Parzen estimator through Optuna: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization".

Multivariate (Falkner et al. 2018, 1807.01774), with constraints (Watanabe and Hutter 2022, 2211.14411), and with running trials
counted as bad (constant liar). The problem's objectives are minimised as well, by non-domination ranks (Ozaki et al. 2020).
"""

from __future__ import annotations

import optuna

from automc.protocols import Problem

from .parzen import TabulatedParzen
from .study import STARTUP, Study

__all__ = ["tpe"]


def tpe(problem: Problem, seed: int) -> Study:
    """Proposes where the ratio of the density of good codes to that of the others is largest (equation 19 of the paper)."""
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    sampler._parzen_estimator_cls = TabulatedParzen
    return Study(problem, seed, sampler, "tpe")
