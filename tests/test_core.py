"""The words: units, budgets, policies, spaces, fronts, errors."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from automc.budget import Budget
from automc.errors import BudgetSyntaxError, InputError, UnknownNameError
from automc.pareto import front, hypervolume, knee
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.protocols import Costs
from automc.space import Domain, SearchSpace, summed
from automc.trial import Cost, Trial
from automc.units import METRICS, format_limit, format_quantity, parse_duration, parse_quantity

POLICY = Policy.of([("a", Prune(4)), ("a", Quantize(8, 8)), ("b", LowRank(16, "tucker"))])


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        ("50ms", "latency_s", 0.05), (" 1.5 s ", "latency_s", 1.5), ("30mJ", "energy_j", 0.03), ("2MB", "size_bytes", 2e6),
        ("4KiB", "size_bytes", 4096), ("20MMACs", "macs", 2e7), ("1e3us", "latency_s", 1e-3), ("2m", "latency_s", 120),
        ("40ns", "latency_s", 4e-8), ("5 nJ", "energy_j", 5e-9), ("7pJ", "energy_j", 7e-12), ("50\u00b5s", "latency_s", 5e-5), ("50\u03bcs", "latency_s", 5e-5),
    ],
)  # fmt: skip
def test_quantities_are_read_in_si_units(text: str, metric: str, value: float) -> None:
    assert parse_quantity(text) == (metric, pytest.approx(value))


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("latency_s", 0.0431, "43.1 ms"), ("size_bytes", 1094438, "1.09 MB"), ("macs", 40.8e6, "40.8 MMACs"), ("latency_s", 0.0, "0.00 ns"),
     ("latency_s", 8.7e-10, "0.87 ns"), ("energy_j", 3.14e-9, "3.14 nJ"), ("energy_j", 4.2e-11, "42.0 pJ")],
)  # fmt: skip
def test_quantities_are_shown_in_units_that_suit_them(metric: str, value: float, text: str) -> None:
    assert format_quantity(metric, value) == text


@pytest.mark.parametrize("metric", METRICS)
def test_a_suggested_limit_is_enough_when_it_is_typed_back(metric: str) -> None:
    assert format_limit("latency_s", 0.0431) == "43.1 ms"
    assert format_limit("latency_s", 0.04312) == "43.2 ms"
    assert format_limit("size_bytes", 999.96e3) == "1000.0 kB"
    assert format_limit("energy_j", 1e-15) == "0.01 pJ"
    rng = np.random.default_rng(0)
    for value in 10 ** rng.uniform(-9, 3, 200):
        limit = parse_quantity(format_limit(metric, value))[1]
        assert value <= limit <= 1.02 * max(value, 1.0 if metric in ("size_bytes", "macs") else 0.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("30M", r"may be minutes, megabytes or millions of MACs. Write 30min, 30MB or 30MMACs"),
        (" 1.5 M ", r"Write 1.5 min, 1.5 MB or 1.5 MMACs"),
        ("1e400ms", r"'1e400ms' is not finite"),
        ("0ms", r"'0ms' is not above zero"),
    ],
)
def test_a_budget_is_refused_for_its_own_reason(text: str, says: str) -> None:
    with pytest.raises(BudgetSyntaxError, match=says):
        Budget.parse(text)
    assert parse_duration("10M") == 600.0  # there a capital means the same


@pytest.mark.parametrize("text", ["50 parsecs", "fast", "ms", "", "0ms", "-3ms", "0%", "nan%", "60%speed", "1e999ms"])
def test_a_budget_that_means_nothing_is_refused_with_examples(text: str) -> None:
    with pytest.raises(BudgetSyntaxError, match="Write a number and a unit"):
        Budget.parse(text)


def test_shares_are_resolved_against_the_dense_model() -> None:
    dense = Cost(latency_s=0.1, size_bytes=1e6, macs=4e7)
    budget = Budget.parse("60%", "50%size", "30MMACs").resolve(dense)
    assert [(limit.metric, limit.value) for limit in budget] == [
        ("latency_s", 0.06),
        ("size_bytes", 5e5),
        ("macs", 3e7),
    ]


def test_a_limit_that_the_device_cannot_tell_is_refused_with_those_it_can() -> None:
    with pytest.raises(InputError, match=r"energy_j.*latency_s"):
        Budget.parse("30mJ").resolve(Cost(latency_s=0.1))


def test_two_limits_on_one_metric_are_refused() -> None:
    with pytest.raises(InputError, match="Two budgets limit latency_s"):
        Budget.parse("50ms", "60%")


def test_a_budget_holds_by_the_upper_end_of_the_interval_and_never_by_the_unknown() -> None:
    budget = Budget.parse("50ms", "1MB")
    assert budget.holds(Cost(latency_s=0.049, latency_interval_s=(0.048, 0.05), size_bytes=1e6))
    assert not budget.holds(Cost(latency_s=0.049, latency_interval_s=(0.048, 0.051), size_bytes=1e6))
    cost, budget = Cost(latency_s=0.049, latency_interval_s=(0.048, 0.051)), Budget.parse("500mJ")
    assert budget.holds(cost.with_energy(0.49, "measured"))
    assert not budget.holds(cost.with_energy(0.49, "predicted"))  # 10 W for up to 51 ms
    assert budget.holds(cost.with_energy(0.48, "predicted"))
    assert budget.violation(cost.with_energy(0.49, "predicted")) == pytest.approx(0.02)
    costs = Costs(*(np.array([value]) for value in (0.049, 0.048, 0.051, 1e6, 1e6, 0.49)))
    assert costs.violation(budget) == pytest.approx(budget.violation(costs[0]))
    assert costs.violation(budget) == pytest.approx([0.02])
    assert replace(costs, source="simulated").violation(budget) == pytest.approx([-0.02])
    assert not budget.holds(Cost(latency_s=0.01))


def test_a_policy_survives_json_and_does_not_depend_on_order() -> None:
    assert Policy.from_json(json.loads(json.dumps(POLICY.to_json()))) == POLICY
    assert Policy.of(reversed(POLICY.choices)).digest == POLICY.digest
    assert POLICY.get("a", Prune) == Prune(4)
    assert POLICY.get("b", Prune) is None


@pytest.mark.parametrize(
    "data",
    [
        {"schema": 2}, {"schema": 1, "choices": {"a": {"steal": {}}}}, {"schema": 1, "choices": {"a": {"prune": {"x": 1}}}},
    ],
)  # fmt: skip
def test_a_policy_of_another_kind_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Policy.from_json(data)


def test_one_knob_of_one_target_cannot_be_set_twice() -> None:
    with pytest.raises(InputError, match="twice"):
        Policy.of([("a", Prune(4)), ("a", Prune(2))])


SPACE = SearchSpace((Domain("a", "prune", (None, Prune(4), Prune(2))), Domain("b", "low_rank", (None, LowRank(8)))))


def test_codes_and_policies_are_the_same_thing() -> None:
    codes = np.array([[i, j] for i in range(3) for j in range(2)])
    assert (SPACE.encode(SPACE.decode(codes)) == codes).all()
    assert SPACE.decode(SPACE.dense[None]) == [Policy()]
    assert all(SPACE.contains(policy) for policy in SPACE.decode(codes))
    assert SPACE.size == 6


def test_a_space_is_asked_for_the_knob_of_a_target() -> None:
    assert (SPACE.column("b", "low_rank"), SPACE.choices("b", "low_rank")) == (1, (None, LowRank(8)))
    assert (SPACE.column("b", "prune"), SPACE.choices("b", "prune")) == (None, (None,))
    assert SPACE.restricted(Policy.of([("a", Prune(2)), ("b", LowRank(4)), ("c", Prune(2))])) == Policy.of(
        [("a", Prune(2))]
    )


def test_losses_are_summed_over_the_choices_of_each_policy() -> None:
    losses = ((0.0, 1.0, 4.0), np.array([0.0, 0.5]))
    assert summed(losses, [[0, 0], [2, 1]]).tolist() == [0.0, 4.5]
    assert summed(losses, (1, 1)) == 1.5


def test_sampled_codes_are_of_the_space_and_repeat_with_the_seed() -> None:
    codes = SPACE.sample(500, np.random.default_rng(3))
    assert SPACE.check(codes).shape == (500, 2)
    assert (codes == SPACE.sample(500, np.random.default_rng(3))).all()
    assert len(np.unique(codes, axis=0)) == 6


@pytest.mark.parametrize("codes", [[[3, 0]], [[0, -1]], [[0]], [[0.5, 0.5]]])
def test_codes_outside_the_space_are_refused(codes: list[list[float]]) -> None:
    with pytest.raises(InputError):
        SPACE.decode(np.array(codes))


def test_a_policy_outside_the_space_is_refused() -> None:
    with pytest.raises(InputError, match="not in the search space"):
        SPACE.encode([Policy.of([("a", Prune(3))])])


def trial(number: int, latency_s: float, score: float) -> Trial:
    return Trial(number, Policy.of([("a", Prune(number + 1))]), Cost(latency_s=latency_s), score)


TRIALS = [trial(0, 1.0, 0.9), trial(1, 0.5, 0.8), trial(2, 0.6, 0.7), trial(3, 0.2, 0.2), trial(4, 0.5, 0.8)]


def test_the_front_holds_what_nothing_beats_once() -> None:
    assert [t.number for t in front(TRIALS)] == [3, 1, 0]


def test_the_hypervolume_is_the_area_of_the_steps() -> None:
    assert hypervolume(TRIALS, "latency_s", (1.2, 0.0)) == pytest.approx(1.0 * 0.2 + 0.7 * 0.6 + 0.2 * 0.1)
    assert hypervolume([], "latency_s", (1.0, 0.0)) == 0.0


def test_the_knee_is_where_the_front_bends() -> None:
    assert knee(TRIALS).number == 1


def test_front_and_knee_in_several_metrics_keep_what_is_best_in_one_of_them() -> None:
    small = replace(TRIALS[2], cost=Cost(latency_s=0.6, size_bytes=10.0))
    others = [replace(t, cost=replace(t.cost, size_bytes=100.0)) for t in (TRIALS[0], TRIALS[1], TRIALS[3])]
    assert [t.number for t in front([*others, small], ("latency_s", "size_bytes"))] == [3, 1, 2, 0]
    assert knee([*others, small], "latency_s").number == 1
    assert knee([*others, small], "latency_s", "size_bytes").number == 2
    assert knee([small], "latency_s", "size_bytes") is small


def test_an_unknown_name_carries_the_closest_one() -> None:
    error = UnknownNameError("agent", "ipl", ["ilp", "tpe"])
    assert error.closest == "ilp"
    assert "Did you mean 'ilp'?" in str(error)
    assert error.exit_code == 2


@pytest.mark.parametrize("before", [None, (0.9, 0.8), (0.9, None)])
def test_a_trial_keeps_what_its_model_scored_before_recovery(before: tuple[float, float | None] | None) -> None:
    trial = Trial(0, POLICY, Cost(), 0.95, stage="recovered", before_recovery=before)
    assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("It wanted 3 channels", "It wanted 3 channels. Check."),
        ("There is no 'a.b'", "There is no 'a.b'. Check."),
        ("It failed (see above.)", "It failed (see above.) Check."),
        ("It failed: no such name\n", "It failed: no such name. Check."),
        ("It is wrong.", "It is wrong. Check."),
        ("Really?", "Really? Check."),
    ],
)
def test_a_remedy_follows_a_sentence_that_has_ended(message: str, shown: str) -> None:
    error = InputError(message, remedy="Check.")
    assert str(error) == shown
    assert Exception.__str__(error) + " Check." == shown
    assert str(InputError(message)) == message
