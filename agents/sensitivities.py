"""The losses of single choices as agents use them: flat, finite, never negative."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automc.errors import InputError
from automc.protocols import Problem

__all__ = ["single_losses"]

Array = NDArray[np.float64]


def single_losses(problem: Problem, agent: str) -> Array:
    """(choices,) the loss of each choice alone, domain after domain; a choice whose loss could not be measured is as bad as all
    others together.

    Raises:
        InputError: the problem carries no sensitivities.
    """
    if problem.sensitivity is None:
        raise InputError(
            f"The agent {agent!r} needs sensitivities, and this problem has none.",
            remedy="Give calibration data, or use --agent tpe.",
        )
    flat = np.concatenate([*problem.sensitivity, np.zeros(0)])
    known = flat[np.isfinite(flat)]
    worst = float(np.maximum(known, 0.0).sum()) + 1.0
    return np.maximum(np.where(np.isfinite(flat), flat, worst), 0.0)
