"""Files for TensorRT: the same outputs, integers as it takes them, and a script that fixes the precision of each layer by its node's name."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from networks import images
from onnx import numpy_helper
from records import make_summary, make_trials, write_run
from test_quantize import rounded, run

from automc.export.onnx import build_onnx
from automc.export.run import export_run
from automc.export.tensorrt import engine_script, for_tensorrt, layer_precisions
from automc.policy import Quantize

LAYERS = {"Conv", "Gemm", "MatMul"}


def exported(spec: Quantize) -> bytes:
    """A residual network, every layer of it rounded."""
    return build_onnx(rounded("residual", spec), (images(4),), reduce_range=False)


def test_integers_are_signed_and_without_zero_points_and_outputs_stay_near() -> None:
    file = exported(Quantize(8, 8))
    proto = for_tensorrt(file)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    zeros = [constants[n.input[2]] for n in proto.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    biases = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and constants.get(n.input[0], np.int8(0)).dtype == np.int32]  # fmt: skip
    assert biases == []
    x = images(4)
    before, after = run(file, x), run(proto.SerializeToString(), x)
    assert float((before - after).norm() / before.norm()) < 0.05


def test_packed_weights_are_unpacked_and_run_in_floating_point() -> None:
    file = exported(Quantize(4, 32))
    proto = for_tensorrt(file)
    assert set(layer_precisions(proto).values()) == {"float"}
    assert {n.op_type for n in proto.graph.node}.isdisjoint({"Cast", "Unpack", "DequantizeLinear"})
    torch.testing.assert_close(run(proto.SerializeToString(), images(4)), run(file, images(4)), rtol=1e-4, atol=1e-4)


def test_precisions_are_those_of_every_layer_by_its_name() -> None:
    proto = for_tensorrt(exported(Quantize(8, 8)))
    precisions = layer_precisions(proto)
    assert list(precisions) == [n.name for n in proto.graph.node if n.op_type in LAYERS]
    assert set(precisions.values()) == {"int8"}


class FakeNetwork:
    """The layers of a parsed file, named as TensorRT names them: after their nodes."""

    def __init__(self) -> None:
        self.layers: list[SimpleNamespace] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> SimpleNamespace:
        return self.layers[index]


class FakeParser:
    num_errors = 0

    def __init__(self, network: FakeNetwork, logger: object) -> None:
        self.network = network

    def parse(self, data: bytes) -> bool:
        self.network.layers = [SimpleNamespace(name=n.name, precision=None) for n in onnx.load_from_string(data).graph.node]  # fmt: skip
        return True


def fake_tensorrt(flags: set[str], networks: list[FakeNetwork]) -> SimpleNamespace:
    """As much of TensorRT as the script calls."""

    def create_network(_: int) -> FakeNetwork:
        networks.append(FakeNetwork())
        return networks[-1]

    builder = SimpleNamespace(
        create_network=create_network,
        create_builder_config=lambda: SimpleNamespace(set_flag=flags.add),
        build_serialized_network=lambda network, config: b"engine",
    )
    logger = SimpleNamespace(WARNING=1)
    return SimpleNamespace(
        __version__="10", Builder=lambda _: builder, OnnxParser=FakeParser, float16="half", float32="single",
        Logger=type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None}), logger=logger,
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        BuilderFlag=SimpleNamespace(OBEY_PRECISION_CONSTRAINTS="obey", INT8="int8", FP16="fp16"),
    )  # fmt: skip


def test_the_script_fixes_the_layers_that_are_not_on_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = for_tensorrt(exported(Quantize(8, 8)))
    precisions = layer_precisions(proto)
    first = next(iter(precisions))
    precisions[first] = "float"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    script = tmp_path / "m.py"
    script.write_text(engine_script("m.onnx", precisions))
    flags: set[str] = set()
    networks: list[FakeNetwork] = []
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(flags, networks))
    main = runpy.run_path(str(script))["main"]
    assert main(["--float", "fp16"]) == 0
    assert flags == {"obey", "int8", "fp16"}
    assert {layer.name for layer in networks[0].layers if layer.precision == "half"} == {first}
    assert (tmp_path / "m.engine").read_bytes() == b"engine"
    assert f"{len(precisions) - 1} layer(s) in int8, 1 in fp16" in capsys.readouterr().out
    script.write_text(engine_script("m.onnx", {**precisions, "elsewhere": "int8"}))
    assert runpy.run_path(str(script))["main"]([]) == 2
    assert "has no layer 'elsewhere'" in capsys.readouterr().err


def test_a_run_is_exported_and_the_script_says_where_tensorrt_is_missing(tmp_path: Path) -> None:
    trials = make_trials()
    run_dir = write_run(tmp_path / "runs" / "one", trials, make_summary(trials))
    (run_dir.path / "best").mkdir(exist_ok=True)
    (run_dir.path / "best" / "model.onnx").write_bytes(exported(Quantize(8, 8)))
    script = export_run(run_dir.path, budget=None, knee=False, format="tensorrt", out=tmp_path)
    assert script.with_suffix(".onnx").is_file()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "TensorRT is not installed here" in done.stderr
