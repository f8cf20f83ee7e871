"""An Optuna study over a search space: Optuna proposes, the predictor prices.

A proposal outside the budget is told to Optuna with its violation and asked of the search only after it was shrunk into the
budget. Samplers differ; all that stands here is the same for every one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from automc.errors import InputError
from automc.policy import Policy
from automc.pricing import Pricing
from automc.protocols import Problem
from automc.space import Codes
from automc.trial import Trial

from .frontier import Frontier
from .ledger import Ledger, is_scored
from .opening import opening

__all__ = ["STARTUP", "Study", "parameters"]

STARTUP = 10
"""Policies of the opening, before the sampler is asked."""
_PATIENCE = 6
_REPEATED = 4
"""After so many batches in which ideas only repeated, the sampler is no longer asked."""


class Study:
    """One ordinal parameter per domain, 0 = dense, and the constraint "budget".

    `problem.options["storage"]` is a file, or a database's URL, that `optuna-dashboard` opens; each study there has a name of
    its own. Without it the study is kept in memory.

    Attributes:
        study: Optuna's.

    Args:
        name: of the study; a number follows it.
        startup: policies of the opening, before the sampler is asked.
        front: whether usage of the budget is an objective, to be minimised.
        multiple: whether the sampler takes several objectives: then those of the problem are minimised too, as shares of the dense model's.
        constrained: whether the sampler takes constraints.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        sampler: BaseSampler,
        name: str,
        *,
        startup: int = STARTUP,
        front: bool = False,
        multiple: bool = True,
        constrained: bool = True,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._problem = problem
        self._pricing = Pricing(problem)
        self._ledger = Ledger(problem.space)
        self._rng = np.random.default_rng(seed)
        self._frontier = Frontier(self._pricing, self._ledger, self._rng)
        self._front, self._constrained = front, constrained
        self._startup, self._repeated = startup, 0
        self._opening: list[Codes] | None = None
        self._objectives = {metric: _dense(problem, metric) for metric in problem.objectives} if multiple else {}
        storage = _storage(problem.options.get("storage"))
        directions: list[Literal["maximize", "minimize"]] = ["maximize"]
        directions += ["minimize"] * (front + len(self._objectives))
        self.study = optuna.create_study(
            directions=directions, sampler=sampler, storage=storage, study_name=_free(storage, name)
        )
        self._distributions = parameters(problem)
        self._pending: dict[bytes, optuna.Trial] = {}

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new policies inside the budget, those of the opening first; once ideas repeat, those next to known ones."""
        if self._opening is None:
            self._opening = opening(self._pricing, self._startup, self._rng)
        asked: list[Policy] = []
        missed = 0
        while len(asked) < count and missed < _PATIENCE and self._repeated < _REPEATED:
            row = self._opening.pop(0) if self._opening else self._draw()
            if self._ledger.is_new(row):
                asked.append(self._propose(row))
            else:
                missed += 1
        self._repeated += missed >= _PATIENCE
        while len(asked) < count and (near := self._frontier.next()) is not None:
            asked.append(self._propose(near))
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell Optuna scores and violations; trials it did not propose are added to its history."""
        for row, trial in self._ledger.record(trials):
            pending = self._pending.pop(row.tobytes(), None)
            usage = self._usage(row)
            if pending is not None:
                self._constrain(pending, usage)
                values = self._values(trial, usage, row) if is_scored(trial) else None
                self.study.tell(pending, values, state=_state(trial))
            elif is_scored(trial):
                self._add(row, trial, usage)

    def _add(self, row: Codes, trial: Trial, usage: float) -> None:
        self.study.add_trial(
            optuna.create_trial(
                values=self._values(trial, usage, row),
                params=self._parameters(row),
                distributions=dict(self._distributions),
                constraints={"budget": usage - self._pricing.ceiling} if self._constrained else None,
            )
        )

    def _draw(self) -> Codes:
        """A proposal of Optuna, shrunk into the budget where it is outside."""
        trial = self.study.ask(dict(self._distributions))
        row = self._pricing.space.dense
        for name, value in trial.params.items():
            row[int(name)] = value
        usage = self._usage(row)
        outside = usage > self._pricing.ceiling
        if not outside and self._ledger.is_new(row):
            self._pending[row.tobytes()] = trial
            return row
        self._constrain(trial, usage)
        self.study.tell(trial, state=TrialState.PRUNED if outside else TrialState.FAIL)
        return self._pricing.shrink(row, self._rng)

    def _constrain(self, trial: optuna.Trial, usage: float) -> None:
        if self._constrained:
            trial.set_constraint("budget", usage - self._pricing.ceiling)

    def _propose(self, row: Codes) -> Policy:
        """Propose `row`, and have Optuna run a trial there unless it proposed it itself."""
        if row.tobytes() not in self._pending:
            self.study.enqueue_trial(self._parameters(row))
            self._pending[row.tobytes()] = self.study.ask(dict(self._distributions))
        return self._ledger.propose(row)

    def _values(self, trial: Trial, usage: float, row: Codes) -> list[float]:
        values = [trial.merit, *([usage] if self._front else [])]
        if self._objectives:
            costs = self._problem.predictor.predict(row[None])
            values += [float(costs.array(metric)[0]) / dense for metric, dense in self._objectives.items()]
        return values

    def _parameters(self, row: Codes) -> dict[str, int]:
        return {name: int(row[int(name)]) for name in self._distributions}

    def _usage(self, row: Codes) -> float:
        return float(self._pricing.usage(row[None]).max())


def _dense(problem: Problem, metric: str) -> float:
    return float(problem.predictor.predict(problem.space.dense[None]).array(metric)[0]) or 1.0


def parameters(problem: Problem) -> dict[str, IntDistribution]:
    """Optuna's parameters: every domain with a choice, named by its index, from 0 (dense) to its most compressed code."""
    sizes = problem.space.cardinalities.tolist()
    return {str(d): IntDistribution(0, n - 1) for d, n in enumerate(sizes) if n > 1}


def _storage(option: object) -> BaseStorage | None:
    """The storage of a file or URL, None for memory.

    Raises:
        InputError: neither.
    """
    if option is None:
        return None
    if not isinstance(option, (str, Path)):
        raise InputError(f"The storage {option!r} is no file and no URL.", remedy="Give a path, or sqlite:///FILE.")
    if "://" in str(option):
        return optuna.storages.get_storage(str(option))
    return JournalStorage(JournalFileBackend(str(option), JournalFileOpenLock(str(option))))


def _free(storage: BaseStorage | None, name: str) -> str:
    """`name` and the next number that no study of the storage has."""
    taken = set() if storage is None else {study.study_name for study in storage.get_all_studies()}
    return next(f"{name}-{i}" for i in range(1, len(taken) + 2) if f"{name}-{i}" not in taken)


def _state(trial: Trial) -> TrialState:
    return TrialState.COMPLETE if is_scored(trial) else TrialState.FAIL
