"""Weights of few bits in few bits of the file: integers that are cast to floats and scaled when the file is loaded.

ONNX Runtime folds casts and products of constants at load, so that the float kernels run as fast as ever (and use as much memory). A
DequantizeLinear would say the same but is kept and executed in every run, and keeps a convolution off the blocked layout: 348 instead
of 252 us for 64 x 64 channels, 3 x 3, at 16 x 16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from automc.compression.quantize import Quantized
from automc.compression.storage import file_bits

__all__ = ["store_codes"]

_LAYER_OPS = ("Conv", "Gemm", "MatMul")
_SIGNED = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}
_UNSIGNED = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}
_OPSET = {2: 25, 4: 21, 8: 18}
"""The first operator set whose Cast reads integers of so many bits."""


def store_codes(
    proto: onnx.ModelProto, layers: Mapping[str, Quantized], layer_of: Callable[[onnx.NodeProto], str]
) -> onnx.ModelProto:
    """`proto` with the weights of `layers` as codes, where it holds them as they are in the module or transposed.

    Integer layers already have 8-bit codes; theirs are packed where they need fewer bits.

    Args:
        layer_of: the module that a node comes from; a layer that rounds its input in floating point is called `<name>.inner`.
    """
    graph = proto.graph
    made_by = {name: node for node in graph.node for name in node.output}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    added: list[onnx.NodeProto] = []
    fewest = 8
    for node in graph.node:
        layer = layers.get(layer_of(node).removesuffix(".inner")) if node.op_type in _LAYER_OPS else None
        name = _source(node.input[1], made_by) if layer is not None else ""
        if layer is None or name not in initializers:
            continue
        writer = _Writer(layer, initializers.pop(name), graph)
        if writer.shrinks:
            added += writer.write()
            fewest = min(fewest, file_bits(layer.spec))
    for position, each in enumerate(added):
        graph.node.insert(position, each)
    return _at_opset(proto, _OPSET[fewest]) if added else proto


def _source(name: str, made_by: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor that a weight is made of: behind a DequantizeLinear or a Transpose, what that reads."""
    while name in made_by and made_by[name].op_type in ("DequantizeLinear", "Transpose"):
        name = made_by[name].input[0]
    return name


def _at_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    given = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if given >= opset:
        return proto
    converted = version_converter.convert_version(proto, opset)
    converted.graph.ClearField("value_info")  # the converter notes the shape of every tensor, some 45 bytes each
    return converted


class _Writer:
    """The codes of one weight, and the nodes that make the weight of them."""

    def __init__(self, layer: Quantized, tensor: onnx.TensorProto, graph: onnx.GraphProto) -> None:
        self.layer, self.tensor, self.graph = layer, tensor, graph
        self.bits = file_bits(layer.spec)
        self.array = numpy_helper.to_array(tensor)
        self.nodes: list[onnx.NodeProto] = []
        self.codes: NDArray[np.int64] = layer.codes().numpy()
        weight = layer.inner.weight.detach().numpy()
        self.shape = weight.shape
        self.is_integer = tensor.data_type == TensorProto.INT8
        held = self.codes.reshape(weight.shape) if self.is_integer else weight
        self.as_is = np.array_equal(self.array, held)
        self.transposed = not self.as_is and np.array_equal(self.array, held.T)

    @property
    def shrinks(self) -> bool:
        """Whether the file holds the weight in a form that is known, and in more bits than its codes take."""
        return (self.as_is or self.transposed) and not (self.is_integer and self.bits == 8)

    def write(self) -> list[onnx.NodeProto]:
        """Put the codes in the weight's place; the nodes that turn them into the weight, under its old name."""
        self.graph.initializer.remove(self.tensor)
        if self.is_integer:
            self._op("Cast", [self._codes(self.codes)], to=TensorProto.INT8)
        elif self.layer.book.numel():
            index = self._op("Cast", [self._codes(self.codes)], to=TensorProto.INT32)
            self._op("Gather", [self._constant("book", self.layer.book.numpy()), index])
        else:
            self._scaled()
        self._shaped(self.array.shape[::-1] if self.transposed else self.array.shape)
        self.nodes[-1].output[0] = self.tensor.name
        return self.nodes

    def _scaled(self) -> None:
        """scale * (code - zero), in groups where there are several; the last group is filled up."""
        scale, zero = self.layer.weight_scale.numpy(), self.layer.weight_zero.numpy()
        rows, groups = scale.shape
        size = self.layer.spec.group_size if groups > 1 else self.codes.shape[1]
        codes = np.pad(self.codes, ((0, 0), (0, groups * size - self.codes.shape[1])))
        values = self._op("Cast", [self._codes(codes.reshape(rows, groups, size))], to=TensorProto.FLOAT)
        if zero.any():
            zeros = self._constant("zeros", zero[:, :, None].astype(np.uint8))
            values = self._op("Sub", [values, self._op("Cast", [zeros], to=TensorProto.FLOAT)])
        values = self._op("Mul", [values, self._constant("scales", scale[:, :, None])])
        if codes.shape != self.codes.shape:
            values = self._op("Reshape", [values, self._constant("flat", np.array([rows, -1]))])
            ends = [
                self._constant(k, np.array([v])) for k, v in (("from", 0), ("to", self.codes.shape[1]), ("axis", 1))
            ]
            self._op("Slice", [values, *ends])

    def _shaped(self, shape: Sequence[int]) -> None:
        self._op("Reshape", [self.nodes[-1].output[0], self._constant("shape", np.array(shape))])
        if self.transposed:
            self._op("Transpose", [self.nodes[-1].output[0]])

    def _codes(self, codes: NDArray[np.int64]) -> str:
        signed = self.layer.spec.symmetric and not self.layer.book.numel()
        kind = (_SIGNED if signed else _UNSIGNED)[self.bits]
        packed = codes.astype(helper.tensor_dtype_to_np_dtype(kind))
        self.graph.initializer.append(numpy_helper.from_array(packed, f"{self.tensor.name}.codes"))
        return f"{self.tensor.name}.codes"

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(values, f"{self.tensor.name}.{name}"))
        return f"{self.tensor.name}.{name}"

    def _op(self, kind: str, sources: Sequence[str], **attributes: int) -> str:
        name = f"{self.tensor.name}.{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(sources), [name], name=name, **attributes))
        return name
