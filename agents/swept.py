"""Objectives without a limit, by sweeping limits on them: the epsilon-constraint method (Haimes, Lasdon and Wismer 1971).

An agent that seeks the best score within a budget draws a front in a further metric when it is asked for several budgets: the one that was
given, and the same with ever tighter limits on the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from automc.budget import Budget, Limit
from automc.policy import Policy
from automc.pricing import Pricing
from automc.protocols import Agent, Problem
from automc.space import Codes
from automc.trial import Trial

from .ledger import Ledger

__all__ = ["Swept", "sweeping"]

_RUNGS = 4
"""Limits on each objective, and on all of them at once where there are several."""
_LOWEST = 1e-3
_TRIES = 2
"""How often the agents are gone through for one batch, as they may propose what others did."""

Maker = Callable[[Problem, int], Agent]


def sweeping(make: Maker, problem: Problem, seed: int) -> Agent:
    """`make`'s agent, or where the problem has objectives one for each of several limits on them."""
    return Swept(make, problem, seed) if problem.objectives else make(problem, seed)


class Swept:
    """Asks an agent for the budget alone first, then in turn agents that have a limit on the objectives as well; all are told everything.

    The limits fall evenly, as ratios, from what the first answer costs to the least there is within the budget.
    """

    def __init__(self, make: Maker, problem: Problem, seed: int) -> None:
        self._make, self._problem, self._seed = make, problem, seed
        self._ledger = Ledger(problem.space)
        self._agents: list[Agent] = [make(replace(problem, objectives=()), seed)]
        self._told: list[Trial] = []
        self._first: Codes | None = None
        self._opened = False
        self._turn = 0

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new policies; fewer only when no agent has more."""
        if self._first is not None and not self._opened:
            self._open(self._first)
        asked: list[Policy] = []
        for _ in range(max(_TRIES * len(self._agents), count)):
            if len(asked) == count:
                break
            share = -(-count // len(self._agents)) if self._opened else count
            asked.extend(self._fresh(self._agents[self._turn].ask(min(share, count - len(asked)))))
            self._turn = (self._turn + 1) % len(self._agents)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell every agent."""
        self._ledger.record(trials)
        self._told.extend(trials)
        for agent in self._agents:
            agent.tell(trials)

    def _fresh(self, policies: Sequence[Policy]) -> list[Policy]:
        rows = self._problem.space.encode(policies)
        if len(rows) and self._first is None:
            self._first = rows[0]
        return [self._ledger.propose(row) for row in rows if self._ledger.is_new(row)]

    def _open(self, first: Codes) -> None:
        """Make the agents of the tighter limits, and tell them what is known."""
        self._opened = True
        for i, budget in enumerate(self._budgets(first), 1):
            problem = replace(self._problem, budget=budget, objectives=())
            if Pricing(problem).reachable:
                self._agents.append(self._make(problem, self._seed + i))
                self._agents[-1].tell(self._told)

    def _budgets(self, first: Codes) -> Iterator[Budget]:
        """The tightest last."""
        limited = self._problem.budget
        paths = {metric: self._path(first, metric) for metric in self._problem.objectives}
        together = [list(paths)] if len(paths) > 1 else []
        for rung in range(_RUNGS):
            for metrics in (*([metric] for metric in paths), *together):
                tighter = (Limit(metric, float(paths[metric][rung])) for metric in metrics)
                yield Budget((*limited.limits, *tighter))

    def _path(self, first: Codes, metric: str) -> NDArray[np.float64]:
        """(rungs,) falling limits between what the first proposal costs and the least that the space offers."""
        top = self._cost(first, metric)
        alone = replace(self._problem, budget=Budget((Limit(metric, top),)))
        least = min(top, self._cost(Pricing(alone).smallest, metric))
        return np.geomspace(top, max(least, _LOWEST * top), _RUNGS + 2)[1:-1]

    def _cost(self, row: Codes, metric: str) -> float:
        return float(self._problem.predictor.predict(row[None]).array(metric)[0])
