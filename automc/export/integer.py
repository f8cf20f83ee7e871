"""Layers of an ONNX model on integers, in ONNX Runtime's static QDQ format, and the operators that carry integers between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType
from torch import Tensor

from automc.compression.quantize import Quantized
from automc.errors import AutomcError
from automc.export.floating import layer_of, quiet
from automc.export.ranges import tensor_ranges

__all__ = ["integer_closure", "quantize_proto"]

_INTEGER_OPS = ("Conv", "Gemm", "MatMul")
_CARRIER_OPS = (
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape", "Resize",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that run on integers when all that they read is integer already, and so spare two conversions."""


def quantize_proto(
    proto: onnx.ModelProto, layers: Mapping[str, Quantized], calibration: Sequence[Tensor], *, reduce_range: bool
) -> onnx.ModelProto:
    """`proto` with the nodes of `layers`, and the carriers between them, in QDQ form.

    Weights and the inputs of layers have the scales of `layers`; the other tensors those of their ranges on `calibration`.

    Raises:
        AutomcError: no node of the file belongs to one of `layers`.
    """
    proto = _with_inferred_shapes(proto)
    wanted = set(layers)
    missing = wanted - {layer_of(node) for node in proto.graph.node if node.op_type in _INTEGER_OPS}
    if missing:
        raise AutomcError(
            f"The exported model has no node for the integer layer {min(missing)!r}.",
            remedy="Exclude the layer from quantization, or call it as a module in the model's forward.",
        )
    nodes = _integer_nodes(proto.graph, wanted)
    tensors = {name for node in nodes for name in (*node.input, *node.output) if name}
    ranges = tensor_ranges(proto, sorted(tensors - _constants(proto.graph)), calibration)
    quantizer = QDQQuantizer(
        proto,
        per_channel=True,
        reduce_range=reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in nodes}),
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": False,
            "TensorQuantOverrides": _decided(proto.graph, layers),
        },
    )
    with quiet():
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return _float_outputs(quantizer.model.model)


def _decided(graph: onnx.GraphProto, layers: Mapping[str, Quantized]) -> dict[str, list[dict[str, Any]]]:
    """The scales and zero points that layers hold, by tensor, as ONNX Runtime's quantiser takes them.

    Behind a pool or a reshape it does not take them: there a tensor has the scale of the one that the operator reads.
    """
    constants = {initializer.name: len(initializer.dims) for initializer in graph.initializer}
    found: dict[str, list[dict[str, Any]]] = {}
    for node in graph.node:
        layer = layers.get(layer_of(node)) if node.op_type in _INTEGER_OPS else None
        if layer is None:
            continue
        scale, zero = layer.scale.numpy().reshape(()), layer.zero.numpy().astype(np.uint8).reshape(())
        found.setdefault(node.input[0], [{"scale": scale, "zero_point": zero}])
        if node.input[1] in constants:
            axis = _output_axis(node)
            scales = layer.weight_scale.numpy()
            zero = np.zeros((), dtype=np.int8)
            found[node.input[1]] = [{"axis": axis, "scale": s.reshape(()), "zero_point": zero} for s in scales]
    return found


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts its outputs."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def _float_outputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let matrix products that end the model put out floats: rounding the scores themselves would only lose them."""
    graph = proto.graph
    maker = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        decode = maker[output.name]
        encode = maker.get(decode.input[0]) if decode.op_type == "DequantizeLinear" else None
        last = maker.get(encode.input[0]) if encode is not None and encode.op_type == "QuantizeLinear" else None
        if encode is not None and last is not None and last.op_type in ("Gemm", "MatMul"):
            last.output[0] = output.name
            graph.node.remove(encode)
            graph.node.remove(decode)
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)
    return proto


def _integer_nodes(graph: onnx.GraphProto, layers: set[str]) -> list[onnx.NodeProto]:
    """The nodes that run on integers: those of `layers`, and carriers that read nothing but integer tensors.

    A tensor is integer when an integer node writes it, or when one reads it: it is then converted for all its readers.
    """
    constants = _constants(graph)
    own = [node for node in graph.node if node.op_type in _INTEGER_OPS and layer_of(node) in layers]
    integer = {name for node in own for name in (*node.input, *node.output) if name not in constants}
    chosen = []
    for node in graph.node:
        activations = [name for name in node.input if name and name not in constants]
        carries = node.op_type in _CARRIER_OPS and bool(activations) and integer.issuperset(activations)
        if node in own or carries:
            chosen.append(node)
            integer.update(node.output)
    return chosen


def integer_closure(proto: onnx.ModelProto, layers: Iterable[str]) -> frozenset[str]:
    """`layers`, and those that ONNX Runtime then runs on integers too: the ones between integer tensors.

    Args:
        proto: the dense model in floating point.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    closed = frozenset(layers)
    while True:
        integer = {n for node in _integer_nodes(proto.graph, set(closed)) for n in (*node.input, *node.output)}
        between = {
            layer_of(node)
            for node in proto.graph.node
            if node.op_type in _INTEGER_OPS
            and node.input[0] in integer
            and _behind_activation(node, readers) in integer
        }
        if between <= closed:
            return closed
        closed |= between


def _behind_activation(node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> str:
    """The tensor that a layer writes, or that its only reader does where it is an activation which the runtime fuses."""
    following = readers.get(node.output[0], [])
    fused = len(following) == 1 and following[0].op_type in ("Relu", "Clip")
    return following[0].output[0] if fused else node.output[0]


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Names of initializers and of everything computed from constants alone."""
    constants = {initializer.name for initializer in graph.initializer}
    for node in graph.node:
        if constants.issuperset(name for name in node.input if name):
            constants.update(node.output)
    return constants


def _with_inferred_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return onnx.shape_inference.infer_shapes(proto)
