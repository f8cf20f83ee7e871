"""Which model wins, which are measured, trained and told apart next; and measurements of different speed on one scale.

Two channel groups with five choices each: a policy is written as its codes. One more of either code takes a millisecond off the 10 of the
dense model, and those of the second group hurt twice as much. The dense model scores 0.9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import pytest
from torch import nn

from automc.budget import Budget
from automc.certify import Candidate, Certified
from automc.policy import Policy, Prune
from automc.predict.simulated import Pricer
from automc.prepare import Prepared
from automc.protocols import Costs
from automc.result import Certificate, Finalist
from automc.space import Codes, Domain, SearchSpace
from automc.standing import Standing
from automc.trial import Cost, Trial

Pair = tuple[int, int]
SPACE = SearchSpace(tuple(Domain(name, "prune", (None, *(Prune(k) for k in (12, 8, 4, 2)))) for name in ("a", "b")))


class ByTheSum:
    """A predictor that takes a millisecond off for every step of a code."""

    def predict(self, codes: Codes) -> Costs:
        latency_s = 1e-3 * (10.0 - codes.sum(axis=1))
        return Costs(latency_s, latency_s, latency_s, 100 * latency_s, 1e9 * latency_s)


class Identical:
    """A stitcher whose runtime adds no integer layers to those that a policy names."""

    def explicit(self, policy: Policy) -> Policy:
        return policy

    def finished(self, policy: Policy) -> nn.Module:
        return nn.Identity()


@dataclass
class Fake:
    """What a `Standing` reads of what was prepared."""

    space: SearchSpace = SPACE
    predictor: ByTheSum = field(default_factory=ByTheSum)
    stitcher: Identical = field(default_factory=Identical)
    sensitivity: Sequence[Any] = tuple(scale * np.arange(5) for scale in (0.01, 0.02))


@dataclass(frozen=True)
class Measured:
    """A model that was measured: its codes, its validation score, its latency in ms where it is not as predicted."""

    codes: Pair
    score: float
    ms: float | None = None
    stage: Literal["finalist", "recovered"] = "finalist"
    worth: float | None = None


def policy(codes: Pair) -> Policy:
    return SPACE.decode([codes])[0]


def trial(codes: Pair, score: float, samples: int | None = None) -> Trial:
    """A trial of a search, as it is priced."""
    return Trial(sum(codes), policy(codes), ByTheSum().predict(np.array([codes]))[0], score, samples=samples)


def certified(model: Measured, limits: Budget) -> Certified:
    seconds = 1e-3 * (10 - sum(model.codes) if model.ms is None else model.ms)
    cost = Cost(latency_s=seconds)
    finalist = Finalist(
        policy(model.codes), cost, None, model.score, None, limits.holds(cost), model.stage, worth=model.worth
    )
    return Certified(Candidate(finalist.policy, nn.Identity(), stage=model.stage), finalist, certificate(cost), b"")


def certificate(cost: Cost, dense: Cost | None = None) -> Certificate:
    """How a cost was measured, beside a dense model that took what it took before or as given."""
    dense = dense or Cost(latency_s=10e-3)
    spans = [(one.latency_s or 0.0, one.latency_s or 0.0) for one in (cost, dense)]
    return Certificate(
        {}, 1, spans[0][0], spans[0], spans[1][0], spans[1], 1, True, 0.0, {}, energy_j=cost.energy_j,
        dense_energy_j=dense.energy_j,
    )  # fmt: skip


def dense_model(cost: Cost, *, holds: bool) -> Finalist:
    return Finalist(Policy(), cost, None, 0.9, None, holds, "dense")


def standing(
    budget: str = "6ms",
    *,
    done: Sequence[Trial] = (),
    measured: Sequence[Measured] = (),
    dense: Cost | None = None,
    promises: Mapping[Pair, tuple[int, float, float]] | None = None,
) -> Standing:
    dense = dense or Cost(latency_s=10e-3)
    asked = Budget.parse(budget)
    limits = asked.resolve(dense)
    fake = Fake()
    return Standing(
        cast(Prepared, fake), asked, limits, dense_model(dense, holds=limits.holds(dense)), cast(Pricer, fake.predictor),
        done=list(done), certified=[certified(one, limits) for one in measured],
        promises={policy(codes): promise for codes, promise in (promises or {}).items()},
    )  # fmt: skip


def codes_of(policies: Sequence[Policy]) -> list[Pair]:
    return [cast(Pair, tuple(row.tolist())) for row in SPACE.encode(policies)]


HOLDS_ALREADY = "20ms"


@pytest.mark.parametrize(
    ("budget", "measured", "winner"),
    [
        pytest.param("6ms", [((4, 0), 0.8), ((0, 4), 0.85), ((1, 0), 0.89)], (0, 4), id="worth most of what holds"),
        pytest.param("6ms", [((4, 0), 0.8), ((4, 1), 0.8)], (4, 1), id="faster of equals"),
        pytest.param("6ms", [((4, 0), 0.8), ((0, 4), 0.85, None, "finalist", 0.7)], (4, 0), id="worth before score"),
        pytest.param("6ms", [((4, 0), 0.8, 6.1), ((1, 0), 0.89)], None, id="nothing holds as measured"),
        pytest.param(
            HOLDS_ALREADY, [((1, 0), 0.9), ((2, 0), 0.896), ((4, 0), 0.8)], (2, 0), id="fastest of small loss"
        ),
        pytest.param(HOLDS_ALREADY, [((4, 0), 0.8), ((4, 4), 0.5)], (4, 0), id="every loss is great"),
    ],
)
def test_the_winner(budget: str, measured: list[Any], winner: Pair | None) -> None:
    best = standing(budget, measured=[Measured(*one) for one in measured]).best
    assert (None if best is None else codes_of([best.finalist.policy])[0]) == winner


SEARCHED = [((0, 4), 0.88), ((1, 3), 0.87), ((2, 2), 0.86), ((4, 0), 0.6), ((1, 0), 0.9)]


@pytest.mark.parametrize(
    ("budget", "done", "measured", "chosen"),
    [
        pytest.param("6ms", SEARCHED, [], [(0, 4), (1, 3), (4, 0)], id="the best, and the gentlest"),
        pytest.param("6ms", [*SEARCHED[:3], ((4, 0), 0.89, 64)], [], [(0, 4), (1, 3), (4, 0)], id="estimates by losses"),
        pytest.param("6ms", SEARCHED, [((0, 4), 0.88)], [(1, 3), (2, 2), (4, 0)], id="not what was measured"),
        pytest.param("6ms", [((1, 0), 0.9), ((3, 0), 0.8), ((2, 0), 0.7)], [], [(3, 0), (2, 0), (1, 0)], id="the nearest"),
        pytest.param("6ms", [((1, 0), 0.9)], [((4, 0), 0.8)], [], id="nothing near where something holds"),
        pytest.param(
            "6ms", [((0, 4), 0.88), ((3, 1), 0.5), ((4, 4), 0.3), ((1, 3), 0.87)], [((4, 0), 0.6, 7)],
            [(3, 1), (4, 4), (0, 4)], id="the one with most room where all missed",
        ),
        pytest.param(
            HOLDS_ALREADY, [((1, 0), 0.9), ((2, 0), 0.899), ((3, 0), 0.897), ((4, 0), 0.7)], [],
            [(3, 0), (2, 0), (1, 0)], id="the fastest of small loss",
        ),
    ],
)  # fmt: skip
def test_what_is_measured_next(budget: str, done: list[Any], measured: list[Any], chosen: list[Pair]) -> None:
    stands = standing(budget, done=[trial(*one) for one in done], measured=[Measured(*one) for one in measured])
    assert codes_of([candidate.policy for candidate in stands.finalists()]) == chosen


def test_what_could_not_be_measured_is_left_alone() -> None:
    stands = standing(done=[trial(*one) for one in SEARCHED])
    stands.failed.add(policy((0, 4)).digest)
    assert codes_of([candidate.policy for candidate in stands.finalists()]) == [(1, 3), (2, 2), (4, 0)]


@pytest.mark.parametrize(
    ("known", "new", "better"),
    [
        pytest.param(((4, 0), 0.85), ((4, 0), 0.84), True, id="worth less"),
        pytest.param(((4, 0), 0.85), ((4, 0), 0.85), True, id="worth as much"),
        pytest.param(((4, 0), 0.85), ((4, 0), 0.86), False, id="worth more"),
        pytest.param(((4, 0), 0.85, 7.0), ((4, 0), 0.8), False, id="the first to hold"),
        pytest.param(((4, 0), 0.85), ((4, 0), 0.86, 7.0), False, id="worth more, outside: both are kept"),
        pytest.param(((4, 0), 0.85), ((0, 4), 0.8), False, id="another policy"),
    ],
)
def test_a_second_version_has_to_be_better(known: tuple[Any, ...], new: tuple[Any, ...], better: bool) -> None:
    first, second = (Measured(*one[:2], *(one[2:] or (None,)), stage="recovered") for one in (known, new))
    stands = standing(measured=[first])
    assert stands.has_better(certified(second, stands.limits)) is better


def test_an_untrained_model_is_kept_beside_a_better_trained_one() -> None:
    stands = standing(measured=[Measured((4, 0), 0.85, stage="recovered")])
    assert not stands.has_better(certified(Measured((4, 0), 0.8), stands.limits))


@pytest.mark.parametrize(
    ("budget", "best", "left", "expected"),
    [
        pytest.param("6ms", ((4, 0), 0.7), ((0, 4), 0.81), True, id="more than the winner in the search"),
        pytest.param("6ms", ((4, 0), 0.7), ((0, 4), 0.801), False, id="hardly more"),
        pytest.param("6ms", ((4, 0), 0.7), ((1, 0), 0.9), False, id="outside the budget"),
        pytest.param("6ms", ((4, 0), 0.7), ((0, 4), 0.9, 64), False, id="an estimate"),
        pytest.param("6ms", ((4, 0), 0.88, None, "recovered"), ((0, 4), 0.87), False, id="less than it recovered to"),
        pytest.param("6ms", ((4, 0), 0.88, None, "recovered"), ((0, 4), 0.89), True, id="more than it recovered to"),
        pytest.param(HOLDS_ALREADY, ((2, 0), 0.899), ((3, 0), 0.897), True, id="faster, at a small loss"),
        pytest.param(HOLDS_ALREADY, ((2, 0), 0.899), ((3, 0), 0.8), False, id="faster, at a great loss"),
        pytest.param(HOLDS_ALREADY, ((2, 0), 0.899, 7.2), ((3, 0), 0.897), False, id="hardly faster"),
    ],
)
def test_whether_something_better_is_expected(
    budget: str, best: tuple[Any, ...], left: tuple[Any, ...], expected: bool
) -> None:
    """The winner scored 0.8 in the search."""
    stands = standing(budget, done=[trial(best[0], 0.8), trial(*left)], measured=[Measured(*best)])
    assert stands.better_expected() is expected


@pytest.mark.parametrize(
    ("measured", "promises", "chosen"),
    [
        pytest.param([((4, 0), 0.88), ((4, 1), 0.8), ((4, 2), 0.7)], {}, [(4, 0), (4, 1)], id="the best, and the best with room"),
        pytest.param([((4, 1), 0.88), ((4, 0), 0.8)], {}, [(4, 1)], id="the best has room"),
        pytest.param([((0, 4), 0.88), ((1, 3), 0.8), ((2, 2), 0.7)], {}, [(0, 4), (2, 2)], id="none has room: the gentlest"),
        pytest.param([((4, 0), 0.88), ((4, 2), 0.7)], {(4, 2): (50, 0.8, 0.0)}, [(4, 2)], id="what promises most"),
        pytest.param([((0, 0), 0.9, 5), ((4, 0), 0.8, 7), ((3, 1), 0.8, 5, "recovered")], {}, [], id="nothing to train"),
    ],
)  # fmt: skip
def test_what_is_trained(measured: list[Any], promises: dict[Pair, Any], chosen: list[Pair]) -> None:
    stands = standing(measured=[Measured(*one) for one in measured], promises=promises)
    assert codes_of([one.finalist.policy for one in stands.recoverable()]) == chosen


def test_contenders_are_those_worth_most_and_the_gentlest_in_turn() -> None:
    stands = standing(done=[trial(*one) for one in [*SEARCHED, ((3, 1), 0.5), ((2, 3), 0.89, 64)]])
    assert codes_of(stands.contenders()) == [(4, 0), (0, 4), (3, 1), (1, 3)]


def test_what_promises_most_is_measured_unless_it_was() -> None:
    promises = {(4, 0): (200, 0.8, 0.0), (2, 2): (50, 0.9, 0.0), (1, 3): (200, 0.85, 0.0), (0, 4): (50, 0.7, 0.0)}
    done = [trial(*one) for one in SEARCHED]
    stands = standing(done=done, measured=[Measured((4, 0), 0.6)], promises=promises)
    assert sorted(codes_of([candidate.policy for candidate in stands.promising()])) == [(1, 3), (2, 2)]


@pytest.mark.parametrize(("score", "strained"), [(0.86, False), (0.85, True)])
def test_a_winner_that_lost_much_is_strained(score: float, strained: bool) -> None:
    assert standing(measured=[Measured((4, 0), score)]).is_strained is strained
    assert not standing(measured=[Measured((1, 0), score)]).is_strained


def drifted(budget: str) -> tuple[Standing, Certified, Finalist]:
    """The dense model took 72 us and 720 uJ before the search, and takes half as much beside a finalist of 25 us and 250 uJ."""
    before, now = (Cost(latency_s=s, energy_j=10 * s, size_bytes=1000) for s in (72e-6, 36e-6))
    cost = Cost(latency_s=25e-6, energy_j=250e-6)
    finalist = Finalist(policy((4, 0)), cost, None, 0.8, None, True, "finalist")
    measured = Certified(Candidate(finalist.policy, nn.Identity()), finalist, certificate(cost, now), b"")
    return standing(budget, dense=before), measured, dense_model(now, holds=False)


@pytest.mark.parametrize("budget", ["50%", "50us", "50%size", "50%energy", "300uJ"])
def test_tables_are_on_the_scale_of_the_measurement(budget: str) -> None:
    stands, measured, now = drifted(budget)
    told = stands.comparable(measured)
    assert stands.pace(now) * (told.latency_s or 0.0) == pytest.approx(25e-6)


@pytest.mark.parametrize(("budget", "joules"), [("50%energy", 500e-6), ("300uJ", 250e-6), ("50us", 500e-6)])
def test_shares_of_the_energy_drift_with_the_dense_model(budget: str, joules: float) -> None:
    stands, measured, _ = drifted(budget)
    assert stands.comparable(measured).energy_j == pytest.approx(joules)
