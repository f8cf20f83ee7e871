"""What kernels are told apart by besides their shapes, and what timing them costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import synthetic

from automc.devices.device import NodeTime, Tensor
from automc.policy import LowRank, Policy
from automc.predict.glue import operators_s
from automc.predict.kernels import LayerChoices, layer_kernels
from automc.predict.profile import Candidate
from automc.predict.watching import unwatched_s

GRAPH, SPACE = synthetic.graph(), synthetic.space()
CHOICES = LayerChoices.of(GRAPH.layers[1], GRAPH, SPACE)
DENSE = int(CHOICES.keys(SPACE.dense[None])[0])


def test_a_window_is_told_from_the_same_one_lying() -> None:
    layer = replace(CHOICES.spec, kernel=(3, 3), kind="conv")
    kernels = layer_kernels(layer, 16, 16, LowRank(4, method="spatial"), None)
    assert kernels["window"].tolist() == [3, 3]
    assert kernels["height"].tolist() == [3, 1]


def test_a_layer_that_is_integer_unasked_is_another_kernel_than_one_that_was_asked() -> None:
    implied = int(CHOICES.implied_key(np.array([DENSE]))[0])
    kernels = CHOICES.kernels(implied)
    assert implied != DENSE
    assert (kernels["int8"].tolist(), kernels["implied"].tolist(), kernels["cold"].tolist()) == ([1], [1], [0])
    assert CHOICES.kernels(implied + 1)["cold"].tolist() == [1]
    assert CHOICES.bits(implied) is None  # what the file holds is as it was
    assert CHOICES.implied_key(np.array([implied])).tolist() == [implied]
    assert implied + 1 < CHOICES.key_count


def test_a_clip_is_paid_for_unless_a_quantisation_takes_it_over() -> None:
    clipped = replace(CHOICES, clipped=True)
    assert clipped.kernels(DENSE)["fused"].tolist() == [1]
    assert clipped.kernels(DENSE + 1)["fused"].tolist() == [0]
    assert CHOICES.kernels(DENSE)["fused"].tolist() == [0]
    assert clipped.kernels(int(clipped.implied_key(np.array([DENSE]))[0]))["fused"].tolist() == [0]


def _candidate(nodes: list[NodeTime]) -> Candidate:
    return Candidate(Policy(), 0, tuple(nodes), (None,) * len(nodes))


def test_watching_costs_more_where_a_node_has_more_tensors() -> None:
    rng = np.random.default_rng(0)
    candidates, latency, truths = [], [], []
    for _ in range(30):
        tensors = rng.choice([2, 9], 50, p=(share := rng.uniform(0.1, 0.9), 1 - share))
        truth = rng.uniform(3e-6, 3e-5, 50)
        watched = truth + 2e-6 + 0.2e-6 * tensors
        nodes = [
            NodeTime("n", "Add", t, (Tensor("float", (1,)),) * (k - 1), (Tensor("float", (1,)),))
            for t, k in zip(watched.tolist(), tensors.tolist(), strict=True)
        ]
        candidates.append(_candidate(nodes))
        latency.append(truth.sum())
        truths.append(truth)
    found = unwatched_s(candidates, np.array(latency))
    for times, truth in zip(found, truths, strict=True):
        assert np.abs(times - truth).max() < 0.2e-6  # a cost per node alone is 0.6 us off for either kind


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
