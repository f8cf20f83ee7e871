"""The dense model as steps between tensors: which layers follow which, and what stands between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from automc.errors import InputError
from automc.export.floating import layer_of as module_of
from automc.graph import Channels, LayerGraph

__all__ = ["LAYER_OPS", "Step", "Structure", "TensorInfo", "layer_of", "read_structure"]

LAYER_OPS = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
_NO_WORK = frozenset({"Constant", "Identity", "Shape", "Dropout"})


@dataclass(frozen=True)
class TensorInfo:
    """An activation: its elements in the dense model (batch included), and how its channels depend on the policy.

    `channels` is None where the count does not depend on it (the input, or a tensor behind an unknown operator).
    """

    elements: int
    channels: Channels | None = None
    width: int = 1
    """Channel count in the dense model; elements scale with channels.count(keep) / width."""


@dataclass(frozen=True)
class Step:
    """One node: a layer (its index in the graph's layers) or another operator (`layer` is -1). Tensors by index."""

    op: str
    layer: int
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Structure:
    """Steps in the order of execution. Tensor 0 .. inputs - 1 are the model's inputs."""

    steps: tuple[Step, ...]
    tensors: tuple[TensorInfo, ...]
    inputs: int
    absent: frozenset[str] = frozenset()
    """Names of layers without a choice that the model does not run as such: what they read never changes, or their operator is another."""

    def clipped(self, layer: int) -> bool:
        """Whether a Clip reads what a layer (its index in the graph's layers) writes."""
        written = {step.output for step in self.steps if step.layer == layer}
        return any(step.op == "Clip" and written.intersection(step.inputs) for step in self.steps)


def read_structure(dense_onnx: bytes, graph: LayerGraph) -> Structure:
    """The structure of a dense ONNX model whose weights are named `<layer>.weight`.

    Raises:
        InputError: not an ONNX model, or a layer of the graph is not in it.
    """
    try:
        model = onnx.load_from_string(dense_onnx)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # protobuf and onnx raise families of their own
        raise InputError(f"The dense model is not readable ONNX: {error}") from error
    reader = _Reader(inferred.graph, graph)
    for node in inferred.graph.node:
        reader.add(node)
    missing = [layer.name for index, layer in enumerate(graph.priced) if index not in reader.seen]
    if missing and missing[0] in graph.layer:
        raise InputError(f"The dense ONNX model does not hold the layer {missing[0]!r}.", remedy="Export it again.")
    return Structure(tuple(reader.steps), tuple(reader.tensors), reader.inputs, frozenset(missing))


def layer_of(name: str, names: Sequence[str]) -> str | None:
    """The layer that a weight belongs to: the longest layer name that, with a dot, begins the weight's name."""
    owners = [layer for layer in names if name.startswith(f"{layer}.")]
    return max(owners, key=len, default=None)


class _Reader:
    def __init__(self, proto: Any, graph: LayerGraph) -> None:
        self.graph = graph
        self.index: dict[str, list[int]] = {}
        for index, layer in enumerate(graph.priced):
            self.index.setdefault(layer.module, []).append(index)
        self.constants = {tensor.name for tensor in proto.initializer}
        self.shapes = _shapes(proto)
        self.tensors: list[TensorInfo] = []
        self.ids: dict[str, int] = {}
        self.steps: list[Step] = []
        self.seen: set[int] = set()
        for value in proto.input:
            if value.name not in self.constants:
                self._tensor(value.name, None, 1)
        self.inputs = len(self.tensors)
        self.batch = next((shape[0] for v in proto.input if (shape := self.shapes.get(v.name))), 1)

    def add(self, node: Any) -> None:
        sources = [self.ids[name] for name in node.input if name in self.ids]
        if not sources:
            self.constants.update(node.output)
            return
        layer = self._layer(node)
        if node.op_type in _NO_WORK:
            self.ids[node.output[0]] = sources[0]
            return
        channels, width = self._channels(node, layer, sources)
        if layer >= 0:
            self.seen.add(layer)
            spec = self.graph.priced[layer]
            elements = self.batch * math.prod(spec.in_shape)
            self.tensors[sources[0]] = TensorInfo(elements, spec.inputs, spec.in_channels)
        for name in node.output:
            if name:
                self._tensor(name, channels, width, self._size(layer, sources))
        self.steps.append(Step(node.op_type, layer, tuple(dict.fromkeys(sources)), self.ids[node.output[0]]))

    def _tensor(self, name: str, channels: Channels | None, width: int, otherwise: int = 1) -> None:
        """Note a tensor; `otherwise` are its elements where ONNX could not infer its shape."""
        self.ids[name] = len(self.tensors)
        shape = self.shapes.get(name, (0,))
        elements = math.prod(shape) or otherwise
        self.tensors.append(TensorInfo(elements, channels, width))

    def _size(self, layer: int, sources: Sequence[int]) -> int:
        """Elements of what a node writes, by the layer's shape or by what it reads."""
        if layer >= 0:
            return self.batch * math.prod(self.graph.priced[layer].out_shape)
        return max(self.tensors[index].elements for index in sources)

    def _layer(self, node: Any) -> int:
        if node.op_type not in LAYER_OPS:
            return -1
        weights = [name for name in node.input[1:2] if name in self.constants]
        if not weights:
            return -1
        calls = [*self.index.get(module_of(node), ()), *self.index.get(weights[0].removesuffix(".weight"), ())]
        return next((layer for layer in calls if layer not in self.seen), -1)

    def _channels(self, node: Any, layer: int, sources: Sequence[int]) -> tuple[Channels | None, int]:
        if layer >= 0:
            spec = self.graph.priced[layer]
            return spec.outputs, spec.out_channels
        known = [self.tensors[i] for i in sources if self.tensors[i].channels is not None]
        if not known:
            return None, 1
        if node.op_type == "Concat":
            return _joined(known), sum(tensor.width for tensor in known)
        widest = max(known, key=lambda tensor: tensor.width)
        return widest.channels, widest.width


def _joined(tensors: Sequence[TensorInfo]) -> Channels:
    fixed, times = 0, dict[str, int]()
    for tensor in tensors:
        if tensor.channels is not None:
            fixed += tensor.channels.fixed
            for group, count in tensor.channels.parts:
                times[group] = times.get(group, 0) + count
    return Channels(fixed, tuple(times.items()))


def _shapes(proto: Any) -> Mapping[str, tuple[int, ...]]:
    values = [*proto.input, *proto.value_info, *proto.output]
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
