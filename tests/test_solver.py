"""The knapsack over a run's tables: near the best of all policies, under one limit or several, and honest where there is none."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from automc.policy import Policy, Prune, Quantize
from automc.solver import smallest, solve
from automc.space import Domain, SearchSpace
from automc.tables import Anchor, Tables
from automc.trial import Cost


def _small(seed: int) -> Tables:
    """Four domains of three choices with random losses and additive costs around 1 second."""
    rng = np.random.default_rng(seed)
    domains = tuple(Domain(name, "prune", (None, Prune(16), Prune(8))) for name in "abcd")
    loss = tuple((0.0, *np.cumsum(rng.uniform(0.01, 1.0, 2)).tolist()) for _ in domains)
    changed = tuple((1.0, *(1.0 - np.cumsum(rng.uniform(0.02, 0.1, 2))).tolist()) for _ in domains)
    dense = Anchor((0, 0, 0, 0), Cost(latency_s=1.0), {"latency_s": changed})
    return Tables(domains, loss, (dense,), (), {})


def _all_policies(tables: Tables) -> list[tuple[float, float]]:
    """(cost, loss) of every policy, by summing up."""
    changed = tables.anchors[0].changed["latency_s"]
    return [
        (
            1.0 + sum(changed[d][c] - 1.0 for d, c in enumerate(codes)),
            sum(tables.loss[d][c] for d, c in enumerate(codes)),
        )
        for codes in itertools.product(range(3), repeat=4)
    ]


@pytest.mark.parametrize("limit", [0.95, 0.85, 0.75])
def test_the_solver_is_near_the_best_of_all_policies(limit: float) -> None:
    excess = []
    for seed in range(20):
        tables = _small(seed)
        answer = solve(tables, {"latency_s": limit})
        fitting = [loss for cost, loss in _all_policies(tables) if cost <= limit + 1e-12]
        assert (answer is None) == (not fitting)
        if answer is not None:
            assert answer.costs["latency_s"] <= limit + 1e-12
            assert answer.loss >= min(fitting) - 1e-12
            excess.append(answer.loss / min(fitting) - 1.0)
    assert np.mean(excess) < 0.1


def test_the_solver_says_when_nothing_is_small_enough() -> None:
    assert solve(_small(0), {"latency_s": 0.1}) is None
    assert solve(_small(0), {"energy_j": 0.9}) is None


def test_a_choice_whose_loss_is_unknown_is_not_taken() -> None:
    tables = _small(0)
    loss = ((0.0, float("inf"), float("inf")), *tables.loss[1:])
    answer = solve(dataclasses.replace(tables, loss=loss), {"latency_s": 0.85})
    assert answer is not None
    assert answer.policy.get("a", Prune) is None


def test_the_nearest_anchor_is_solved_around() -> None:
    tables = _small(0)
    int8 = Domain("e", "quantize", (None, Quantize(8, 8)))
    dense = dataclasses.replace(tables.anchors[0], codes=(0,) * 5, changed={"latency_s": (*tables.anchors[0].changed["latency_s"], (1.0, 1.2))})  # fmt: skip
    halved = Anchor((0, 0, 0, 0, 1), Cost(latency_s=0.5), {"latency_s": ((0.5, 0.4, 0.3),) * 4 + ((1.0, 0.5),)})
    both = Tables((*tables.domains, int8), (*tables.loss, (0.0, 0.01)), (dense, halved), (), {})
    answer = solve(both, {"latency_s": 0.5})
    assert answer is not None
    assert answer.policy == Policy.of([("e", Quantize(8, 8))])
    assert answer.moved == 0


def _two_metrics(seed: int) -> Tables:
    """As `_small`, with a size whose savings are drawn apart from those of the latency."""
    tables, rng = _small(seed), np.random.default_rng(1000 + seed)
    sizes = tuple((100.0, *(100.0 - np.cumsum(rng.uniform(2, 10, 2))).tolist()) for _ in tables.domains)
    dense = tables.anchors[0]
    cost = Cost(latency_s=1.0, size_bytes=100.0)
    anchor = dataclasses.replace(dense, cost=cost, changed={**dense.changed, "size_bytes": sizes})
    return dataclasses.replace(tables, anchors=(anchor,))


def test_several_limits_hold_at_once_and_little_is_lost_by_them() -> None:
    excess, missed = [], 0
    limits = {"latency_s": 0.85, "size_bytes": 82.0}
    for seed in range(30):
        tables = _two_metrics(seed)
        changed = tables.anchors[0].changed
        fitting = [
            sum(tables.loss[d][c] for d, c in enumerate(codes))
            for codes in itertools.product(range(3), repeat=4)
            if 1.0 + sum(changed["latency_s"][d][c] - 1.0 for d, c in enumerate(codes)) <= 0.85
            and 100.0 + sum(changed["size_bytes"][d][c] - 100.0 for d, c in enumerate(codes)) <= 82.0
        ]
        answer = solve(tables, limits)
        assert answer is None or answer.overrun(limits) <= 1e-9
        assert fitting or answer is None
        missed += bool(fitting) and answer is None
        if answer is not None:
            excess.append(answer.loss / min(fitting) - 1.0)
    assert missed <= 1
    assert np.mean(excess) < 0.15


def test_the_nearest_reachable_is_told_where_nothing_holds() -> None:
    tables = _two_metrics(0)
    limits = {"latency_s": 0.1, "size_bytes": 99.0}
    nearest = smallest(tables, limits)
    assert nearest is not None
    assert nearest.costs["latency_s"] == pytest.approx(min(cost for cost, _ in _all_policies(tables)))
    assert smallest(tables, {"energy_j": 1.0}) is None


def test_a_space_without_choices_has_the_dense_model_alone() -> None:
    tables = Tables((), (), (Anchor((), Cost(latency_s=1.0), {"latency_s": ()}),), (), {})
    answer = solve(tables, {"latency_s": 1.5})
    assert answer is not None
    assert answer.policy == Policy()
    assert solve(tables, {"latency_s": 0.5}) is None


def test_a_policy_that_was_priced_as_a_whole_is_not_believed_cheaper() -> None:
    tables = _small(0)
    promised = solve(tables, {"latency_s": 0.85})
    assert promised is not None
    codes = tuple(int(c) for c in _codes(tables, promised.policy))
    dearer = Anchor(codes, Cost(latency_s=0.95), {"latency_s": ((0.95,) * 3,) * 4})
    answer = solve(dataclasses.replace(tables, anchors=(*tables.anchors, dearer)), {"latency_s": 0.85})
    assert answer is None or answer.policy != promised.policy


def _codes(tables: Tables, policy: Policy) -> list[int]:
    return SearchSpace(tables.domains).encode([policy])[0].tolist()
