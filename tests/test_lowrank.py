"""Low-rank factors: what they compute, that the data make them better, and that shapes, kernels and covariances agree."""

from __future__ import annotations

import builtins
import sys
from itertools import pairwise
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from networks import images, make
from torch import nn

from automc.calibrate import columns_of
from automc.compression.alternate import refine, refit_last
from automc.compression.compose import join, weights_of
from automc.compression.lowrank import covariance_after, factorise, mean_after
from automc.compression.variants import take_outputs
from automc.devices.device import NodeTime
from automc.errors import MissingError
from automc.export.onnx import build_onnx
from automc.factors import factored_macs, factors_of
from automc.graph import LayerGraph, LayerSpec
from automc.policy import LowRank
from automc.predict.attribute import attribute
from automc.predict.kernels import KINDS, layer_kernels
from automc.tracing.trace import trace

METHODS = ("svd", "spatial", "tucker", "cp", "tt")
GEOMETRIES: dict[str, dict[str, Any]] = {
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "oblong": {"kernel_size": (3, 5), "stride": (1, 2), "padding": (2, 1)},
    "same": {"kernel_size": (4, 3), "padding": "same"},
    "dilated": {"kernel_size": 3, "padding": "same", "dilation": (1, 2), "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "row": {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 1)},
    "column": {"kernel_size": (3, 1), "padding": "valid", "bias": False},
    "pointwise": {"kernel_size": 1, "stride": 2},
}


def spec(rank: int, method: str) -> LowRank:
    return LowRank(rank, cast(Any, method))


def moments(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Columns, covariance and mean of what `layer` reads of `x`."""
    positions = layer(x)[0, 0].numel() if isinstance(layer, nn.Conv2d) else layer(x)[0, ..., 0].numel()
    columns = columns_of(layer, x, torch.arange(positions)).flatten(0, -2)
    return columns, torch.cov(columns.T, correction=0), columns.mean(0)


def compose(factors: nn.Sequential) -> torch.Tensor:
    """The weight of the one layer that computes what `factors` compute, in the shape of that layer's weight."""
    weight = join(weights_of(factors))
    return weight.flatten(1) if isinstance(factors[0], nn.Linear) else weight


def error(weight: torch.Tensor, composed: torch.Tensor, covariance: torch.Tensor | None) -> float:
    """Squared output error over output energy of `composed` in place of `weight`, both (outputs, features).

    Both are about the mean, on inputs with that covariance (None: white ones).
    """
    lost, energy = (_energy(matrix, covariance) for matrix in (weight - composed, weight))
    return lost / energy


def _energy(matrix: torch.Tensor, covariance: torch.Tensor | None) -> float:
    seen = matrix if covariance is None else matrix @ covariance
    return max(0.0, float((seen.double() * matrix).sum()))


def relative_error(layer: nn.Conv2d | nn.Linear, factors: nn.Sequential, covariance: torch.Tensor | None) -> float:
    """The `error` of factors in place of their layer."""
    return error(layer.weight.detach().flatten(1), compose(factors).flatten(1), covariance)


def smooth(channels: int, side: int = 14, count: int = 24) -> torch.Tensor:
    """(count, channels, side, side) correlated maps with a mean, positive as after a ReLU."""
    torch.manual_seed(3)
    mixed = nn.Conv2d(3, channels, 3, padding=1)
    return torch.relu(mixed(images(count, side=side)) + 0.1).detach()


def conv(channels: int = 12, outputs: int = 16, **options: Any) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(channels, outputs, **{"kernel_size": 3, "padding": 1, **options})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_factors_compute_what_their_composition_computes(geometry: str, method: str) -> None:
    layer, x = conv(6, 8, **GEOMETRIES[geometry]), torch.randn(2, 6, 13, 12)
    factors = factorise(layer, spec(4, method), None)
    expected = layer._conv_forward(x, compose(factors), layer.bias)
    torch.testing.assert_close(factors(x), expected, atol=1e-4, rtol=1e-4)
    carried = [part.bias is not None for part in factors if isinstance(part, nn.Conv2d)]
    assert carried == [*[False] * (len(factors) - 1), layer.bias is not None]


@pytest.mark.parametrize(("method", "rank"), [("svd", 99), ("spatial", 99), ("tucker", 99), ("tt", 99), ("cp", 54)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_full_rank_factors_compute_the_layer_itself(geometry: str, method: str, rank: int) -> None:
    layer = conv(6, 8, **GEOMETRIES[geometry])
    factors = factorise(layer, spec(rank, method), None)
    lost = relative_error(layer, factors, None)
    assert lost < (1e-3 if method == "cp" else 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_layer_is_a_matrix_whatever_the_method(method: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(10, 7), torch.randn(5, 4, 10)
    factors = factorise(layer, spec(3, method), None)
    assert [part.weight.shape for part in factors if isinstance(part, nn.Linear)] == [(3, 10), (7, 3)]
    torch.testing.assert_close(factors(x), nn.functional.linear(x, compose(factors), layer.bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_shapes_are_those_that_are_priced(method: str) -> None:
    for inputs, outputs, kernel in (
        (16, 24, (3, 3)),
        (3, 64, (3, 3)),
        (40, 4, (3, 5)),
        (9, 9, (1, 3)),
        (8, 12, (1, 1)),
    ):
        for rank in (1, 5, 40):
            layer = conv(inputs, outputs, kernel_size=kernel, padding=0)
            shapes = factors_of(spec(rank, method), inputs, outputs, kernel)
            weights = weights_of(factorise(layer, spec(rank, method), None))
            built = [(w.shape[0], w.shape[1], w.shape[2:]) for w in weights]
            assert built == [(f.outputs, 1 if f.depthwise else f.inputs, f.along(kernel)) for f in shapes]


@pytest.mark.parametrize("method", METHODS)
def test_the_data_aware_factors_err_less_on_the_data(method: str) -> None:
    layer, x = conv(), smooth(12)
    _, covariance, mean = moments(layer, x)
    lost = []
    for known in (covariance, None):
        factors = factorise(layer, spec(6, method), known, mean)
        lost.append(relative_error(layer, factors, covariance))
        wanted, found = layer(x).detach(), factors(x)
        energy = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
        assert float((wanted - found).square().sum() / energy) == pytest.approx(lost[-1], rel=0.02)
    assert lost[0] < 0.7 * lost[1]


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_keeps_the_mean_of_every_output(bias: bool) -> None:
    layer, x = conv(bias=bias), smooth(12)
    _, covariance, mean = moments(layer, x)
    with_mean, without = (
        factorise(layer, spec(3, "svd"), covariance, mean),
        factorise(layer, spec(3, "svd"), covariance),
    )
    means = [model(x).mean((0, 2, 3)) for model in (layer, with_mean, without)]
    torch.testing.assert_close(means[1], means[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(means[2], means[0], atol=1e-2)


def test_svd_reaches_the_least_error_that_any_rank_allows() -> None:
    layer = conv()
    _, covariance, _ = moments(layer, smooth(12))
    weight = layer.weight.detach().flatten(1).double()
    energies = torch.linalg.eigvalsh(weight @ covariance.double() @ weight.T)
    lost = relative_error(layer, factorise(layer, spec(4, "svd"), covariance), covariance)
    assert lost == pytest.approx(float(energies[:-4].sum() / energies.sum()), rel=0.05)


def test_the_refit_of_the_last_factor_is_the_least_squares_solution() -> None:
    layer, x = conv(), smooth(12)
    columns, covariance, _ = moments(layer, x)
    factors = factorise(layer, spec(5, "spatial"), None)
    weights, weight = weights_of(factors), layer.weight.detach().flatten(1)
    refitted = join([weights[0], refit_last(weights, weight, covariance)]).flatten(1)
    read = factors[0](x)
    horizontal = factors[1]
    columns_read = columns_of(horizontal, read, torch.arange(columns.shape[0] // len(x))).flatten(0, -2)
    centred = (columns_read - columns_read.mean(0)).double()
    target = ((columns - columns.mean(0)) @ weight.T).double()
    best = torch.linalg.lstsq(centred, target).solution
    expected = float((target - centred @ best).square().sum() / target.square().sum())
    assert error(weight, refitted, covariance) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("method", METHODS[1:])
def test_refinement_never_raises_the_error(method: str) -> None:
    layer = conv()
    _, covariance, _ = moments(layer, smooth(12))
    weight, weights = layer.weight.detach().flatten(1), weights_of(factorise(layer, spec(6, method), None))
    lost = [error(weight, join(weights).flatten(1), covariance)]
    for _ in range(4):
        weights = refine(weights, weight, covariance, sweeps=1, steps=3)
        lost.append(error(weight, join(weights).flatten(1), covariance))
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(lost))
    assert lost[-1] < 0.8 * lost[0]


def test_features_that_are_constant_or_repeat_do_no_harm() -> None:
    layer, x = conv(), smooth(12)
    x[:, 3], x[:, 5] = 1.0, x[:, 4]
    _, covariance, mean = moments(layer, x)
    for method in METHODS:
        factors = factorise(layer, spec(6, method), covariance, mean)
        assert torch.isfinite(factors(x)).all()
        assert relative_error(layer, factors, covariance) < 1.0
    assert torch.isfinite(factorise(layer, spec(2, "tucker"), torch.zeros(108, 108))(x)).all()


@pytest.mark.parametrize(("method", "exact"), [("svd", {0, 1}), ("spatial", {1}), ("tucker", {1, 2}), ("tt", {2, 3})])
def test_the_covariance_after_factors_is_that_of_what_is_read(method: str, exact: set[int]) -> None:
    layer, x = conv(), smooth(12)
    _, covariance, mean = moments(layer, x)
    factors = factorise(layer, spec(5, method), covariance)
    for index, part in enumerate(factors):
        _, seen, seen_mean = moments(part, factors[:index](x))
        found, found_mean = covariance_after(factors, index, covariance), mean_after(factors, index, mean)
        distance = float((found - seen).norm() / seen.norm())
        assert distance < (1e-3 if index in exact else 0.3)
        if index in exact:
            torch.testing.assert_close(found_mean, seen_mean, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker"])
def test_outputs_dropped_after_factorising_err_by_the_share_that_all_did(method: str) -> None:
    layer, x = conv(12, 32), smooth(12)
    _, covariance, mean = moments(layer, x)
    rows = torch.arange(0, 32, 2)
    small = conv(12, 16)
    small.weight, small.bias = nn.Parameter(layer.weight[rows]), nn.Parameter(layer.bias[rows])  # type: ignore[index]
    for rank in (6, 12):
        factors = factorise(layer, spec(rank, method), covariance, mean)
        dropped, direct = take_outputs(factors, rows), factorise(small, spec(rank, method), covariance, mean)
        assert isinstance(dropped, nn.Sequential)
        of_all, late, early = (
            relative_error(of, made, covariance) for of, made in ((layer, factors), (small, dropped), (small, direct))
        )
        assert early < late < 1.3 * of_all


@pytest.mark.parametrize("method", METHODS)
def test_pruned_factors_have_the_kernels_that_are_priced(method: str) -> None:
    (layer, *_) = [layer for layer in trace(make("residual"), (images(2),)).graph.layers if layer.name == "b2.0"]
    kernels = layer_kernels(layer, 5, 3, spec(8, method), None)
    pruned = conv(5, layer.out_channels)
    weights = weights_of(cast(nn.Sequential, take_outputs(factorise(pruned, spec(8, method), None), torch.arange(3))))
    assert kernels.weights.tolist() == [weight.numel() for weight in weights]


def test_tensor_methods_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("tensorly"):
            raise ImportError(name)
        return real(name, *args, **options)

    for name in [name for name in sys.modules if name.startswith("tensorly")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingError, match=r"pip install automc\[tensor\]"):
        factorise(conv(), spec(3, "cp"), None)


def test_cp_is_the_same_every_time() -> None:
    first, second = (weights_of(factorise(conv(), spec(5, "cp"), None)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["residual", "plain", "attention"])
def test_exported_nodes_are_the_kernels_that_are_priced(name: str, method: str) -> None:
    model = make(name)
    traced = trace(model, (images(2),))
    expected: dict[tuple[str, int], tuple[int, ...]] = {}
    for layer in traced.graph.layers:
        chosen = spec(4, method)
        module = traced.model.get_submodule(layer.name)
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        traced.model.set_submodule(layer.name, factorise(module, chosen, None))
        kernels = layer_kernels(layer, layer.in_channels, layer.out_channels, chosen, None)
        assert kernels.macs.sum() == factored_macs(layer, chosen)
        for index, row in enumerate(kernels.rows):
            expected[layer.name, index] = tuple(row.tolist())
    assert _counted(traced.model, traced.graph) == expected


def _counted(model: nn.Module, graph: LayerGraph) -> dict[tuple[str, int], tuple[int, ...]]:
    """Per place the row of `Kernels` that its node of the exported file amounts to."""
    file = build_onnx(model, (images(2),), reduce_range=False)
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(file)).graph
    weights = {t.name: tuple(t.dims) for t in proto.initializer}
    values = [*proto.input, *proto.value_info, *proto.output]
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    nodes = [NodeTime(node.name, node.op_type, 1e-6) for node in proto.node]
    places = attribute(file, nodes, [layer.name for layer in graph.layers])
    found = {}
    for node, place in zip(proto.node, places, strict=True):
        if place is not None:
            weight = next(weights[name] for name in node.input if name in weights and len(weights[name]) > 1)
            found[place] = _row(node, weight, shapes[node.input[0]], shapes[node.output[0]], graph.layer[place[0]])
    return found


def _row(
    node: Any, weight: tuple[int, ...], read: tuple[int, ...], written: tuple[int, ...], layer: LayerSpec
) -> tuple[int, ...]:
    if layer.kind == "linear":  # a Gemm holds (outputs, inputs), a MatMul the transpose; positions are lost in reshapes
        inputs, outputs = weight if node.op_type == "MatMul" else weight[::-1]
        return (KINDS.index("linear"), inputs, outputs, 1, 1, layer.positions, layer.positions, 1, 0, 0, 0, 1)
    options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    groups, window = options.get("group", 1), weight[2] * weight[3]
    kind = "depthwise" if groups > 1 else "conv" if window > 1 else "pointwise"
    stride = int(np.prod(options.get("strides", [1])))
    sides = (int(np.prod(read[2:])), int(np.prod(written[2:])))
    return (KINDS.index(kind), weight[1] * groups, weight[0], window, stride, *sides, groups, 0, 0, 0, weight[2])
