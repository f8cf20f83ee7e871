"""For TensorRT: an ONNX file in the form of integers that it takes, and a script that builds the engine with the precision of each layer.

TensorRT's explicit quantisation (NVIDIA TensorRT documentation, "Working with Quantized Types") reads signed 8-bit codes without zero points
and biases in floating point. So tensors of unsigned codes become signed ones of the same range, symmetric about zero, and whatever is
computed of constants alone (packed weights, rounded biases) is computed beforehand. What is positive throughout keeps 127 of its 255 levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

__all__ = ["engine_script", "for_tensorrt", "layer_precisions"]

_LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM")
_EVALUATED = 19
"""The first operator set of which onnx's reference evaluates DequantizeLinear."""
_CONVERSIONS = ("DequantizeLinear", "QuantizeLinear")


def for_tensorrt(model: bytes) -> onnx.ModelProto:
    """The exported model without zero points, packed weights and integer biases; its nodes keep their names."""
    proto = onnx.load_from_string(model)
    _fold(proto)
    _make_symmetric(proto.graph)
    _drop_unused(proto)
    return proto


def layer_precisions(proto: onnx.ModelProto) -> dict[str, str]:
    """Node name -> "int8" for each layer whose input and weight are integers, "float" for every other layer."""
    made_by = {name: node.op_type for node in proto.graph.node for name in node.output}
    layers = [node for node in proto.graph.node if node.op_type in _LAYER_OPS]
    integer = {node.name: all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2]) for node in layers}
    return {name: "int8" if whole else "float" for name, whole in integer.items()}


def engine_script(model_name: str, precisions: dict[str, str]) -> str:
    """A Python script that builds the engine of the ONNX file `model_name` beside it; needs tensorrt alone."""
    template = resources.files("automc.export").joinpath("tensorrt_engine.py").read_text()
    lines = "".join(f"    {name!r}: {precision!r},\n" for name, precision in precisions.items())
    return template.replace('MODEL = ""', f"MODEL = {model_name!r}").replace(
        "PRECISIONS: dict[str, str] = {}", f"PRECISIONS: dict[str, str] = {{\n{lines}}}"
    )


def _fold(proto: onnx.ModelProto) -> None:
    """Compute what depends on constants alone, but leave the codes of 8-bit weights to their DequantizeLinear."""
    graph = proto.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    opsets = [
        helper.make_opsetid(entry.domain, entry.version if entry.domain else max(entry.version, _EVALUATED))
        for entry in proto.opset_import
    ]
    kept = []
    for node in graph.node:
        read = [name for name in node.input if name]
        if not all(name in known for name in read) or _is_weight(node, known):
            kept.append(node)
            continue
        inner = helper.make_graph(
            [node], "constant", [], [onnx.ValueInfoProto(name=n) for n in node.output], [known[n] for n in read]
        )
        alone = helper.make_model(inner, opset_imports=opsets, functions=proto.functions)
        for name, values in zip(node.output, ReferenceEvaluator(alone).run(None, {}), strict=True):
            known[name] = numpy_helper.from_array(np.asarray(values), name)
            graph.initializer.append(known[name])
    graph.ClearField("node")
    graph.node.extend(kept)


def _is_weight(node: onnx.NodeProto, known: dict[str, TensorProto]) -> bool:
    """Whether a node turns 8-bit codes of more than one axis into a weight."""
    return node.op_type == "DequantizeLinear" and (
        known[node.input[0]].data_type == TensorProto.INT8 and len(known[node.input[0]].dims) > 1
    )


def _make_symmetric(graph: onnx.GraphProto) -> None:
    """Signed codes in place of unsigned ones.

    Unsigned codes without a zero point cut off what is negative, so that exporters leave the Relu before them out: it comes back.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    relu_of: dict[str, onnx.NodeProto] = {}
    for node in list(_unsigned(graph, constants)):
        scale, zero = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:3])
        if node.op_type == "QuantizeLinear" and not zero.any():
            positive = f"{node.input[0]}_positive"
            relu_of[node.name] = helper.make_node("Relu", [node.input[0]], [positive], name=positive)
            node.input[0] = positive
        widest = np.maximum(zero, 255.0 - zero) * scale
        stem = f"{node.input[1]}_{node.input[2]}"
        values = (widest / 127.0).astype(np.float32), np.zeros(zero.shape, dtype=np.int8)
        for index, (end, value) in enumerate(zip(("scale", "zero"), values, strict=True), start=1):
            name = f"{stem}_signed_{end}"
            if name not in constants:
                constants[name] = numpy_helper.from_array(value, name)
                graph.initializer.append(constants[name])
            node.input[index] = name
    nodes = [part for node in graph.node for part in (relu_of.get(node.name), node) if part is not None]
    graph.ClearField("node")
    graph.node.extend(nodes)


def _unsigned(graph: onnx.GraphProto, constants: dict[str, TensorProto]) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        if node.op_type in _CONVERSIONS and len(node.input) == 3:
            zero = constants.get(node.input[2])
            if zero is not None and zero.data_type == TensorProto.UINT8:
                yield node


def _drop_unused(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    domains = {node.domain for node in graph.node}
    if not any(function.domain in domains for function in proto.functions):
        proto.ClearField("functions")
        kept = [entry for entry in proto.opset_import if entry.domain in {"", "ai.onnx"} | domains]
        proto.ClearField("opset_import")
        proto.opset_import.extend(kept)
    graph.ClearField("value_info")
