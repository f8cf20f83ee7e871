"""Small ONNX models, each of which asks a runtime one question: how fast a type multiplies, memory streams, a layer runs on integers.

Integer layers are written as the exporter writes them: weights stored in 8 bits, activations between QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from automc.devices.probes import Probe

__all__ = ["probe_set"]

_SIZE = 384
_STREAMS = {"256 kB": 1 << 14, "32 MB": 1 << 21}
"""Bytes that an addition touches (three float tensors of so many kB / 12 elements) -> elements: within a cache, and beyond most."""
_CHAINS = (8, 72)
_SIDE = 28
_LAYERS = {"3x3": (64, 3, 1), "1x1": (128, 1, 1), "depthwise 3x3": (128, 3, 128)}
_TOKENS, _FEATURES = 128, 256
_SWEEP = range(57, 73)


def probe_set() -> list[Probe]:
    """Every probe, the cheapest groups first."""
    return [*_gemms(), *_streams(), *_dispatch(), *_conversions(), *_layers(), *_four_bits(), *_sweep()]


def _gemms() -> list[Probe]:
    shape = [_SIZE, _SIZE]
    flops = 2.0 * _SIZE**3
    found = []
    for name, dtype in (("fp32", np.float32), ("fp16", np.float16)):
        model = _Model({"x": (TensorProto.FLOAT if name == "fp32" else TensorProto.FLOAT16, shape)})
        model.output(model.op("MatMul", ["x", model.constant(_values(shape).astype(dtype))]), model.inputs["x"])
        found.append(Probe("gemm", name, model.serialized(), ((dtype.__name__, tuple(shape)),), flops))
    model = _Model({"x": (TensorProto.UINT8, shape)})
    model.output(model.op("MatMulInteger", ["x", model.constant(_codes(shape))]), (TensorProto.INT32, shape))
    found.append(Probe("gemm", "int8", model.serialized(), (("uint8", tuple(shape)),), flops))
    return found


def _streams() -> list[Probe]:
    found = []
    for name, elements in _STREAMS.items():
        model = _Model({"x": (TensorProto.FLOAT, [elements]), "y": (TensorProto.FLOAT, [elements])})
        model.output(model.op("Add", ["x", "y"]), model.inputs["x"])
        inputs = (("float32", (elements,)),) * 2
        found.append(Probe("stream", name, model.serialized(), inputs, 12.0 * elements))
    return found


def _dispatch() -> list[Probe]:
    found = []
    for length in _CHAINS:
        model = _Model({"x": (TensorProto.FLOAT, [16])})
        tensor = "x"
        for index in range(length):
            tensor = model.op("Neg" if index % 2 else "Sin", [tensor])
        model.output(tensor, model.inputs["x"])
        found.append(Probe("dispatch", str(length), model.serialized(), (("float32", (16,)),), length, whole=True))
    return found


def _conversions() -> list[Probe]:
    shape = [1, 64, _SIDE, _SIDE]
    elements = float(np.prod(shape))
    found = []
    for name, source, target in (
        ("QuantizeLinear", TensorProto.FLOAT, TensorProto.UINT8),
        ("DequantizeLinear", TensorProto.UINT8, TensorProto.FLOAT),
    ):
        model = _Model({"x": (source, shape)})
        model.output(model.op(name, ["x", *model.grid()]), (target, shape))
        dtype = "float32" if source == TensorProto.FLOAT else "uint8"
        found.append(Probe("convert", name, model.serialized(), ((dtype, tuple(shape)),), elements))
    return found


def _layers() -> list[Probe]:
    """Each kind of layer in floating point, on integers between integer layers, and alone between conversions."""
    found = []
    for name, (channels, kernel, groups) in _LAYERS.items():
        shape = [1, channels, _SIDE, _SIDE]
        weights = [channels, channels // groups, kernel, kernel]
        flops = 2.0 * _SIDE**2 * float(np.prod(weights))
        options = {"pads": [kernel // 2] * 4, "group": groups}
        found += _variants(name, "Conv", shape, weights, flops, options)
    shape, weights = [_TOKENS, _FEATURES], [_FEATURES, _FEATURES]
    found += _variants("linear", "MatMul", shape, weights, 2.0 * _TOKENS * _FEATURES**2, {})
    return found


def _variants(
    name: str, op: str, shape: list[int], weights: list[int], flops: float, options: dict[str, Any]
) -> list[Probe]:
    inputs, counted = (("float32", tuple(shape)),), (op, "Gemm") if op == "MatMul" else (op,)
    return [
        Probe("layer", f"{name}, fp32", _chain(op, shape, weights, options, 3, False), inputs, 3 * flops, counted),
        Probe("layer", f"{name}, int8", _chain(op, shape, weights, options, 3, True), inputs, 3 * flops, counted),
        Probe("layer", f"{name}, int8 alone", _chain(op, shape, weights, options, 1, True), inputs, flops),
    ]


def _chain(op: str, shape: list[int], weights: list[int], options: dict[str, Any], length: int, int8: bool) -> bytes:
    model = _Model({"x": (TensorProto.FLOAT, shape)})
    tensor = model.rounded("x") if int8 else "x"
    for _ in range(length):
        if int8:
            stored = model.op("DequantizeLinear", [model.constant(_codes(weights)), *model.grid(signed=True)])
            tensor = model.rounded(model.op(op, [tensor, stored], **options))
        else:
            tensor = model.op(op, [tensor, model.constant(_values(weights))], **options)
    model.output(tensor, model.inputs["x"])
    return model.serialized()


def _four_bits() -> list[Probe]:
    """Linear layers with weights of 4 bits in blocks of 32, against floating point; one token, and many."""
    found, blocks = [], _FEATURES // 32
    for tokens in (1, _TOKENS):
        shape = [tokens, _FEATURES]
        flops, inputs = 2.0 * tokens * _FEATURES**2, (("float32", (tokens, _FEATURES)),)
        plain = _Model({"x": (TensorProto.FLOAT, shape)})
        plain.output(plain.op("MatMul", ["x", plain.constant(_values([_FEATURES, _FEATURES]))]), plain.inputs["x"])
        found.append(Probe("four bits", f"{tokens} tokens, fp32", plain.serialized(), inputs, flops))
        model = _Model({"x": (TensorProto.FLOAT, shape)})
        packed = model.constant(_codes([_FEATURES, blocks, 16]).view(np.uint8))
        scales = model.constant(np.full(_FEATURES * blocks, 0.05, np.float32))
        made = model.op(
            "MatMulNBits",
            ["x", packed, scales],
            domain="com.microsoft",
            K=_FEATURES,
            N=_FEATURES,
            bits=4,
            block_size=32,
        )
        model.output(made, model.inputs["x"])
        found.append(Probe("four bits", f"{tokens} tokens, int4", model.serialized(), inputs, flops))
    return found


def _sweep() -> list[Probe]:
    """A 3x3 convolution whose input, then output, channels go through a few blocks one by one."""
    found = []
    for side in ("in", "out"):
        for width in _SWEEP:
            cin, cout = (width, 64) if side == "in" else (64, width)
            shape = [1, cin, 14, 14]
            model = _Model({"x": (TensorProto.FLOAT, shape)})
            weights = model.constant(_values([cout, cin, 3, 3]))
            model.output(model.op("Conv", ["x", weights], pads=[1] * 4), (TensorProto.FLOAT, [1, cout, 14, 14]))
            flops = 2.0 * 9 * 14**2 * cin * cout
            found.append(Probe("sweep", f"{side} {width}", model.serialized(), (("float32", tuple(shape)),), flops))
    return found


class _Model:
    """A graph being written; tensors are named in order."""

    def __init__(self, inputs: dict[str, tuple[int, list[int]]]) -> None:
        self.inputs = inputs
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.outputs: list[Any] = []

    def constant(self, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(value, f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def op(self, kind: str, sources: Sequence[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(sources), [name], name=f"n{name}", **attributes))
        return name

    def grid(self, *, signed: bool = False) -> tuple[str, str]:
        """A scale and a zero point."""
        zero = np.int8(0) if signed else np.uint8(128)
        return self.constant(np.float32(0.05)), self.constant(zero)

    def rounded(self, tensor: str) -> str:
        grid = self.grid()
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [tensor, *grid]), *grid])

    def output(self, tensor: str, kind: tuple[int, list[int]]) -> None:
        self.outputs.append(helper.make_tensor_value_info(tensor, *kind))

    def serialized(self) -> bytes:
        inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in self.inputs.items()]
        graph = helper.make_graph(self.nodes, "probe", inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def _values(shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Weights of a repeating pattern, scaled to keep what they multiply in range: times do not depend on them, and files pack small."""
    count = int(np.prod(shape))
    pattern = np.random.default_rng(0).standard_normal(251).astype(np.float32)
    return np.resize(pattern, count).reshape(shape) / np.float32(np.sqrt(count / shape[0]))


def _codes(shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int8]]:
    pattern = np.random.default_rng(0).integers(-63, 64, 251, dtype=np.int8)
    return np.resize(pattern, int(np.prod(shape))).reshape(shape)
