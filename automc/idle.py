"""Domains that cannot help: none of their choices changes anything that is limited or wished for, so that all they can cost is accuracy.

Bits do not change MACs, for one. An agent that varied them under a limit of MACs would spend its evaluations on noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from automc.protocols import Problem
from automc.space import Codes, SearchSpace

__all__ = ["idle", "idle_knobs", "without_idle"]

_DRAWN = 4
_SAME = 1e-9
"""Relative difference up to which two costs are the same."""


def without_idle(problem: Problem) -> Problem:
    """`problem` with every idle domain held at dense, its only choice; codes mean what they meant."""
    held = idle(problem)
    if not held:
        return problem
    domains = [replace(d, choices=d.choices[:1]) if i in held else d for i, d in enumerate(problem.space.domains)]
    known = problem.sensitivity
    losses = None if known is None else [c[:1] if i in held else c for i, c in enumerate(known)]
    return replace(problem, space=SearchSpace(tuple(domains)), sensitivity=losses)


def idle_knobs(problem: Problem, left: Problem) -> list[str]:
    """The knobs that `problem` offers and `left`, without its idle domains, offers no choice of."""
    offered, kept = ({d.knob for d in each.space.domains if len(d) > 1} for each in (problem, left))
    return sorted(offered - kept)


def idle(problem: Problem) -> frozenset[int]:
    """The domains of several choices that change no cost of the budget and of the objectives, whatever the others are.

    Tried from the dense, the most compressed and a few random policies, so a domain that matters in rare company alone may count as idle.
    """
    space = problem.space
    drawn = space.sample(_DRAWN, np.random.default_rng(0))
    bases = np.concatenate([space.dense[None], (space.cardinalities - 1)[None], drawn])
    metrics = tuple(dict.fromkeys((*problem.budget.metrics, *problem.objectives)))
    several = np.flatnonzero(space.cardinalities > 1).tolist()
    rows = [_all_choices(base, column, int(space.cardinalities[column])) for column in several for base in bases]
    if not rows:
        return frozenset()
    costs = problem.predictor.predict(np.concatenate(rows))
    table = np.stack([costs.array(metric) for metric in metrics], axis=1)
    parts = np.split(table, np.cumsum([len(each) for each in rows])[:-1])
    per_domain = [parts[i : i + len(bases)] for i in range(0, len(parts), len(bases))]
    return frozenset(column for column, each in zip(several, per_domain, strict=True) if _level(each))


def _all_choices(base: Codes, column: int, count: int) -> Codes:
    """(count, domains) `base` with each choice of one domain."""
    rows = np.repeat(base[None], count, axis=0)
    rows[:, column] = np.arange(count)
    return rows


def _level(tables: Sequence[NDArray[np.float64]]) -> bool:
    """Whether the rows of each (choices, metrics) table are all the same."""
    return all(bool(np.allclose(table, table[:1], rtol=_SAME, atol=0.0)) for table in tables)
