"""Compression: what pruning, factors and rounding keep, and that any combination runs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import NETWORKS, images, make
from torch import nn

from automc.calibrate import LayerStats, calibrate
from automc.compression.apply import Stitcher
from automc.compression.lowrank import factorise
from automc.compression.obs import Consumer, elimination_order, refit
from automc.compression.prune import remove_channels
from automc.compression.quantize import Quantized, best_range, quantized_layers
from automc.errors import InputError
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.tracing.trace import trace


def stitcher(name: str) -> Stitcher:
    found = trace(make(name), (images(4),))
    stats = calibrate(found, [(images(64),)], 64)
    return Stitcher(found, stats, (images(32),))


def correlated(count: int, features: int, rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, features, generator=generator)
    noise = 0.05 * torch.randn(count, features, generator=generator)
    return torch.randn(count, rank, generator=generator) @ basis + noise + 1.0


def stats_of(columns: torch.Tensor) -> LayerStats:
    mean = columns.mean(0)
    return LayerStats((columns - mean).T @ (columns - mean) / len(columns), mean, len(columns))


def output_error(columns: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor, new: torch.Tensor, bias: torch.Tensor) -> float:  # fmt: skip
    return float((columns @ weight.T - columns[:, kept] @ new.T - bias).square().mean())


def test_refitted_weights_beat_the_old_ones_and_absorb_the_mean() -> None:
    columns, weight = correlated(2000, 12, 4), torch.randn(5, 12)
    kept = torch.arange(0, 12, 2)
    new, bias = refit(weight, torch.zeros(5), stats_of(columns), kept)
    plain = output_error(columns, weight, kept, weight[:, kept], torch.zeros(5))
    assert output_error(columns, weight, kept, new, bias) < 0.1 * plain
    assert (columns @ weight.T).mean(0).allclose((columns[:, kept] @ new.T + bias).mean(0), atol=1e-4)


def test_redundant_channels_go_first() -> None:
    columns = torch.randn(4000, 6)
    columns[:, 4] = columns[:, 1] + 0.01 * columns[:, 4]
    weight = torch.ones(3, 6) * torch.tensor([3.0, 1.0, 2.0, 2.5, 1.0, 1.5])
    consumer = Consumer(weight, stats_of(columns), torch.arange(6)[:, None])
    order, errors = elimination_order([consumer], 6)
    assert order[0] in (1, 4)
    assert sorted(order) == list(range(6))
    assert errors == sorted(errors)


def test_the_sweep_error_is_that_of_the_refit() -> None:
    torch.manual_seed(0)
    columns, weight = correlated(3000, 10, 10, seed=3), torch.randn(4, 10)
    stats = stats_of(columns)
    order, errors = elimination_order([Consumer(weight, stats, torch.arange(10)[:, None])], 10)
    kept = torch.tensor(sorted(order[4:]))
    new, bias = refit(weight, torch.zeros(4), stats, kept)
    centred = columns - columns.mean(0)
    energy = float((centred @ weight.T).square().sum(1).mean())
    found = output_error(columns, weight, kept, new, bias) * 4 / energy
    assert errors[3] == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_a_full_rank_factorisation_computes_the_same(method: str) -> None:
    layer, x = nn.Conv2d(6, 8, 3, padding=1, stride=2), torch.randn(2, 6, 9, 9)
    spec = LowRank(54 if method == "svd" else 8, method)  # type: ignore[arg-type]
    torch.testing.assert_close(factorise(layer, spec, None)(x), layer(x), atol=1e-4, rtol=1e-4)


def test_the_data_aware_factorisation_beats_the_plain_one_on_the_data() -> None:
    layer, columns = nn.Linear(16, 12), correlated(1000, 16, 5)
    covariance = columns.T @ columns / len(columns)
    with torch.no_grad():
        outputs = [factorise(layer, LowRank(4), c)(columns) - layer(columns) for c in (covariance, None)]
    error = [float(output.square().mean()) for output in outputs]
    assert error[0] < 0.5 * error[1]


def test_the_best_range_cuts_an_outlier_off_at_few_bits_and_contains_zero() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=5000), [40.0]]).astype(np.float32)
    low, high = best_range(values, 4)
    assert low <= 0 < high < 30
    assert best_range(np.zeros(5, np.float32)) == (0.0, 1.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_knob_together_runs_on_every_network(name: str) -> None:
    stitch = stitcher(name)
    graph = stitch.traced.graph
    choices: list[tuple[str, Prune | LowRank | Quantize]] = [
        (g.name, Prune(max(1, g.width // 2))) for g in graph.groups
    ]
    choices += [(layer.name, Quantize(8, 8)) for layer in graph.layers if layer.quantize]
    choices += [(layer.name, LowRank(3)) for layer in graph.layers if layer.low_rank]
    model = stitch.apply(Policy.of(choices))
    outputs = model(images(3))
    assert outputs.shape == (3, 5)
    assert torch.isfinite(outputs).all()
    assert quantized_layers(model)


@pytest.mark.parametrize("name", ["plain", "residual", "padded", "dense", "mobile"])
def test_compensated_pruning_beats_plain_removal(name: str) -> None:
    stitch = stitcher(name)
    held = images(128, seed=9)
    reference = stitch.traced.model(held)
    groups = stitch.traced.graph.groups
    policy = Policy.of((g.name, Prune(3 * g.width // 4)) for g in groups)
    plain = copy.deepcopy(stitch.traced.model)
    remove_channels(plain, groups, {g.name: sorted(stitch.order(g)[g.width - 3 * g.width // 4 :]) for g in groups})
    compensated, removed = (float((m(held) - reference).square().mean()) for m in (stitch.apply(policy), plain))
    assert compensated < removed


class PreNorm(nn.Module):
    """A batch norm before its convolution, as in a DenseNet, which nothing can fold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x))
        return self.second(self.norm(hidden)).mean((2, 3))


def test_norms_that_stay_are_recalibrated_after_a_factorisation() -> None:
    torch.manual_seed(0)
    found = trace(PreNorm().eval(), (images(4),))
    stitch = Stitcher(found, calibrate(found, [(images(64),)], 64), (images(64),))
    model = stitch.apply(Policy.of([("first", LowRank(2))]))
    norm = model.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        hidden = torch.relu(model.get_submodule("first")(images(64)))
    torch.testing.assert_close(norm.running_mean, hidden.mean((0, 2, 3)))
    assert not model.training


def test_the_empty_policy_is_the_dense_model() -> None:
    stitch = stitcher("residual")
    assert torch.equal(stitch.apply(Policy())(images(3)), stitch.traced.model(images(3)))


def test_applying_twice_gives_the_same_and_leaves_no_trace() -> None:
    stitch = stitcher("residual")
    policy = Policy.of([("a1.0", Prune(6)), ("b2.0", LowRank(4)), ("b1.0", Quantize(8, 8))])
    first = stitch.apply(policy)(images(3))
    stitch.apply(Policy.of([("a1.0", Prune(2)), ("b2.0", LowRank(2))]))
    assert torch.equal(stitch.apply(policy)(images(3)), first)


@pytest.mark.parametrize(
    "choice", [("nowhere", Prune(2)), ("a1.0", Prune(13)), ("a1.0", Prune(0)), ("nope", LowRank(2))]
)
def test_a_policy_that_does_not_fit_is_refused(choice: tuple[str, Prune | LowRank]) -> None:
    with pytest.raises(InputError):
        stitcher("residual").apply(Policy.of([choice]))


def test_calibration_refuses_inputs_that_are_not_finite_and_an_empty_split() -> None:
    found = trace(make("plain"), (images(4),))
    bad = images(4)
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        calibrate(found, [(bad,)], 4)
    with pytest.raises(InputError, match="no calibration samples"):
        calibrate(found, [], 0)


def test_a_constant_activation_does_not_break_anything() -> None:
    found = trace(make("plain"), (images(4),))
    stats = calibrate(found, [(torch.zeros(16, 3, 12, 12),)], 16)
    stitch = Stitcher(found, stats, (torch.zeros(8, 3, 12, 12),))
    policy = Policy.of((g.name, Prune(g.width // 2)) for g in found.graph.groups)
    assert torch.isfinite(stitch.apply(policy)(images(2))).all()


def test_saturating_processors_get_seven_bit_weights() -> None:
    stitch = stitcher("plain")
    stitch.reduce_range = True
    layer = stitch.apply(Policy.of([("1", Quantize(8, 8))])).get_submodule("1")
    assert isinstance(layer, Quantized)
    assert layer.weight_bits == 7
