"""Gaussian-process search: Jones, Schonlau and Welch 1998, "Efficient global optimization of expensive black-box functions".

A Gaussian process over relative levels of compression, a Matern 5/2 kernel (Rasmussen and Williams 2006, equations 4.17 and
2.25 to 2.26), its length and noise chosen by the evidence (equation 2.30), and the expected improvement (equation 15 of Jones et al.)
over a pool of candidates inside the budget. Optuna has one too; with fifty domains its acquisition takes seconds a proposal.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import ndtr

from automc.policy import Policy
from automc.pricing import Pricing, ray
from automc.protocols import Problem
from automc.space import Codes
from automc.trial import Trial

from .frontier import Frontier
from .ledger import Ledger
from .opening import opening

__all__ = ["GaussianProcess", "Posterior", "expected_improvement"]

Array = NDArray[np.float64]
_STARTUP = 10
_FEWEST = 4
_POOL = 192
_PARENTS = 4
_LENGTHS = (0.3, 0.6, 1.2, 2.4)
"""Candidate length scales, in units of the root mean square distance of the space's corners."""
_NOISES = (1e-4, 1e-2, 1e-1)
"""Candidate noise variances, as shares of the variance of the scores."""
_MOST = 300
"""Trials that the process is fitted to at most, the best and the latest: fitting is cubic."""
_STRENGTHS = np.linspace(0.0, 1.0, 41)


class GaussianProcess:
    """Ten policies of the opening, then those of most expected improvement; batches by kriging believer.

    Within a batch, policies asked and not yet told count as having their expected score (Ginsbourger et al. 2010).
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._pricing = Pricing(problem)
        self._ledger = Ledger(problem.space)
        self._rng = np.random.default_rng(seed)
        self._frontier = Frontier(self._pricing, self._ledger, self._rng)
        self._opening: list[Codes] | None = None
        self._levels = np.maximum(problem.space.cardinalities - 1, 1)

    def ask(self, count: int) -> Sequence[Policy]:
        """`count` new policies inside the budget, those of the opening first; then, and in the end, those next to known ones."""
        if self._opening is None:
            self._opening = opening(self._pricing, _STARTUP, self._rng)
        asked: list[Policy] = []
        while self._opening and len(asked) < count:
            row = self._opening.pop(0)
            if self._ledger.is_new(row):
                asked.append(self._ledger.propose(row))
        if len(self._ledger.scored) >= _FEWEST:
            asked.extend(self._ledger.propose(row) for row in self._improving(count - len(asked)))
        return [*asked, *self._ledger.fill(count - len(asked), self._frontier.next)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Note the scores."""
        self._ledger.record(trials)

    def _improving(self, count: int) -> list[Codes]:
        rows, scores = self._known()
        pool = self._pool(rows[np.argsort(-scores, kind="stable")[:_PARENTS]])
        posterior = Posterior.fitted(rows / self._levels, scores)
        found: list[Codes] = []
        while len(found) < count and len(pool):
            mean, deviation = posterior.at(pool / self._levels)
            best = int(np.argmax(expected_improvement(mean, deviation, float(scores.max()))))
            found.append(pool[best])
            posterior = posterior.believing(pool[best] / self._levels, float(mean[best]))
            pool = np.delete(pool, best, axis=0)
        return found

    def _known(self) -> tuple[Codes, Array]:
        """The best and the latest scored rows, best first, and their scores."""
        scored = self._ledger.scored
        latest, rest = scored[-_MOST // 2 :], scored[: -_MOST // 2]
        rest = sorted(rest, key=lambda pair: -pair[1].merit)[: _MOST // 2]
        kept = [*rest, *latest]
        return np.array([row for row, _ in kept]), np.array([trial.merit for _, trial in kept], dtype=float)

    def _pool(self, parents: Codes) -> Codes:
        """(rows, domains) new rows inside the budget: mutants of the parents, and points of random paths."""
        drawn = parents[self._rng.integers(len(parents), size=_POOL)]
        share = self._rng.choice([0.02, 0.05, 0.15], size=(_POOL, 1))
        moved = self._rng.random(drawn.shape) < share
        if drawn.shape[1]:
            moved[np.arange(_POOL), self._rng.integers(drawn.shape[1], size=_POOL)] = True
        mutants = np.where(moved, self._pricing.space.sample(_POOL, self._rng), drawn)
        paths = [ray(self._pricing.space.cardinalities, _STRENGTHS[::4], self._rng) for _ in range(4)]
        pool = np.unique(np.concatenate([mutants, *paths]), axis=0)
        inside = pool[self._pricing.holds(pool)]
        return inside[[self._ledger.is_new(row) for row in inside]] if len(inside) else inside


@dataclass(frozen=True)
class Posterior:
    """A Gaussian process after (trials, domains) `x` and their (trials,) scores, standardised inside.

    Attributes:
        length, noise: of the kernel, and of the scores as a share of their variance.
        centre, scale: the mean and the deviation that scores are standardised by.
    """

    x: Array
    y: Array
    length: float
    noise: float
    centre: float
    scale: float

    @classmethod
    def fitted(cls, x: Array, scores: Array) -> Posterior:
        """The posterior whose length and noise have most evidence."""
        centre, scale = float(scores.mean()), float(scores.std()) or 1.0
        y = (scores - centre) / scale
        unit = float(np.sqrt(max(x.shape[1], 1) / 6.0))  # root mean square distance of two uniform points
        options = [
            cls(x, y, unit * length, noise, centre, scale) for length, noise in itertools.product(_LENGTHS, _NOISES)
        ]
        return max(options, key=lambda option: option._evidence())

    def believing(self, point: Array, score: float) -> Posterior:
        """The same posterior as if (domains,) `point` had scored `score`."""
        y = np.append(self.y, (score - self.centre) / self.scale)
        return Posterior(np.vstack([self.x, point]), y, self.length, self.noise, self.centre, self.scale)

    def at(self, points: Array) -> tuple[Array, Array]:
        """(points,) mean and standard deviation at (points, domains) `points`, in units of the score."""
        cross = _matern(points, self.x, self.length)
        factor = cho_factor(self._covariance(), lower=True)
        mean = cross @ cho_solve(factor, self.y)
        variance = 1.0 - (cross * cho_solve(factor, cross.T).T).sum(axis=1)
        return self.centre + self.scale * mean, self.scale * np.sqrt(np.maximum(variance, 1e-12))

    def _covariance(self) -> Array:
        return _matern(self.x, self.x, self.length) + (self.noise + 1e-8) * np.eye(len(self.x))

    def _evidence(self) -> float:
        lower, _ = factor = cho_factor(self._covariance(), lower=True)
        return float(-0.5 * self.y @ cho_solve(factor, self.y) - np.log(np.diag(lower)).sum())


def _matern(a: Array, b: Array, length: float) -> Array:
    """(a, b) Matern 5/2 covariances."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2.0 * a @ b.T
    distance = np.sqrt(5.0 * np.maximum(squared, 0.0)) / length
    covariance: Array = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
    return covariance


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """(points,) expected improvement over `best`."""
    z = (mean - best) / deviation
    gain: Array = deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi))
    return gain
