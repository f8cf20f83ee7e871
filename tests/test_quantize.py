"""Rounded layers: they hold their grid, train on it, and compute what the exported file computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import images, make
from torch import Tensor, nn

from automc.compression.carriers import set_ranges
from automc.compression.quantize import Quantized
from automc.compression.ranges import best_range
from automc.compression.storage import as_run, decoding_nodes, file_bytes, runs_on_integers
from automc.export.onnx import build_onnx
from automc.export.verify import relative_error
from automc.policy import Quantize
from automc.tracing.trace import trace

STORED = [
    *(Quantize(bits, 32) for bits in (2, 3, 4, 8)),
    Quantize(2, 32, symmetric=False),
    Quantize(4, 32, 16),
    Quantize(3, 32, 20, symmetric=False),
    Quantize(1, 32, codes="binary"),
    Quantize(4, 32, codes="kmeans"),
]


def rounded(name: str, spec: Quantize) -> nn.Module:
    model = trace(make(name), (images(4),)).model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            model.set_submodule(path, Quantized(module, spec))
    set_ranges(model, [(images(64),)])
    return model.eval()


def run(model: bytes, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_weights_that_are_trained_are_rounded_on_the_way_and_then_moved_to_the_grid() -> None:
    layer = Quantized(nn.Linear(8, 4), Quantize(3, 32))
    before, x = layer(images(1).flatten()[:8]), images(1).flatten()[:8]
    with torch.no_grad():
        layer.inner.weight += 0.2 * layer.weight_scale
    torch.testing.assert_close(layer(x), before)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.inner.weight.grad, x.expand(4, -1))
    layer.requantize()
    torch.testing.assert_close(layer.inner.weight, layer.grid.nearest(layer.inner.weight))


@pytest.mark.parametrize("spec", [Quantize(4, 32), Quantize(4, 32, symmetric=False), Quantize(4, 32, codes="kmeans")])
def test_outputs_are_scaled_without_leaving_the_grid(spec: Quantize) -> None:
    layer, factor = Quantized(nn.Linear(8, 4).requires_grad_(False), spec), torch.tensor([2.0, -0.5, 1.0, -3.0])
    wanted = layer.inner.weight * factor[:, None]
    layer.scale_outputs(factor)
    torch.testing.assert_close(layer.inner.weight, layer.grid.nearest(layer.inner.weight))
    tolerance = 0.1 if spec.codes == "kmeans" else 1e-5
    torch.testing.assert_close(layer.inner.weight, wanted, atol=tolerance, rtol=1e-4)


def test_a_range_leaves_an_outlier_out_and_widens_with_the_bits() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=50_000), [40.0]]).astype(np.float32)
    assert float(np.diff(best_range(values, 4))[0]) < 40
    assert best_range(np.zeros(5, np.float32), 8) == (0.0, 1.0)
    few, many = (float(np.diff(best_range(values[:-1], bits))[0]) for bits in (4, 8))
    assert few < many


@pytest.mark.parametrize("bits", [4, 6, 8, 32])
def test_inputs_are_rounded_to_their_bits(bits: int) -> None:
    layer = Quantized(nn.Linear(1, 1, bias=False).requires_grad_(False), Quantize(8, bits))
    layer.inner.weight.fill_(1.0)
    layer.set_range(-1.0, 1.0)
    outputs = layer(torch.linspace(-1, 1, 1000)[:, None]).unique()
    assert 2**bits - 1 <= len(outputs) <= 2**bits if bits < 32 else len(outputs) == 1000


@pytest.mark.parametrize("name", ["plain", "residual", "dense"])
@pytest.mark.parametrize("bits", [7, 4, 2])  # 8-bit weights may saturate on this processor
def test_the_integer_file_agrees_with_the_simulation(name: str, bits: int) -> None:
    model = rounded(name, Quantize(bits, 8))
    file = build_onnx(model, (images(64, seed=5),), reduce_range=False)
    x = images(64, seed=5)
    found, expected = run(file, x), model(x)
    assert relative_error(found, expected) < 0.03
    assert float((found.argmax(1) == expected.argmax(1)).float().mean()) > 0.9


@pytest.mark.parametrize("bits", [8, 4])
def test_the_integer_file_holds_the_codes_and_scales_of_the_layers(bits: int) -> None:
    model = rounded("plain", Quantize(bits, 8))
    file = onnx.load_from_string(build_onnx(model, (images(2),), reduce_range=False)).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(float) for tensor in file.initializer}
    for module in model.modules():
        if isinstance(module, Quantized):
            codes = module.codes().numpy()
            assert any(a.size == codes.size and np.array_equal(a.reshape(codes.shape), codes) for a in held.values())
            assert any(np.array_equal(a, module.weight_scale[:, 0].numpy()) for a in held.values())
            behind_pool = module.inner.weight.shape == (20, 96)  # takes the scale of what the pool reads
            assert behind_pool or any(a.size == 1 and a == module.scale.numpy() for a in held.values())


@pytest.mark.parametrize("name", ["plain", "attention"])
@pytest.mark.parametrize("spec", STORED, ids=lambda spec: spec.label)
def test_stored_weights_compute_the_same_and_take_fewer_bytes(name: str, spec: Quantize) -> None:
    model = rounded(name, spec)
    x = images(3, seed=5)
    file, dense = (build_onnx(m, (x,), reduce_range=False) for m in (model, make(name)))
    np.testing.assert_allclose(run(file, x), model(x), atol=1e-4)
    layers = [module for module in model.modules() if isinstance(module, Quantized)]
    saved = sum(4 * m.inner.weight.numel() - file_bytes(spec, *m.inner.weight.flatten(1).shape) for m in layers)
    assert len(dense) - len(file) > saved - 2000 * len(layers)  # less the nodes that unpack them
    assert not onnx.load_from_string(file).graph.value_info
    expected = sum(decoding_nodes(spec, m.inner.weight[0].numel(), on_integers=False) for m in layers)
    decoding = {"Cast", "Sub", "Mul", "Gather", "Reshape", "Slice"}
    ops = [[node.op_type for node in onnx.load_from_string(f).graph.node] for f in (file, dense)]
    assert sum(op in decoding for op in ops[0]) - sum(op in decoding for op in ops[1]) == expected


def test_few_bits_of_integer_layers_take_two_nodes_more() -> None:
    files = [build_onnx(rounded("plain", Quantize(bits, 8)), (images(2),), reduce_range=False) for bits in (8, 4)]
    eight, four = (len(onnx.load_from_string(file).graph.node) for file in files)
    layers = [module for module in rounded("plain", Quantize(4, 8)).modules() if isinstance(module, Quantized)]
    assert four - eight == sum(decoding_nodes(Quantize(4, 8), 9, on_integers=True) for _ in layers)
    assert decoding_nodes(Quantize(8, 8), 9, on_integers=True) == 0


def test_what_integer_kernels_run() -> None:
    assert all(runs_on_integers(spec) for spec in (Quantize(8, 8), Quantize(4, 8), Quantize(2, 8, codes="ternary")))
    others = (Quantize(8, 32), Quantize(8, 4), Quantize(4, 8, 32), Quantize(4, 8, codes="kmeans"))
    assert not any(runs_on_integers(spec) for spec in others)
    assert as_run(Quantize(8, 8), reduce_range=True) == Quantize(7, 8)
    assert as_run(Quantize(8, 32), reduce_range=True) == Quantize(8, 32)


def test_some_of_the_outputs_keep_their_rounding() -> None:
    layer, rows = Quantized(nn.Linear(8, 4).requires_grad_(False), Quantize(4, 8)), torch.tensor([0, 2])
    inner = nn.Linear(8, 2).requires_grad_(False)
    inner.weight.copy_(layer.inner.weight[rows])
    cut = layer.take_outputs(inner, rows)
    assert torch.equal(cut.codes(), layer.codes()[rows])
    assert len(layer.weight_scale) == 4
