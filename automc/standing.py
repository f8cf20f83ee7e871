"""Where a search stands: its trials and measured finalists, which of them is best, and which are worth measuring next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import zip_longest

import numpy as np

from automc.aim import Aim, learn_aim
from automc.budget import Budget
from automc.certify import Candidate, Certified
from automc.policy import Policy
from automc.predict.simulated import Pricer
from automc.prepare import Prepared
from automc.recovery.fidelity import FEWEST, MOST, Promise
from automc.result import Finalist, is_tolerable, winner_of
from automc.space import summed
from automc.trial import Cost, Trial

__all__ = ["Standing"]

FINALISTS = 3
NOTICEABLE = 0.002
"""A difference, as a share of the dense score, worth another round of measuring."""
STRAIN = 0.05
"""A loss before recovery, as a share of the dense score, from which on candidates are distilled for a while to be told apart."""
ROOM = 0.02
"""What one measuring session may differ from another, as a share of the latency."""


@dataclass
class Standing:
    """What a search has found so far.

    Attributes:
        budget: as it was asked for; `limits` is the same in absolute figures.
        predictor: prices the trials; corrected by what was measured.
        aim: what the predictor still misses near the budget.
        done: the trials of the search, priced by the predictor as it is now.
        certified: finalists and recovered models that were measured.
        measured: the trials that record them.
        failed: digests of policies that could not be measured.
        promises: policy -> what it promises to recover to, where a short distillation told; see `fidelity`.
    """

    prepared: Prepared
    budget: Budget
    limits: Budget
    dense: Finalist
    predictor: Pricer
    aim: Aim = field(default_factory=Aim)
    done: list[Trial] = field(default_factory=list)
    certified: list[Certified] = field(default_factory=list)
    measured: list[Trial] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    promises: dict[Policy, Promise] = field(default_factory=dict)

    @property
    def best(self) -> Certified | None:
        """The winner so far: of what holds the budget as measured, what is worth most; the faster of equals."""
        holding = [c for c in self.certified if c.finalist.holds]
        best = winner_of([c.finalist for c in holding], self.dense, dense_holds=self.dense.holds)
        return next((c for c in holding if c.finalist is best), None)

    @property
    def smallest(self) -> Certified | None:
        """What came nearest to the budget as measured."""
        return min(self.certified, key=lambda c: self.limits.violation(c.finalist.cost), default=None)

    @property
    def front(self) -> list[Trial]:
        """What the front is drawn from: measured models, and priced trials that were not measured."""
        return [*self.measured, *(trial for trial in self.done if not self._is_measured(trial.policy))]

    def has_better(self, new: Certified) -> bool:
        """Whether another version of the same policy was measured that is worth as much and holds the budget if the new one does."""
        same = [c for c in self.certified if c.candidate.policy == new.candidate.policy]
        return new.candidate.stage == "recovered" and any(
            c.candidate.stage == "recovered"
            and c.finalist.holds >= new.finalist.holds
            and c.finalist.merit >= new.finalist.merit
            for c in same
        )

    def finalists(self) -> list[Candidate]:
        """The most promising trials not yet measured: those worth most, and the least sum of single-choice losses.

        Where the dense model holds the budget, the fastest of those that lose little. Where what was measured missed the
        budget, the one with most room too. A trial whose score is an estimate can be chosen for its losses alone; like every
        finalist it is scored on all samples when it is measured.
        """
        scored = [t for t in self.done if t.state == "complete" and len(t.policy) and not self._is_measured(t.policy)]
        likely = [t for t in scored if self.is_likely(t)]
        if not likely:
            nearest = sorted(scored, key=lambda t: self.limits.violation(self.aim.cost(t.cost)))
            return self._candidates(nearest) if self.best is None else []
        gentlest = min(likely, key=lambda t: self.loss(t.policy))
        full = [t for t in likely if t.samples is None]
        ranked = sorted(full, key=lambda t: (-t.merit, self.loss(t.policy)))
        if self.dense.holds:
            ranked.sort(key=lambda t: (not is_tolerable(_score(t), self.dense), t.cost.latency_s or np.inf))
        if self.certified and self.best is None:
            return self._candidates([gentlest, min(likely, key=lambda t: self.limits.violation(t.cost)), *ranked])
        return self._candidates([*ranked[: FINALISTS - 1], gentlest, *ranked[FINALISTS - 1 :]])

    @property
    def is_strained(self) -> bool:
        """Whether the winner lost so much that the score before recovery is a poor guide to the one after."""
        best = self.best
        return best is not None and best.finalist.validation < self.dense.validation - STRAIN * abs(
            self.dense.validation
        )

    def contenders(self) -> list[Policy]:
        """The most promising tenth of what should hold the budget, by worth and by the sum of single-choice losses in turn."""
        likely = [t for t in self.done if t.state == "complete" and len(t.policy) and self.is_likely(t)]
        by_worth = sorted((t for t in likely if t.samples is None), key=lambda t: -t.merit)
        by_loss = sorted(likely, key=lambda t: self.loss(t.policy))
        mixed = [t for pair in zip_longest(by_loss, by_worth) for t in pair if t is not None]
        chosen = dict.fromkeys(self.explicit(t.policy) for t in mixed)
        return list(chosen)[: min(MOST, max(FEWEST, len(likely) // 10))]

    def promising(self) -> list[Candidate]:
        """The most promising policies that were not measured yet."""
        best = sorted(self.promises, key=lambda policy: self.promises[policy], reverse=True)[:FINALISTS]
        digests = {policy.digest for policy in best if not self._is_measured(policy)}
        return self._candidates(t for t in self.done if self.explicit(t.policy).digest in digests)

    def _candidates(self, trials: Iterable[Trial]) -> list[Candidate]:
        """The first FINALISTS different ones, with every layer that runs on integers named."""
        predicted: dict[Policy, Cost] = {}
        for trial in trials:
            predicted.setdefault(self.explicit(trial.policy), trial.cost)
        chosen = list(predicted.items())[:FINALISTS]
        return [Candidate(policy, self.prepared.stitcher.finished(policy), cost) for policy, cost in chosen]

    def explicit(self, policy: Policy) -> Policy:
        """The policy with every layer that runs on integers named."""
        return self.prepared.stitcher.explicit(policy)

    def _is_measured(self, policy: Policy) -> bool:
        digest = self.explicit(policy).digest
        return digest in self.failed or digest in {c.candidate.policy.digest for c in self.certified}

    def is_likely(self, trial: Trial) -> bool:
        """Whether the trial is expected to hold the budget; measuring it will tell."""
        return self.aim.holds(self.limits, trial.cost)

    def loss(self, policy: Policy) -> float:
        """Sum of the losses of the policy's single choices: a better guide to the recovered score than the score before."""
        return float(summed(self.prepared.sensitivity, self.prepared.space.encode([policy])[0]))

    def comparable(self, certified: Certified) -> Cost:
        """The measured cost; what no absolute limit is on, as if the dense model took what it took when the budget was resolved."""
        cost, certificate, dense = certified.finalist.cost, certified.certificate, self.dense.cost
        if not self._is_absolute("latency_s"):
            drift = (dense.latency_s or 1.0) / certificate.dense_latency_s
            cost = replace(cost, latency_s=certificate.latency_s * drift)
        if not self._is_absolute("energy_j") and cost.energy_j and dense.energy_j and certificate.dense_energy_j:
            cost = replace(cost, energy_j=cost.energy_j * dense.energy_j / certificate.dense_energy_j)
        return cost

    def pace(self, dense: Finalist) -> float:
        """How much slower than its predictions the machine is where the dense model takes what it takes here, see `comparable`."""
        if self._is_absolute("latency_s"):
            return 1.0
        return (dense.cost.latency_s or 1.0) / (self.dense.cost.latency_s or 1.0)

    def _is_absolute(self, metric: str) -> bool:
        limit = self.budget.limit(metric)
        return limit is not None and not limit.relative

    def correct(self, latest: int) -> None:
        """Refit the predictor to what was measured, aim by what it still misses, and price the trials anew.

        The `latest` measured count most.
        """
        pairs = [(c.candidate.policy, self.comparable(c)) for c in self.certified if c.candidate.stage == "finalist"]
        if pairs:
            self.predictor, self.aim = learn_aim(self.prepared.predictor, self.prepared.space, pairs, latest)
            self.reprice()

    def reprice(self) -> None:
        """Price the trials by the predictor as it is now."""
        if self.done:
            costs = self.predictor.predict(self.prepared.space.encode([t.policy for t in self.done]))
            self.done = [replace(trial, cost=costs[i]) for i, trial in enumerate(self.done)]

    def better_expected(self) -> bool:
        """Whether an unmeasured trial that should hold the budget beats the winner clearly."""
        best = self.best
        assert best is not None
        left = [
            t
            for t in self.done
            if t.state == "complete" and t.samples is None and not self._is_measured(t.policy) and self.is_likely(t)
        ]
        if self.dense.holds:
            fast = 0.95 * best.certificate.latency_s
            return any(is_tolerable(_score(t), self.dense) and (t.cost.latency_s or np.inf) < fast for t in left)
        searched = [t.merit for t in self.done if self.explicit(t.policy) == best.candidate.policy]
        if best.candidate.stage == "finalist" and searched:  # what both were worth in the search is on one scale
            return any(t.merit > max(searched) + NOTICEABLE * abs(self.dense.validation) for t in left)
        return any(_score(t) > best.finalist.validation + NOTICEABLE * abs(self.dense.validation) for t in left)

    def recoverable(self) -> list[Certified]:
        """The best finalist that holds, and the best that holds with room to spare.

        Recovery changes no shapes, but the recovered model is measured anew, and the machine may be a little slower then.
        """
        untrained = [c for c in self.certified if c.candidate.stage == "finalist"]
        pool = [c for c in untrained if c.finalist.holds and len(c.candidate.policy)]
        if not pool:
            return []
        roomy = [c for c in pool if self.limits.violation(c.finalist.cost) <= -ROOM]
        rest = sorted(pool, key=lambda c: self.loss(c.candidate.policy))
        second = max(roomy, key=self._prospect, default=rest[0])
        return list({id(c): c for c in (max(pool, key=self._prospect), second)}.values())

    def _prospect(self, certified: Certified) -> tuple[Promise, tuple[float, float]]:
        """What a finalist promises to recover to, as far as is known, then what it is."""
        return self.promises.get(certified.candidate.policy, (0, 0.0, 0.0)), _merit(certified)


def _score(trial: Trial) -> float:
    return -np.inf if trial.score is None else trial.score


def _merit(certified: Certified) -> tuple[float, float]:
    return certified.finalist.merit, -certified.certificate.latency_s
