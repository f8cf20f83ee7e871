"""What kernels are told apart by besides their shapes, and what timing them costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic

from automc.devices.device import NodeTime, Tensor
from automc.devices.watching import unwatched
from automc.policy import LowRank, Policy, Quantize
from automc.predict.choices import LayerChoices
from automc.predict.glue import operators_s
from automc.predict.kernels import layer_kernels
from automc.predict.profile import ProfiledModel
from automc.space import Domain, SearchSpace

GRAPH, SPACE = synthetic.graph(), synthetic.space()
CHOICES = LayerChoices.of(GRAPH.layers[1], GRAPH, SPACE)
DENSE = int(CHOICES.keys(SPACE.dense[None])[0])


def test_a_window_is_told_from_the_same_one_lying() -> None:
    layer = replace(CHOICES.spec, kernel=(3, 3), kind="conv")
    kernels = layer_kernels(layer, 16, 16, LowRank(4, method="spatial"), None)
    assert kernels["window"].tolist() == [3, 3]
    assert kernels["height"].tolist() == [3, 1]


def test_a_layer_that_is_integer_unasked_is_one_that_was_asked() -> None:
    implied = int(CHOICES.implied_key(np.array([DENSE]))[0])
    asked = SPACE.encode([Policy.of([("a", Quantize(8, 8))])])
    assert implied == CHOICES.keys(asked)[0] != DENSE
    assert CHOICES.kernels(implied)["int8"].tolist() == [1]
    assert CHOICES.implied_key(np.array([implied])).tolist() == [implied]
    few = LayerChoices.of(GRAPH.layers[1], GRAPH, SearchSpace((Domain("a", "quantize", (None, Quantize(4, 16))),)))
    between = few.implied_key(few.keys(np.array([[0], [1]])))
    assert [few.rounding(int(key)) for key in between] == [Quantize(8, 8), Quantize(4, 8)]
    assert few.implied_key(between).tolist() == between.tolist()
    assert between.max() < few.key_count
    factorised = CHOICES.keys(SPACE.encode([Policy.of([("a", LowRank(12))])]))
    assert CHOICES.kernels(int(CHOICES.implied_key(factorised)[0]))["int8"].tolist() == [1, 1]


def test_a_clip_is_paid_for_unless_a_quantisation_takes_it_over() -> None:
    clipped = replace(CHOICES, clipped=True)
    assert clipped.kernels(DENSE)["fused"].tolist() == [1]
    assert clipped.kernels(DENSE + 1)["fused"].tolist() == [0]
    assert CHOICES.kernels(DENSE)["fused"].tolist() == [0]
    assert clipped.kernels(int(clipped.implied_key(np.array([DENSE]))[0]))["fused"].tolist() == [0]


def _candidate(nodes: list[NodeTime]) -> ProfiledModel:
    return ProfiledModel(Policy(), 0, tuple(nodes), (None,) * len(nodes))


def test_what_it_costs_to_time_nodes_is_found_beside_unwatched_runs() -> None:
    rng = np.random.default_rng(0)
    tensors = rng.choice([2, 9], 50)
    truth = rng.uniform(5e-6, 5e-5, 50)
    speeds = np.where(rng.random(40) < 0.6, 1.4, 1.0)  # a neighbour on the same core in most of the runs
    watched = np.outer(truth + 2e-6 + 0.25e-6 * tensors, speeds) * rng.normal(1, 0.005, (50, 40))
    found = np.array(unwatched(watched.tolist(), (truth.sum() * speeds).tolist(), tensors.tolist()))
    assert found.sum() == pytest.approx(truth.sum(), rel=0.005)
    assert np.abs(found - truth).max() < 0.5e-6
    short = unwatched([[1e-6], [9e-5]], [7e-5], [2, 2])
    assert short == pytest.approx([1e-7, 7.95e-5], rel=0.03)  # nothing takes no time
    slow = unwatched([[1e-5], [2e-5]], [5e-5], [2, 2])
    assert slow == pytest.approx([1e-5, 2e-5])  # what a run takes besides is not theirs
    assert unwatched([], [5e-5], []) == []


def test_long_models_hardly_tell_what_it_costs_to_time_their_nodes() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1e-5, 1e-3, 50)
    watched = [[(t + 3e-6) * speed for speed in (1.0, 1.01)] for t in truth.tolist()]
    whole = [1.02 * truth.sum(), 1.015 * truth.sum()]  # 20 ms and more, disturbed by more than the watching costs
    found = np.array(unwatched(watched, whole, [4] * 50))
    assert np.abs(found - truth).max() < 8e-6
    assert np.abs(found - truth).mean() < 6e-6  # 9 by what this one model tells


def test_operators_between_layers_lie_on_a_line_per_kind() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 10_000, (20, 6))
    truth = 1e-6 + 1e-9 * sizes
    noisy = np.round((truth + rng.uniform(-5e-7, 5e-7, truth.shape)) * 1e6) * 1e-6  # a clock of a microsecond
    candidates = [
        _candidate([NodeTime("n", "Relu", t, (Tensor("float", (k,)),), (Tensor("float", (k,)),)) for t, k in zip(times, row, strict=True)])
        for times, row in zip(noisy.tolist(), sizes.tolist(), strict=True)
    ]  # fmt: skip
    totals = operators_s(candidates, list(noisy), np.ones(20))["Relu"]
    off = np.abs(totals / truth.sum(axis=1) - 1).mean()
    assert off < 0.02
    assert off < 0.5 * np.abs(noisy.sum(axis=1) / truth.sum(axis=1) - 1).mean()
