"""Sparsity: masks of exactly the right size, weights that make up for what is gone, and files without zeros."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import images, make
from test_engine import OPTIONS, data, trained
from torch import Tensor, nn

import automc
from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.quantize import Quantized
from automc.compression.sparsify import sparsify
from automc.errors import InputError
from automc.export.onnx import build_onnx
from automc.export.sparse import DOMAIN, MASK, pack_zeros
from automc.graph import LayerGraph
from automc.policy import LowRank, Policy, Prune, Quantize, Sparsify
from automc.recovery.student import zeros_kept
from automc.registry import load
from automc.tracing.trace import trace

TWO_OF_FOUR = Sparsify(0.5, "2:4")


@lru_cache(maxsize=1)
def correlated(features: int = 144) -> tuple[Tensor, Tensor]:
    """(features, features) covariance of inputs with few degrees of freedom, and (20, features) weights."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(16, features, generator=generator)
    columns = torch.randn(3000, 16, generator=generator) @ basis + 0.3 * torch.randn(
        3000, features, generator=generator
    )
    columns *= torch.linspace(0.3, 2.0, features)
    return columns.T @ columns / len(columns), torch.randn(20, features, generator=generator)


def error(weight: Tensor, new: Tensor, covariance: Tensor) -> float:
    difference = weight - new
    return float((difference @ covariance * difference).sum() / (weight @ covariance * weight).sum())


def inputs_of(name: str) -> Tensor | None:
    covariance = correlated()[0]
    return {"full": covariance, "diagonal": covariance.diagonal(), "none": None}[name]


@pytest.mark.parametrize("known", ["full", "diagonal", "none"])
@pytest.mark.parametrize("density", [0.75, 0.5, 0.35, 0.25, 1 / 3])
def test_unstructured_masks_have_exactly_the_density(known: str, density: float) -> None:
    _, weight = correlated()
    for columns in (144, 130, 7):
        covariance = inputs_of(known)
        if covariance is not None:
            covariance = covariance[:columns][..., :columns] if covariance.dim() == 2 else covariance[:columns]
        new = sparsify(weight[:, :columns], Sparsify(density), covariance)
        assert int((new != 0).sum()) == round(density * 20 * columns)


@pytest.mark.parametrize("known", ["full", "diagonal", "none"])
@pytest.mark.parametrize("taps", [1, 9])
@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_every_group_of_channels_keeps_n_of_m_at_each_tap(known: str, taps: int, pattern: str, n: int, m: int) -> None:
    _, weight = correlated()
    new = sparsify(weight, Sparsify(n / m, pattern), inputs_of(known), taps=taps)
    per_tap = (new != 0).view(20, 144 // taps, taps).transpose(1, 2)  # (outputs, taps, channels)
    assert bool((per_tap.reshape(20, taps, -1, m).sum(-1) == n).all())


def test_a_last_group_of_fewer_channels_keeps_at_most_n() -> None:
    new = sparsify(torch.randn(3, 10), TWO_OF_FOUR)
    assert (new != 0).view(3, 10)[:, 8:].sum(1).tolist() == [2, 2, 2]
    new = sparsify(torch.randn(3, 9), Sparsify(0.25, "1:4"))
    assert (new != 0).sum(1).tolist() == [3, 3, 3]


@pytest.mark.parametrize("spec", [Sparsify(0.5), Sparsify(0.25), TWO_OF_FOUR], ids=lambda spec: spec.label)
def test_compensation_beats_magnitude_on_correlated_inputs(spec: Sparsify) -> None:
    covariance, weight = correlated()
    compensated, diagonal, magnitude = (
        error(weight, sparsify(weight, spec, known), covariance) for known in (covariance, covariance.diagonal(), None)
    )
    assert compensated < 0.7 * min(diagonal, magnitude)
    assert diagonal < magnitude or spec == TWO_OF_FOUR  # its four neighbours are read about equally


def test_outputs_are_solved_independently_of_each_other() -> None:
    covariance, weight = correlated()
    together = sparsify(weight, TWO_OF_FOUR, covariance)
    torch.testing.assert_close(sparsify(weight[3:4], TWO_OF_FOUR, covariance), together[3:4], atol=1e-5, rtol=1e-4)


def test_without_correlation_nothing_is_corrected() -> None:
    weight = torch.randn(4, 32)
    new = sparsify(weight, Sparsify(0.5), torch.eye(32))
    torch.testing.assert_close(new, torch.where(new != 0, weight, 0.0))
    assert float(weight[new == 0].abs().max()) <= float(weight[new != 0].abs().min())


def test_the_removal_of_one_weight_is_the_optimal_brain_surgeon_step() -> None:
    covariance, weight = correlated()
    small, row = covariance[:4, :4], weight[:1, :4].clone()
    row[0, 0] = 1e-3  # goes first, and all others may still change
    new = sparsify(row, Sparsify(0.75), small)
    damped = small + 0.01 * small.diagonal().mean() * torch.eye(4)
    inverse = torch.linalg.inv(damped)
    torch.testing.assert_close(new, row - row[0, 0] / inverse[0, 0] * inverse[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (Sparsify(0.0), "keeps nothing"),
        (Sparsify(1.5), "more than all"),
        (Sparsify(0.5, "4:2"), "no sparsity pattern '4:2'"),
        (Sparsify(0.5, "rows"), "no sparsity pattern 'rows'"),
        (Sparsify(0.4, "2:4"), "density 0.5, not 0.4"),
    ],
)
def test_specs_that_mean_nothing_are_refused(spec: Sparsify, words: str) -> None:
    with pytest.raises(InputError, match=words):
        sparsify(torch.randn(2, 8), spec)


def stitcher(name: str) -> Stitcher:
    found = trace(make(name), (images(4),))
    return Stitcher(found, calibrate(found, [(images(64),)], 64), (images(32),))


def share_left(layer: nn.Module) -> float:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return float((layer.weight != 0).float().mean())


def test_the_mean_of_the_outputs_is_kept() -> None:
    stitch = stitcher("plain")
    sparse = stitch.apply(Policy.of([("0.1.0", Sparsify(0.25))]))
    with torch.no_grad():
        read = stitch.traced.model[0][0](images(64))  # type: ignore[index, operator]
        old, new = stitch.traced.model.get_submodule("0.1.0")(read), sparse.get_submodule("0.1.0")(read)
    torch.testing.assert_close(old.mean((0, 2, 3)), new.mean((0, 2, 3)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rank", [None, LowRank(4, "svd"), LowRank(4, "tucker")])
def test_zeros_come_after_factors_and_stay_when_weights_are_rounded(rank: LowRank | None) -> None:
    stitch = stitcher("residual")
    choices = [("a1.0", Prune(8)), ("a2.0", Sparsify(0.5)), ("a2.0", Quantize(8, 8))]
    model = stitch.apply(Policy.of([*choices, *([("a2.0", rank)] if rank else [])]))
    layer = model.get_submodule("a2.0")
    parts = list(layer) if isinstance(layer, nn.Sequential) else [layer]
    for part in parts:
        assert isinstance(part, Quantized)
        assert share_left(part.inner) == pytest.approx(0.5, abs=0.02)
    assert torch.isfinite(model(images(2))).all()


def sparse_file(policy: Policy, name: str = "plain") -> tuple[bytes, bytes]:
    """The file of a policy, and what it would be with its zeros."""
    stitch = stitcher(name)
    model = stitch.apply(policy)
    packed = build_onnx(model, (images(4),), reduce_range=True)
    dense = build_onnx(stitch.traced.model, (images(4),), reduce_range=True)
    return packed, dense


def run(model: bytes, optimised: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if optimised is not None:
        options.log_severity_level = 3
        options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs: np.ndarray = session.run(None, {"input": images(4).numpy()})[0]
    return outputs


@pytest.mark.parametrize("bits", [(), (("0.1.0", Quantize(8, 8)),)], ids=["float", "int8"])
def test_a_packed_file_is_small_and_runs_the_very_same_kernels(bits: tuple[tuple[str, Quantize], ...], tmp_path: Path) -> None:  # fmt: skip
    stitch = stitcher("plain")
    model = stitch.apply(Policy.of([("0.1.0", Sparsify(0.25)), *bits]))
    packed = onnx.load_from_string(build_onnx(model, (images(4),), reduce_range=True))
    plain = unpacked(packed)
    onnx.checker.check_model(packed, full_check=True)
    ops = []
    for number, proto in enumerate((packed, plain)):
        outputs = run(proto.SerializeToString(), tmp_path / f"{number}.onnx")
        ops.append((sorted(node.op_type for node in onnx.load(tmp_path / f"{number}.onnx").graph.node), outputs))
    assert ops[0][0] == ops[1][0]
    np.testing.assert_array_equal(ops[0][1], ops[1][1])
    saved = 24 * 144 * (0.75 * (1 if bits else 4) - 1 / 8) * 0.9
    assert len(packed.SerializeToString()) < len(plain.SerializeToString()) - saved + 2000  # the function's own bytes


def unpacked(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its packed weights as ordinary initializers, computed here in NumPy."""
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in plain.graph.initializer}
    for node in [node for node in plain.graph.node if node.domain == DOMAIN]:
        mask, values, shape = (known[name] for name in node.input)
        assert node.input[0].endswith(MASK)
        dense = np.zeros(int(np.prod(shape)), values.dtype)
        dense[np.unpackbits(mask)[: dense.size] == 1] = values[1:]
        plain.graph.initializer.append(onnx.numpy_helper.from_array(dense.reshape(shape), node.output[0]))
        plain.graph.node.remove(node)
    return plain


def test_files_without_zeros_are_left_alone() -> None:
    _, dense = sparse_file(Policy())
    proto = onnx.load_from_string(dense)
    assert pack_zeros(proto) == proto
    assert not proto.functions


@pytest.mark.parametrize("name", ["plain", "attention", "mobile"])
def test_sparse_files_compute_what_the_model_computes(name: str) -> None:
    stitch = stitcher(name)
    layers = [layer for layer in stitch.traced.graph.layers if layer.groups == 1]
    model = stitch.apply(Policy.of((layer.name, Sparsify(0.25)) for layer in layers))
    with torch.no_grad():
        expected = model(images(4)).numpy()
    found = run(build_onnx(model, (images(4),), reduce_range=True))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3)


def space(graph: LayerGraph, **options: object) -> dict[str, list[str]]:
    return {domain.target: list(domain.labels) for domain in load("space", "sparse")(graph, **options).domains}


def test_patterns_are_offered_where_the_device_has_a_kernel() -> None:
    graph = trace(make("plain"), (images(4),)).graph
    densities = ["dense", "75 % left", "50 % left", "35 % left", "25 % left"]
    assert space(graph) == {"0.1.0": densities, "1": densities}
    assert space(graph, sparsity=("2:4",))["1"] == [*densities[:3], "2:4", *densities[3:]]


def test_fine_tuning_leaves_zeros_zero() -> None:
    layer = nn.Linear(8, 4)
    layer.weight.data = sparsify(layer.weight.data, Sparsify(0.5))
    zeros = layer.weight == 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    before = layer.weight.detach().clone()
    with zeros_kept(layer):
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.randn(16, 8)).square().sum().backward()
            optimizer.step()
    assert bool((layer.weight[zeros] == 0).all())
    assert bool((layer.weight[~zeros] != before[~zeros]).all())


@pytest.mark.slow
def test_a_search_meets_a_size_budget_with_zeros_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))
    options = {**OPTIONS, "trials": 4, "profile": "3s", "recover": "1s"}
    result = automc.compress(
        trained(), data=data(), runs=str(tmp_path), budget="85%size", space="sparse", **options
    )  # fmt: skip
    best, dense = result.summary.best, result.summary.dense
    assert best is not None
    assert best.cost.size_bytes == len(result.onnx) <= 0.85 * (dense.cost.size_bytes or 0)
    assert best.cost.source["size_bytes"] == "measured"
    assert {type(spec) for _, spec in result.policy} == {Sparsify}
    for name, spec in result.policy:
        assert isinstance(spec, Sparsify)
        assert share_left(result.model.get_submodule(name)) == pytest.approx(spec.density, abs=0.01)
