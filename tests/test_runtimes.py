"""OpenVINO and PyTorch as devices: the same outputs as ONNX Runtime, every layer found, nothing promised that is not there."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest
import synthetic
import torch
from onnx import TensorProto, helper

from automc.cli.main import main
from automc.devices import cpu
from automc.devices.cpu import Cpu
from automc.devices.device import Device
from automc.devices.onnx_to_torch import Program
from automc.devices.openvino import mean_of_later
from automc.devices.probe import conv_model
from automc.devices.torch import Torch, eager
from automc.devices.torch_cuda import TorchCuda
from automc.errors import InputError, MissingError
from automc.export.floating import export_float
from automc.faults import find_setting_faults
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.predict.attribute import attribute
from automc.predict.targets import device_names, open_device
from automc.recipe import Job

FLOAT = (("a", Prune(24)), ("a", LowRank(12)), ("b", LowRank(8, "tucker")))
INT8 = (("b", Quantize(8, 8)), ("c", Quantize(8, 8)), ("fc", Quantize(8, 8)))
LAYERS = [layer.name for layer in synthetic.graph().layers]
PLACES = [("stem", 0), ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("c", 0), ("d", 0), ("fc", 0)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path))


@pytest.fixture(params=["openvino", "torch"])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return open_device(request.param)


def test_outputs_are_those_of_onnx_runtime(device: Device, tmp_path: Path) -> None:
    model = synthetic.build(Policy.of(FLOAT))
    (tmp_path / "m.onnx").write_bytes(model)
    expected = Cpu().session(model).run(*synthetic.inputs())[0]
    session = device.session(model)
    first = session.run(*synthetic.inputs())[0]
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    again = session.run(*(-x for x in synthetic.inputs()))[0]
    assert not np.array_equal(again, first)  # a later batch leaves the earlier outputs alone
    np.testing.assert_array_equal(device.session(tmp_path / "m.onnx").run(*synthetic.inputs())[0], first)


def test_every_layer_kernel_is_found(device: Device) -> None:
    model = synthetic.build(Policy.of([*FLOAT, *(INT8 if device.name == "openvino" else ())]))
    nodes = device.node_times(model, synthetic.inputs(), 2)
    places = attribute(model, nodes, LAYERS)
    assert sorted(place for place in places if place) == sorted(PLACES)
    assert all(node.time_s > 0 for node in nodes)
    found = {place: node for node, place in zip(nodes, places, strict=True) if place}
    assert found["fc", 0].outputs[0].shape == (synthetic.BATCH, 10)
    assert found["stem", 0].inputs[0].dtype == found["a", 1].inputs[0].dtype == "float"
    assert (found["c", 0].inputs[0].dtype == "uint8") is (device.name == "openvino")


def test_the_first_run_is_taken_out_of_what_openvino_tells() -> None:
    runs = np.array([90, 10, 11, 12, 11]) * 1e-6
    assert mean_of_later(runs.mean(), runs[0], 4) == pytest.approx(11e-6)
    assert mean_of_later(0.0, 0.0, 4) == mean_of_later(1e-6, 8e-6, 4) == 0.5e-6


def test_whole_models_are_measured_by_the_protocol(device: Device) -> None:
    model, inputs = conv_model(8, 8, 8), [np.ones((1, 8, 8, 8), np.float32)]
    measured = device.measure({"one": model, "two": model}, inputs, 3, min_time_s=0.0, retries=0)
    assert {name: len(rounds) for name, rounds in measured.rounds_s.items()} == {"one": 3, "two": 3}
    assert all(second > 0 for rounds in measured.rounds_s.values() for second in rounds)


def test_who_they_are(device: Device) -> None:
    told = device.environment()
    assert (told["device"], told["runtime"], told["threads"]) == (device.name, device.name, "1")
    assert told["runtime_version"]
    assert len({device.key, open_device(device.name, 2).key, Cpu().key}) == 3
    with pytest.raises(InputError, match="0 threads"):
        open_device(device.name, 0)


def test_integer_kernels_are_offered_where_there_are_any(device: Device) -> None:
    can = device.capabilities()
    assert can.channel_block in (1, 4, 8, 16, 32)
    assert can.int8 is (device.name == "openvino")
    assert can.reduce_range is (device.name == "openvino" and not cpu.has_vnni())


def test_what_is_no_model_is_refused(device: Device) -> None:
    with pytest.raises(InputError, match="cannot load"):
        device.session(b"nonsense")


def test_energy_is_told_by_a_counter_or_a_stated_power_only(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automc.predict.targets.find_meter", lambda _: (None, "none"))
    monkeypatch.delenv("AUTOMC_WATTS", raising=False)
    [fault] = find_setting_faults(Job(budget=("30mJ",), device=device.name))
    assert "no energy figures" in str(fault)
    monkeypatch.setenv("AUTOMC_WATTS", "10")
    assert find_setting_faults(Job(budget=("30mJ",), device=device.name)) == []


def test_a_runtime_that_is_not_there_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "openvino":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["search", "--device", "openvino", "--budget", "60%", "--runs", str(tmp_path)]) == 4
    assert "pip install 'automc[openvino]'" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/config.yaml"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_devices_say_so() -> None:
    names = [name for name in device_names() if "cuda" in name]
    assert len(names) == 6
    for name in names:
        with pytest.raises(MissingError, match="no CUDA GPU"):
            open_device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_events_time_the_gpu() -> None:
    model, device = synthetic.build(Policy.of(FLOAT)), TorchCuda(dtype=torch.float16)
    expected = Cpu().session(model).run(*synthetic.inputs())[0]
    found = device.session(model).run(*synthetic.inputs())[0]
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())
    assert all(node.time_s > 0 for node in device.node_times(model, synthetic.inputs(), 2))
    measured = device.measure({"m": model}, synthetic.inputs(), 3)
    assert 0 < measured.median_s("m") < 1


def test_compiled_programs_share_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch compiles one code object a few times only and then runs it uncompiled without a word."""
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda graph: compiled.append(graph) or graph)
    device = Torch(compiles=True)
    for width in (4, 5):
        device.session(conv_model(3, width, 4)).run(np.ones((1, 3, 4, 4), np.float32))
    assert compiled[0].forward.__code__ is not compiled[1].forward.__code__
    assert device.environment()["runtime"] == "torch.compile"


@pytest.mark.slow
def test_compiled_models_compute_the_same() -> None:
    model, inputs = conv_model(3, 5, 4), [np.ones((1, 3, 4, 4), np.float32)]
    compiled = Torch(compiles=True).session(model).run(*inputs)[0]
    np.testing.assert_allclose(compiled, Cpu().session(model).run(*inputs)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "attention"])
def test_networks_run_as_pytorch_programs(name: str) -> None:
    model = networks.make(name)
    x = networks.images(2)
    file = export_float(model, (x,)).SerializeToString()
    [found] = eager().session(file).run(x.numpy())
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-4)


def test_an_operator_without_a_translation_is_named() -> None:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Sinh", ["x"], ["y"])], "g", info[:1], info[1:])
    with pytest.raises(InputError, match="Sinh"):
        Program(helper.make_model(graph).SerializeToString())


def _one(op: str, shape: list[int], constants: list[np.ndarray[Any, Any]], **attributes: Any) -> bytes:
    names = [f"c{i}" for i in range(len(constants))]
    node = helper.make_node(op, ["x", *names], ["y"], **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [onnx.numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True)]
    graph = helper.make_graph([node], "one", [x], [y], tensors)
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    )


def _ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


WEIGHT = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
CASES: list[tuple[str, list[np.ndarray[Any, Any]], dict[str, Any]]] = [
    ("Conv", [WEIGHT], {"pads": [0, 1, 1, 2], "strides": [2, 1]}),
    ("Conv", [WEIGHT[:, :2]], {"group": 2, "pads": [1, 1, 1, 1], "dilations": [2, 2]}),
    ("ConvTranspose", [np.ascontiguousarray(WEIGHT.transpose(1, 0, 2, 3))], {"strides": [2, 2], "output_padding": [1, 1], "pads": [1] * 4}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("Pad", [_ints(0, 1, 0, 2, 0, 0, 3, 0), np.float32(1.5).reshape(())], {}),
    ("Pad", [_ints(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}),
    ("Slice", [_ints(1), _ints(2**31), _ints(-1), _ints(2)], {}),
    ("Gather", [np.array(2, np.int64)], {"axis": 1}),
    ("Gather", [_ints(3, 0)], {"axis": 1}),
    ("Reshape", [_ints(0, -1, 6)], {}),
    ("Flatten", [], {"axis": 2}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("ReduceMean", [_ints(2, 3)], {"keepdims": 0}),
    ("LayerNormalization", [np.ones(6, np.float32), np.full(6, 0.5, np.float32)], {"epsilon": 1e-3}),
    ("Clip", [np.float32(0.2).reshape(()), np.float32(0.8).reshape(())], {}),
    ("HardSigmoid", [], {"alpha": 1 / 6}),
    ("Gelu", [], {"approximate": "tanh"}),
    ("Softmax", [], {"axis": 1}),
    ("Unsqueeze", [_ints(0, 3)], {}),
    ("PRelu", [np.full((4, 1, 1), 0.3, np.float32)], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "constants", "attributes"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_operators_follow_the_specification(op: str, constants: list[Any], attributes: dict[str, Any]) -> None:
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)
    model = _one(op, [2, 4, 6, 6], constants, **attributes)
    np.testing.assert_allclose(eager().session(model).run(x)[0], Cpu().session(model).run(x)[0], atol=1e-5)
