"""Zeros that an ONNX file does not store: a bit per weight says which are left, and only their values follow.

The file unpacks itself with standard operators in a function of its own, which depend on constants alone: runtimes evaluate
them once while loading, and the model then runs as it would have. ONNX Runtime 1.31 gives the same optimised graph, bit for
bit the same outputs, and needs 1 to 2 ms per layer to load it. ONNX's own `sparse_initializer` loads too, but stores an index
of 16 bits or more per value, so 8-bit weights only get smaller below a third of them, and indices below 64 bits are outside
the standard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from automc.export.floating import OPSET

__all__ = ["DOMAIN", "MASK", "OVERHEAD", "pack_zeros"]

DOMAIN = "automc"
MASK = "_mask"
"""Ends the name of the initializer that tells which weights are left."""
_TYPES = (TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8)
OVERHEAD = 400
"""Bytes of names and shapes that a packed tensor takes at most."""


def pack_zeros(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` in which each weight that takes fewer bytes without its zeros is stored without them."""
    packed = onnx.ModelProto()
    packed.CopyFrom(proto)
    graph = packed.graph
    chosen = [tensor for tensor in graph.initializer if _saving(tensor) > 0]
    if not chosen:
        return packed
    parts: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    for tensor in chosen:
        pieces = _pieces(tensor)
        parts += pieces
        names = [piece.name for piece in pieces]
        nodes.append(helper.make_node("Unpack", names, [tensor.name], f"{tensor.name}_unpack", domain=DOMAIN))
    for tensor in chosen:
        graph.initializer.remove(tensor)
    graph.initializer.extend(parts)
    nodes += graph.node
    graph.ClearField("node")
    graph.node.extend(nodes)
    packed.functions.append(_unpack())
    packed.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    packed.ir_version = max(packed.ir_version, 8)  # the first with functions
    return packed


def _saving(tensor: TensorProto) -> int:
    """Bytes that packing a tensor saves, negative where it costs some."""
    if tensor.data_type not in _TYPES or len(tensor.raw_data) <= OVERHEAD:
        return 0
    values = numpy_helper.to_array(tensor)
    gone = int(values.size - np.count_nonzero(values))
    return gone * int(values.itemsize) - values.size // 8 - OVERHEAD


def _pieces(tensor: TensorProto) -> tuple[TensorProto, TensorProto, TensorProto]:
    """Mask, values and shape of a tensor; the value 0, which all zeros point to, comes first."""
    array: NDArray[np.generic] = numpy_helper.to_array(tensor)
    left = array.ravel() != 0
    values = np.concatenate([np.zeros(1, array.dtype), array.ravel()[left]])
    return (
        numpy_helper.from_array(np.packbits(left), f"{tensor.name}{MASK}"),
        numpy_helper.from_array(values, f"{tensor.name}_values"),
        numpy_helper.from_array(np.array(array.shape, dtype=np.int64), f"{tensor.name}_shape"),
    )


def _unpack() -> onnx.FunctionProto:
    """(mask, values, shape) -> the tensor: the running count of ones is where in `values` each weight lies, 0 for a zero."""
    node = helper.make_node
    nodes = [
        _constant("bits", [128, 64, 32, 16, 8, 4, 2, 1], np.uint8),
        _constant("column", [-1, 1], np.int64),
        _constant("flat", [-1], np.int64),
        _constant("first", [0], np.int64),
        _constant("axis", 0, np.int64),
        node("Reshape", ["mask", "column"], ["bytes"]),
        node("BitwiseAnd", ["bytes", "bits"], ["picked"]),
        node("Cast", ["picked"], ["is_left"], to=TensorProto.BOOL),
        node("Cast", ["is_left"], ["ones"], to=TensorProto.INT32),
        node("Reshape", ["ones", "flat"], ["padded"]),
        node("ReduceProd", ["shape"], ["size"], keepdims=1),
        node("Slice", ["padded", "first", "size"], ["left"]),
        node("CumSum", ["left", "axis"], ["count"]),
        node("Mul", ["count", "left"], ["places"]),
        node("Gather", ["values", "places"], ["weights"]),
        node("Reshape", ["weights", "shape"], ["tensor"]),
    ]
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, "Unpack", ["mask", "values", "shape"], ["tensor"], nodes, opset)


def _constant(name: str, values: int | Sequence[int], dtype: type[np.generic]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, dtype=dtype), name))
