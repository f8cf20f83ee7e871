"""Recurrent layers with few bits in an ONNX file: codes as int8, decoded in front of a floating-point LSTM, GRU or RNN node.

ONNX has no integer recurrent operator; what the bits save is size. The codes are cast and scaled, which ONNX Runtime does once, when it
loads the file (see `stored.py`). A DequantizeLinear would run at every inference and keep the weights from being packed: 202 instead of
163 us for two LSTM layers of 48 units in both directions over 30 steps, as fast as with floating-point weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["store_codes"]

_RECURRENT = ("LSTM", "GRU", "RNN")
_OPS = (*_RECURRENT, "MatMul", "Gemm")


def store_codes(
    proto: onnx.ModelProto, bits: Mapping[str, int], layer_of: Callable[[onnx.NodeProto], str]
) -> onnx.ModelProto:
    """`proto` with the weights of the layers in `bits`, rounded already, as int8 codes and one scale per row, in place."""
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type in _OPS]:
        owners = [name for name in bits if f"{layer_of(node)}.".startswith(f"{name}.") and bits[name] <= 8]
        for name in node.input[1:3] if owners else ():
            tensor = weights.pop(name, None)
            if tensor is not None and len(tensor.dims) > 1:
                _encode(graph, tensor, bits[owners[0]], _inputs_axis(node))
    return proto


def _inputs_axis(node: onnx.NodeProto) -> int:
    """The dimension of a node's weights that a scale is shared along: the inputs."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return -1 if node.op_type in _RECURRENT or transposed else -2


def _encode(graph: onnx.GraphProto, tensor: onnx.TensorProto, bits: int, inputs: int) -> None:
    """Replace one initializer (directions, rows, columns) or (rows, columns) by its codes, scales, and nodes that decode them."""
    name = tensor.name
    codes, scale = _codes(numpy_helper.to_array(tensor), bits, inputs)
    graph.initializer.remove(tensor)
    graph.initializer.append(numpy_helper.from_array(codes, f"{name}_codes"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    graph.node.insert(0, helper.make_node("Mul", [f"{name}_floats", f"{name}_scale"], [name], f"{name}_decode"))
    cast = [f"{name}_codes"], [f"{name}_floats"], f"{name}_cast"
    graph.node.insert(0, helper.make_node("Cast", *cast, to=onnx.TensorProto.FLOAT))


def _codes(values: NDArray[Any], bits: int, inputs: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of weights that are symmetric `bits`-bit integers times a scale shared along `inputs` already."""
    limit = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(values).max(axis=inputs, keepdims=True) / limit, 1e-12).astype(np.float32)
    return np.rint(values / scale).astype(np.int8), scale
