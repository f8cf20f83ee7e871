"""Export: the file computes what the model computes, and integer layers really are integer."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import NETWORKS, conv, images, make
from torch import nn

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.quantize import Quantized
from automc.devices.cpu import Cpu
from automc.errors import AutomcError
from automc.evaluate.running import Deployed
from automc.export.floating import export_float, layer_of
from automc.export.onnx import build_onnx
from automc.export.torch_export import build_pt2
from automc.export.verify import relative_error
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.tracing.trace import trace


def stitcher(name: str) -> Stitcher:
    found = trace(make(name), (images(4),))
    return Stitcher(found, calibrate(found, [(images(64),)], 64), (images(32),))


def run(model: bytes, x: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_the_pruned_and_factorised_model_computes(name: str) -> None:
    stitch = stitcher(name)
    graph = stitch.traced.graph
    choices: list[tuple[str, Prune | LowRank]] = [(g.name, Prune(max(1, g.width // 2))) for g in graph.groups]
    choices += [(layer.name, LowRank(4)) for layer in graph.layers if layer.low_rank]
    model = stitch.apply(Policy.of(choices))
    file = build_onnx(model, (images(4),), reduce_range=False)
    np.testing.assert_allclose(run(file, images(4)), model(images(4)).numpy(), atol=1e-3)


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "mobile", "attention", "lists"])
def test_integer_layers_run_on_integers_and_stay_close(name: str, tmp_path: object) -> None:
    stitch = stitcher(name)
    stitch.reduce_range = True  # exact on processors with and without VNNI
    layers = [layer.name for layer in stitch.traced.graph.layers if layer.quantize]
    model = stitch.apply(Policy.of((layer, Quantize(8, 8)) for layer in layers))
    file = build_onnx(model, (images(4),), reduce_range=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimised.onnx"
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    written = onnx.load_from_string(file).graph
    used = {name for node in written.node for name in node.input}
    assert {initializer.name for initializer in written.initializer} <= used
    kernels = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    integer = [k for k in kernels if k in ("QLinearConv", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul")]
    assert len(integer) >= 0.8 * len(layers), kernels
    assert relative_error(torch.from_numpy(run(file, images(4))), model(images(4))) <= 1e-4


@pytest.mark.parametrize("name", ["residual", "lists"])
def test_nodes_are_named_after_the_modules_they_come_from(name: str) -> None:
    stitch = stitcher(name)
    file = onnx.load_from_string(build_onnx(stitch.traced.model, (images(4),), reduce_range=False))
    layers = {layer_of(node) for node in file.graph.node if node.op_type in ("Conv", "Gemm")}
    assert layers == set(stitch.traced.graph.layer)


def test_a_module_called_twice_keeps_its_name_and_does_not_take_that_of_another() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.part_1 = conv(3, 3), conv(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.part_1(self.part(self.part(x)))

    nodes = [node for node in export_float(Twice().eval(), (images(1),)).graph.node if node.op_type == "Conv"]
    assert [layer_of(node) for node in nodes] == ["part.0", "part.0", "part_1.0"]


def test_only_the_layer_that_the_policy_names_becomes_integer() -> None:
    stitch = stitcher("lists")
    for layer in ("layers.1.0", "blocks.0.1.0", "left.conv.0", "right.conv.0"):
        model = stitch.apply(Policy.of([(layer, Quantize(8, 8))]))
        graph = onnx.load_from_string(build_onnx(model, (images(4),), reduce_range=False)).graph
        decoded = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
        assert [layer_of(node) for node in layers if node.input[1] in decoded] == [layer]


def optimised(file: bytes, folder: object) -> list[str]:
    """The operators that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{folder}/optimised.onnx"
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def test_an_integer_linear_layer_before_a_floating_point_operator_multiplies_integers(tmp_path: object) -> None:
    """The runtime decodes weights anew in every run where it finds no integer bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    inputs = torch.randn(32, 5, 8)
    found = trace(model, (inputs[:2],))
    stitch = Stitcher(found, calibrate(found, [(inputs,)], 32), (inputs,), reduce_range=True)
    compressed = stitch.apply(Policy.of((name, Quantize(8, 8)) for name in ("0", "2")))
    file = build_onnx(compressed, (inputs[:2],), reduce_range=True)
    operators = optimised(file, tmp_path)
    assert operators.count("QGemm") == 2
    assert not {"Gemm", "MatMul"} & set(operators)
    np.testing.assert_allclose(run(file, inputs[:2]), compressed(inputs[:2]).numpy(), atol=1e-3)


def test_maxima_of_a_floating_point_layer_are_not_taken_over_codes(tmp_path: object) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.Flatten()).eval()
    inputs = torch.randn(32, 3, 16, 16)
    found = trace(model, (inputs[:2],))
    stitch = Stitcher(found, calibrate(found, [(inputs,)], 32), (inputs,), reduce_range=True)
    compressed = stitch.apply(Policy.of([("3", Quantize(8, 8))]))
    file = build_onnx(compressed, (inputs[:2],), reduce_range=True)
    operators = optimised(file, tmp_path)
    assert operators.index("MaxPool") < operators.index("QuantizeLinear")
    np.testing.assert_allclose(run(file, inputs[:2]), compressed(inputs[:2]).numpy(), atol=1e-3)


def test_an_integer_layer_without_a_node_is_an_error() -> None:
    class Bypassed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Quantized(nn.Conv2d(3, 4, 1).requires_grad_(False), Quantize(8, 8))
            self.layer.set_range(0.0, 1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = self.layer.inner if isinstance(self.layer, Quantized) else self.layer
            return torch.einsum("oi,bihw->bohw", inner.weight.flatten(1), x)

    with pytest.raises(AutomcError, match="no node for the integer layer 'layer'"):
        build_onnx(Bypassed(), (images(4),), reduce_range=False)


@pytest.mark.parametrize("bits", [(4, 6), (8, 4), (3, 3), (7, 32)])
def test_layers_of_other_bits_are_exported_as_they_are_rounded_in_pytorch(bits: tuple[int, int]) -> None:
    model = stitcher("residual").apply(Policy.of([("a1.0", Quantize(*bits)), ("b2.0", Quantize(*bits))]))
    file = build_onnx(model, (images(4),), reduce_range=False)
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load_from_string(file).graph.node}
    np.testing.assert_allclose(run(file, images(4)), model(images(4)).numpy(), atol=1e-3)


def test_layers_of_other_bits_stand_beside_integer_ones() -> None:
    stitch = stitcher("residual")
    stitch.reduce_range = True  # exact on processors with and without VNNI
    model = stitch.apply(Policy.of([("a1.0", Quantize(3, 6)), ("b2.0", Quantize(8, 8))]))
    file = build_onnx(model, (images(4),), reduce_range=True)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load_from_string(file).graph.node}
    expected = model(images(4))
    assert relative_error(torch.from_numpy(run(file, images(4))), expected) <= 1e-4


def test_a_deployed_model_takes_any_number_of_samples() -> None:
    stitch = stitcher("plain")
    file = build_onnx(stitch.traced.model, (images(4),), reduce_range=False)
    deployed = Deployed(Cpu().session(file), 4)
    for count in (1, 4, 9):
        torch.testing.assert_close(deployed(images(count)), stitch.traced.model(images(count)), atol=1e-4, rtol=1e-4)


def test_the_pt2_file_loads_and_computes_the_same(tmp_path: object) -> None:
    stitch = stitcher("residual")
    model = stitch.apply(Policy.of([("a1.0", Prune(6)), ("b1.0", Quantize(8, 8)), ("b2.0", LowRank(4))]))
    path = f"{tmp_path}/model.pt2"
    with open(path, "wb") as file:
        file.write(build_pt2(model, (images(4),)))
    loaded = torch.export.load(path).module()
    torch.testing.assert_close(loaded(images(4)), model(images(4)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("holder", ["buffer", "constant", "parameter"])
def test_a_tensor_without_elements_may_lie_in_any_storage(holder: str) -> None:
    class Holds(nn.Module):
        """As after a journey between processes: an empty tensor in memory that NumPy owns."""

        def __init__(self) -> None:
            super().__init__()
            empty = torch.from_numpy(np.empty(0, dtype=np.float32))
            if holder == "buffer":
                self.register_buffer("empty", empty)
            elif holder == "parameter":
                self.empty = nn.Parameter(empty)
            else:
                self.empty = empty

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.flatten(), self.empty])

    program = torch.export.load(io.BytesIO(build_pt2(Holds(), (images(2),))))
    torch.testing.assert_close(program.module()(images(2)), images(2).flatten())


def test_a_pt2_file_that_computes_something_else_is_an_error() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(AutomcError, match="pt2 file differs"):
        build_pt2(Noisy(), (images(2),))
