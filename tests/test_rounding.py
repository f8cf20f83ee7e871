"""Rounding: errors are made up for, scales fit, and rows are independent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from automc.compression.rounding import corrected_bias, elimination_factor, round_weights
from automc.policy import Quantize

SPECS = [
    *(Quantize(bits, 32) for bits in (2, 3, 4, 5, 6, 7, 8)),
    *(Quantize(bits, 32, symmetric=False) for bits in (2, 4, 8)),
    *(Quantize(bits, 32, 16) for bits in (2, 4)),
    Quantize(3, 32, 16, symmetric=False),
    Quantize(1, 32, codes="binary"),
    Quantize(2, 32, codes="ternary"),
    *(Quantize(bits, 32, codes="kmeans") for bits in (2, 4)),
]


def columns(count: int = 2000, features: int = 40, rank: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(rank, features, generator=generator)
    noise = 0.1 * torch.randn(count, features, generator=generator)
    return torch.randn(count, rank, generator=generator) @ basis + noise + 0.5


def covariance() -> Tensor:
    return torch.cov(columns().T, correction=0)


def weights(rows: int = 12, features: int = 40) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(1))


def error(weight: Tensor, values: Tensor) -> float:
    change = weight - values
    return float((change @ covariance() * change).sum())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_compensation_beats_rounding_to_nearest_on_correlated_inputs(spec: Quantize) -> None:
    weight = weights()
    plain, compensated = (round_weights(weight, spec, c).values for c in (None, covariance()))
    assert error(weight, compensated) < 0.7 * error(weight, plain)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_codes_stand_for_the_values_and_stay_within_their_bits(spec: Quantize) -> None:
    rounded = round_weights(weights(), spec, covariance())
    codes = rounded.codes.float()
    torch.testing.assert_close(rounded.grid.decode(codes, torch.arange(40)), rounded.values)
    torch.testing.assert_close(rounded.grid.nearest(rounded.values), rounded.values)
    distinct = 3 if spec.codes == "ternary" else 2**spec.weight_bits
    assert len(rounded.codes.unique()) <= distinct
    if spec.symmetric and spec.codes != "kmeans":
        assert rounded.codes.abs().max() <= max(1, 2 ** (spec.weight_bits - 1) - 1)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.codes != "kmeans"], ids=lambda spec: spec.label)
def test_the_rows_of_a_pruned_layer_are_those_of_the_whole(spec: Quantize) -> None:
    weight, kept = weights(), [0, 3, 7, 11]
    whole, part = (round_weights(w, spec, covariance()) for w in (weight, weight[kept]))
    torch.testing.assert_close(part.values, whole.values[kept], rtol=1e-4, atol=1e-5)


def test_eight_bit_weights_come_back_exactly() -> None:
    codes = torch.randint(-127, 128, (6, 40), generator=torch.Generator().manual_seed(2))
    codes[:, 0] = 127
    weight = 0.013 * codes.float()
    for given in (None, covariance()):
        rounded = round_weights(weight, Quantize(8, 8), given)
        assert torch.equal(rounded.codes.long(), codes)
        torch.testing.assert_close(rounded.values, weight)


def test_a_diagonal_weighs_the_scale_and_a_known_factor_changes_nothing() -> None:
    weight, matrix, spec = weights(), covariance() * torch.logspace(-2, 2, 40)[:, None].sqrt(), Quantize(3, 32)
    matrix = torch.diag(matrix.diagonal())
    weighed, blind = (round_weights(weight, spec, c).values for c in (matrix.diagonal(), None))
    cost = [float(((weight - values).square() * matrix.diagonal()).sum()) for values in (weighed, blind)]
    assert cost[0] < cost[1]
    given = round_weights(weight, spec, covariance(), factor=elimination_factor(covariance()))
    assert torch.equal(given.values, round_weights(weight, spec, covariance()).values)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.codes != "binary"], ids=lambda spec: spec.label)
def test_what_is_sparse_stays_sparse(spec: Quantize) -> None:
    weight = weights()
    weight[:, ::3] = 0.0
    assert not round_weights(weight, spec, covariance()).values[:, ::3].any()


def test_a_row_of_zeros_and_constant_inputs_round_to_something_finite() -> None:
    weight = weights()
    weight[2] = 0.0
    for spec in SPECS:
        assert torch.isfinite(round_weights(weight, spec, torch.zeros(40, 40)).values).all()


def test_the_bias_absorbs_the_mean_error() -> None:
    weight, inputs = weights(), columns()
    values = round_weights(weight, Quantize(2, 32), covariance()).values
    bias = corrected_bias(None, weight, values, inputs.mean(0))
    torch.testing.assert_close((inputs @ values.T + bias).mean(0), (inputs @ weight.T).mean(0), atol=1e-4, rtol=1e-4)
