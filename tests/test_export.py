"""Export: the file computes what the model computes, and integer layers really are integer."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import NETWORKS, images, make

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.devices.cpu import Cpu
from automc.evaluate.accuracy import Deployed
from automc.export.onnx import build_onnx, layer_of
from automc.export.torch_export import build_pt2
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.trace import trace


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
    file = build_onnx(model, (images(4),), (images(32),), reduce_range=False)
    np.testing.assert_allclose(run(file, images(4)), model(images(4)).numpy(), atol=1e-3)


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "mobile", "attention"])
def test_integer_layers_run_on_integers_and_stay_close(name: str, tmp_path: object) -> None:
    stitch = stitcher(name)
    layers = [layer.name for layer in stitch.traced.graph.layers if layer.quantize]
    model = stitch.apply(Policy.of((layer, Quantize(8, 8)) for layer in layers))
    file = build_onnx(model, (images(4),), (images(32),), reduce_range=False)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimised.onnx"
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    written = onnx.load_from_string(file).graph
    used = {name for node in written.node for name in node.input}
    assert {initializer.name for initializer in written.initializer} <= used
    kernels = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    integer = [k for k in kernels if k in ("QLinearConv", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul")]
    assert len(integer) >= 0.8 * len(layers), kernels
    reference = stitch.traced.model(images(4)).numpy()
    assert np.abs(run(file, images(4)) - reference).max() <= 0.15 * np.abs(reference).max()


def test_nodes_are_named_after_the_modules_they_come_from() -> None:
    stitch = stitcher("residual")
    file = onnx.load_from_string(build_onnx(stitch.traced.model, (images(4),), (images(4),), reduce_range=False))
    layers = {layer_of(node) for node in file.graph.node if node.op_type in ("Conv", "Gemm")}
    assert layers == set(stitch.traced.graph.layer)


def test_a_deployed_model_takes_any_number_of_samples() -> None:
    stitch = stitcher("plain")
    file = build_onnx(stitch.traced.model, (images(4),), (images(4),), reduce_range=False)
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
