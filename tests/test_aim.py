"""Aiming: what the last finalists cost more than predicted is expected of the next ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from automc.aim import Aim, Expected, learn_aim
from automc.budget import Budget
from automc.policy import Policy, Prune
from automc.protocols import Costs
from automc.space import Codes, Domain, SearchSpace
from automc.trial import Cost

SPACE = SearchSpace((Domain("a", "prune", (None, Prune(8), Prune(4), Prune(2))),))


class Straight:
    """100 ms less 20 ms per code; `corrected` shifts everything by half the mean miss of what it was told."""

    def __init__(self, shift: float = 1.0) -> None:
        self.shift = shift

    def predict(self, codes: Codes) -> Costs:
        latency = self.shift * (0.1 - 0.02 * codes.sum(1).astype(float))
        return Costs(latency, 0.9 * latency, 1.1 * latency, 1e7 * latency, latency)

    def corrected(self, measured: list[tuple[Policy, float]]) -> Straight:
        if not measured:
            return self
        guesses = self.predict(SPACE.encode([policy for policy, _ in measured])).latency_s
        misses = np.array([seconds for _, seconds in measured]) / guesses
        return Straight(self.shift * (1 + (misses.mean() - 1) / 2))


def policy(keep: int) -> Policy:
    return Policy.of([("a", Prune(keep))])


def test_the_aim_is_what_the_corrected_predictor_still_misses() -> None:
    measured = [
        (policy(keep), Cost(latency_s=1.2 * (0.1 - 0.02 * code), size_bytes=2e5)) for code, keep in ((1, 8), (2, 4))
    ]
    predictor, aim = learn_aim(Straight(), SPACE, measured, latest=2)  # type: ignore[arg-type]
    assert predictor.predict(np.array([[0]])).latency_s[0] == pytest.approx(0.11)
    assert aim.ratio["latency_s"] == pytest.approx(1.2 / 1.1)


def test_a_predictor_that_is_too_dear_is_not_aimed_above_the_budget() -> None:
    measured = [(policy(8), Cost(latency_s=0.04)), (policy(4), Cost(latency_s=0.03))]
    assert learn_aim(Straight(), SPACE, measured, latest=2)[1].ratio["latency_s"] == 1.0  # type: ignore[arg-type]


def test_the_size_of_files_is_learned_too() -> None:
    measured = [(policy(8), Cost(latency_s=0.08, size_bytes=1e6))]
    aim = learn_aim(Straight(), SPACE, measured, latest=1)[1]  # type: ignore[arg-type]
    assert aim.ratio["size_bytes"] == pytest.approx(1e6 / 8e5)
    assert not aim.holds(Budget.parse("950kB"), Cost(latency_s=0.1, size_bytes=8e5))
    assert aim.holds(Budget.parse("1010kB"), Cost(latency_s=0.1, size_bytes=8e5))


def test_agents_see_the_expectation_without_an_interval() -> None:
    seen = Expected(Straight(), Aim({"latency_s": 1.5})).predict(np.array([[0], [1]]))
    assert seen.latency_s.tolist() == pytest.approx([0.15, 0.12])
    assert (seen.latency_high_s == seen.latency_s).all()


def test_what_is_only_predicted_corrects_nothing_and_leaves_room_for_its_interval() -> None:
    costs = Straight().predict(SPACE.encode([policy(8), policy(4)]))
    predictor, aim = learn_aim(Straight(), SPACE, [(policy(8), costs[0]), (policy(4), costs[1])], latest=2)  # type: ignore[arg-type]
    assert costs[0].source["latency_s"] == "predicted"
    assert predictor.predict(np.array([[0]])).latency_s[0] == pytest.approx(0.1)
    assert aim.ratio["latency_s"] == pytest.approx(1.1)


def test_energy_that_is_predicted_by_the_latency_leaves_room_for_its_interval() -> None:
    class Powered(Straight):
        def predict(self, codes: Codes) -> Costs:
            costs = super().predict(codes)
            return replace(costs, energy_j=10.0 * costs.latency_s)

    cost = Powered().predict(SPACE.encode([policy(8)]))[0]
    aim = learn_aim(Powered(), SPACE, [(policy(8), cost)], latest=1)[1]  # type: ignore[arg-type]
    assert aim.ratio["energy_j"] == pytest.approx(1.1)
    seen = Expected(Powered(), aim).predict(np.array([[1]]))
    assert seen.array("energy_j") == pytest.approx(seen.array("energy_j", upper=False))
