"""Tree-structured Parzen estimator through Optuna: Bergstra et al. 2011; with constraints, Watanabe and Hutter 2022 (2211.14411).

Optuna proposes, the predictor prices: a proposal outside the budget is told to Optuna with its violation and asked of the
search only after it was shrunk into the budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from automc.policy import Policy
from automc.protocols import Problem
from automc.space import Codes
from automc.trial import Trial

from .frontier import Frontier
from .ledger import Ledger
from .pricing import Pricing, ray

__all__ = ["TPE"]

_STARTUP = 10
_PATIENCE = 20
_STRENGTHS = np.linspace(0.0, 1.0, 41)


class TPE:
    """One ordinal parameter per domain, 0 = dense; multivariate, with running trials counted as bad (constant liar)."""

    def __init__(self, problem: Problem, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._pricing = Pricing(problem)
        self._ledger = Ledger(problem.space)
        self._rng = np.random.default_rng(seed)
        self._frontier = Frontier(self._pricing, self._ledger, self._rng)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        sizes = problem.space.cardinalities.tolist()
        self._distributions = {str(d): IntDistribution(0, n - 1) for d, n in enumerate(sizes) if n > 1}
        self._pending: dict[bytes, optuna.Trial] = {}
        self._asked = 0

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new policies inside the budget, random points of it first; once ideas repeat, those next to known ones."""
        asked: list[Policy] = []
        missed = 0
        while len(asked) < count and missed < _PATIENCE:
            row = self._draw() if self._asked >= _STARTUP and missed < _PATIENCE // 2 else self._random()
            if self._ledger.is_new(row):
                asked.append(self._propose(row))
            else:
                missed += 1
        while len(asked) < count and (near := self._frontier.next()) is not None:
            asked.append(self._propose(near))
        self._asked += len(asked)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell Optuna scores and violations; trials it did not propose are added to its history."""
        for row, trial in self._ledger.record(trials):
            pending = self._pending.pop(row.tobytes(), None)
            violation = self._violation(row)
            if pending is not None:
                pending.set_constraint("budget", violation)
                self._study.tell(pending, trial.score, state=_state(trial))
            elif trial.state == "complete":
                self._study.add_trial(
                    optuna.create_trial(
                        value=trial.score,
                        params=self._parameters(row),
                        distributions=dict(self._distributions),
                        constraints={"budget": violation},
                    )
                )

    def _draw(self) -> Codes:
        """A proposal of Optuna, shrunk into the budget where it is outside."""
        trial = self._study.ask(dict(self._distributions))
        row = self._pricing.space.dense
        for name, value in trial.params.items():
            row[int(name)] = value
        violation = self._violation(row)
        if violation <= 0.0 and self._ledger.is_new(row):
            self._pending[row.tobytes()] = trial
            return row
        trial.set_constraint("budget", violation)
        self._study.tell(trial, state=TrialState.PRUNED if violation > 0.0 else TrialState.FAIL)
        return self._pricing.shrink(row, self._rng)

    def _random(self) -> Codes:
        """The first point of a random path inside the budget, other than dense: a dense model inside teaches nothing twice."""
        path = ray(self._pricing.space.cardinalities, _STRENGTHS, self._rng)
        inside = self._pricing.holds(path) & path.any(axis=1)
        return self._pricing.shrink(path[int(np.argmax(inside))], self._rng)

    def _propose(self, row: Codes) -> Policy:
        """Propose `row`, and have Optuna run a trial there unless it proposed it itself."""
        if row.tobytes() not in self._pending:
            self._study.enqueue_trial(self._parameters(row))
            self._pending[row.tobytes()] = self._study.ask(dict(self._distributions))
        return self._ledger.propose(row)

    def _parameters(self, row: Codes) -> dict[str, int]:
        return {name: int(row[int(name)]) for name in self._distributions}

    def _violation(self, row: Codes) -> float:
        return float(self._pricing.usage(row[None]).max() - self._pricing.ceiling)


def _state(trial: Trial) -> TrialState:
    if trial.state == "complete":
        return TrialState.COMPLETE
    return TrialState.PRUNED if trial.state == "infeasible" else TrialState.FAIL
