"""Layers of an ONNX model on integers, in ONNX Runtime's static QDQ format: int8 weights, int32 biases, and nothing in between.

The activations are rounded by the model itself, whose rounding the exporter writes as pairs of QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from automc.compression.quantize import Quantized
from automc.errors import AutomcError
from automc.export.floating import layer_of

__all__ = ["Closure", "integer_closure", "store_integers"]

_INTEGER_OPS = ("Conv", "Gemm", "MatMul")
_CARRIER_OPS = (
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape", "Resize",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that run on integers when all that they read is integer already, and so spare two conversions."""


def store_integers(proto: onnx.ModelProto, layers: Mapping[str, Quantized]) -> onnx.ModelProto:
    """`proto`, whose activations are rounded, with the weights of `layers` as 8-bit codes and their biases as 32-bit ones, in place.

    Raises:
        AutomcError: no node of the file belongs to one of `layers`.
    """
    graph = proto.graph
    found = {layer_of(node) for node in graph.node if node.op_type in _INTEGER_OPS}
    missing = layers.keys() - found
    if missing:
        raise AutomcError(
            f"The exported model has no node for the integer layer {min(missing)!r}.",
            remedy="Exclude the layer from quantization, or call it as a module in the model's forward.",
        )
    _fold_constants(graph)
    _drop_activations(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph)
    decoded: dict[str, str] = {}
    products: dict[str, NDArray[np.float32]] = {}
    for node in list(graph.node):
        layer = layers.get(layer_of(node)) if node.op_type in _INTEGER_OPS else None
        if layer is None or node.input[1] not in weights:
            continue
        scales: NDArray[np.float32] = layer.weight_scale.numpy().reshape(-1)
        axis = _output_axis(node)
        weight = node.input[1]
        if weight not in decoded:
            decoded[weight] = _decoded(graph, weights[weight], scales, axis, np.int8)
        node.input[1] = decoded[weight]
        for reader, place in _biases(node, readers, weights):
            bias = reader.input[place]
            product = scales * layer.scale.numpy().astype(np.float32)
            if bias not in decoded:
                decoded[bias], products[bias] = _decoded(graph, weights[bias], product, 0, np.int32), product
            if np.array_equal(
                products[bias], product
            ):  # a bias that layers of other scales share stays as it is for them
                reader.input[place] = decoded[bias]
    _hold_pools(graph)
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)
    return proto


def _biases(
    node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]], weights: Mapping[str, onnx.TensorProto]
) -> list[tuple[onnx.NodeProto, int]]:
    """Where the bias of a layer stands: its third input, or one of the addition that alone reads a matrix product.

    ONNX Runtime decodes the weights anew in every run, and multiplies in floating point, where it finds a product whose bias is no integer.
    """
    if len(node.input) > 2:
        return [(node, 2)] if node.input[2] in weights else []
    following = readers.get(node.output[0], [])
    if node.op_type != "MatMul" or len(following) != 1 or following[0].op_type != "Add":
        return []
    addition = following[0]
    return [(addition, i) for i, name in enumerate(addition.input) if name in weights and len(weights[name].dims) == 1]


def _decoded(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, scales: NDArray[np.float32], axis: int, kind: type
) -> str:
    """Store a tensor as codes, one scale per entry of its dimension `axis`, and decode them; the name of what that gives."""
    values, name = numpy_helper.to_array(tensor), tensor.name
    shape = [-1 if dimension == axis else 1 for dimension in range(values.ndim)]
    codes = np.rint(values.astype(np.float64) / scales.reshape(shape).astype(np.float64))
    limits = np.iinfo(kind)
    stored = {
        f"{name}_quantized": np.clip(codes, limits.min, limits.max).astype(kind),
        f"{name}_scale": scales,
        f"{name}_zero_point": np.zeros(scales.shape, dtype=kind),
    }
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in stored.items())
    node = f"{name}_DequantizeLinear"
    graph.node.insert(0, helper.make_node("DequantizeLinear", list(stored), [f"{node}_Output"], name=node, axis=axis))
    return f"{node}_Output"


def _fold_constants(graph: onnx.GraphProto) -> None:
    """Make initializers of constants: the runtime looks for scales among these alone."""
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _drop_activations(graph: onnx.GraphProto) -> None:
    """Remove activations whose result is rounded to a grid that ends where they cut off."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph)
    makers = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type in ("Relu", "Clip")]:
        following = readers.get(node.output[0], [])
        maker = makers.get(node.input[0])
        if maker is None or len(readers[node.input[0]]) > 1 or any(f.op_type != "QuantizeLinear" for f in following):
            continue
        if following and all(_cuts(node, following_one, constants) for following_one in following):
            maker.output[list(maker.output).index(node.input[0])] = node.output[0]
            graph.node.remove(node)


def _hold_pools(graph: onnx.GraphProto) -> None:
    """Let maxima of floating-point tensors be taken before these are rounded: a Clip without limits stands between.

    ONNX Runtime otherwise moves the rounding in front of the maximum, and takes it over codes channel by channel, which is 30 times slower
    (4.5 ms instead of 0.14 ms at the beginning of a ResNet-18). What comes out is the same; the runtime removes the Clip.
    """
    readers = _readers(graph)
    makers = {name: node for node in graph.node for name in node.output}
    for index, node in reversed(list(enumerate(graph.node))):
        following = readers.get(node.output[0], [])
        maker = makers.get(node.input[0]) if node.input else None
        reads_codes = maker is not None and maker.op_type == "DequantizeLinear"
        if node.op_type != "MaxPool" or reads_codes or {f.op_type for f in following} != {"QuantizeLinear"}:
            continue
        rounded = node.output[0]
        node.output[0] = f"{rounded}_maximum"
        clip = helper.make_node("Clip", [node.output[0]], [rounded], name=f"{node.name or rounded}/Clip")
        graph.node.insert(index + 1, clip)


def _cuts(node: onnx.NodeProto, encode: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether rounding to the codes of `encode` cuts off all that the activation `node` does."""
    scale, zero = (float(numpy_helper.to_array(constants[name]).reshape(())) for name in encode.input[1:3])
    if node.op_type == "Relu":
        return zero == 0
    ends = [
        numpy_helper.to_array(constants[name]).reshape(()) if name in constants else None for name in node.input[1:3]
    ]
    if len(ends) < 2 or any(end is None for end in ends):
        return False
    low, high = (float(end) for end in ends if end is not None)
    return -zero * scale >= low - 1e-6 and (255 - zero) * scale <= high * (1 + 1e-6)


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for output in graph.output:
        readers.setdefault(output.name, []).append(onnx.NodeProto(op_type="Output"))
    return readers


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts its outputs."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


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
    readers = _readers(proto.graph)
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


@dataclass
class Closure:
    """`integer_closure` of one model, remembered; it goes to other processes, which a cached function does not."""

    dense: onnx.ModelProto
    known: dict[frozenset[str], frozenset[str]] = field(default_factory=dict)

    def __call__(self, layers: frozenset[str]) -> frozenset[str]:
        if layers not in self.known:
            self.known[layers] = integer_closure(self.dense, layers)
        return self.known[layers]


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
