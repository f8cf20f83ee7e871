"""Recurrent layers with few bits in an ONNX file: codes as int8, decoded in front of a floating-point LSTM, GRU or RNN node.

ONNX has no integer recurrent operator; what the bits save is size.
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
                _encode(graph, tensor, bits[owners[0]], _axis(node))
    return proto


def _axis(node: onnx.NodeProto) -> int:
    """The dimension of a node's weights with one scale per entry: the outputs."""
    if node.op_type in _RECURRENT:
        return -2
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else 1


def _encode(graph: onnx.GraphProto, tensor: onnx.TensorProto, bits: int, axis: int) -> None:
    """Replace one initializer (directions, rows, columns) or (rows, columns) by its codes, scales, and nodes that decode them.

    The reshape behind them also keeps ONNX Runtime from making a matrix product MatMulNBits, which rounds activations too.
    """
    values, name = numpy_helper.to_array(tensor), tensor.name
    rows = values.reshape(-1, values.shape[-1])
    axis = axis % rows.ndim
    codes, scale = _codes(rows, bits, axis)
    stored = {"codes": codes[None], "scale": scale, "shape": np.array(values.shape, dtype=np.int64)}
    graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(array, f"{name}_{part}") for part, array in stored.items())
    decode = [f"{name}_codes", f"{name}_scale"], [f"{name}_rows"], f"{name}_decode"
    unfold = [f"{name}_rows", f"{name}_shape"], [name], f"{name}_unfold"
    graph.node.insert(0, helper.make_node("Reshape", *unfold))
    graph.node.insert(0, helper.make_node("DequantizeLinear", *decode, axis=axis + 1))


def _codes(rows: NDArray[Any], bits: int, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of weights that are symmetric `bits`-bit integers times a scale along `axis` already."""
    limit = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(rows).max(axis=1 - axis) / limit, 1e-12).astype(np.float32)
    codes = np.rint(rows / np.expand_dims(scale, 1 - axis))
    return codes.astype(np.int8), scale
