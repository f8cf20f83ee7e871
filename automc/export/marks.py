"""Where the tensors of an exported graph are what steps of the model put out, found by marking them while the model is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from automc.compression.flow import Kind, Watch, layer_names, read_flow
from automc.export.floating import export_float

__all__ = ["export_marked", "round_tensors"]

Written = Mapping[str, Sequence[str]]
"""Step -> the tensors that it writes."""


def export_marked(model: nn.Module, example: Sequence[Tensor]) -> tuple[onnx.ModelProto, Written]:
    """`model` as an editable ONNX file, and which tensors its steps write (see `flow`).

    What a step puts out is rounded to a grid of its own while the model is exported; the rounding is taken out again, its scale tells
    the step.
    """
    steps = {step.key for step in read_flow(model, example).steps}
    marks: list[str] = []

    def mark(key: str, kind: Kind, given: Sequence[Tensor], result: Any) -> Any:
        if key not in steps:
            return result
        if isinstance(result, (tuple, list)):
            return type(result)([mark(key, kind, given, part) for part in result])
        marks.append(key)
        return torch.fake_quantize_per_tensor_affine(result, _scale(len(marks)), 0, 0, 255)

    def begin(*_: Any) -> None:
        marks.clear()
        watches.append(Watch(model, layer_names(model), mark))
        watches[-1].start()

    watches: list[Watch] = []
    hooks = [
        model.register_forward_pre_hook(begin),
        model.register_forward_hook(lambda *_: watches.pop().stop(), always_call=True),
    ]
    try:
        proto = export_float(model, example, editable=True)
    finally:
        for hook in hooks:
            hook.remove()
    return proto, _without_marks(proto.graph, marks)


def _scale(number: int) -> float:
    """Exact in single precision for some million marks."""
    return 1.0 + number / 2**22


def _without_marks(graph: onnx.GraphProto, marks: Sequence[str]) -> dict[str, list[str]]:
    """Take the marks out of a graph; step -> the tensors that it writes."""
    makers = {name: node for node in graph.node for name in node.output}
    outputs = {output.name for output in graph.output}
    names: dict[str, str] = {}
    found: list[tuple[str, str]] = []
    gone = []
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        encode = makers[node.input[0]]
        scale = float(_constant(node.input[1], graph, makers).reshape(()))
        found.append((marks[round((scale - 1.0) * 2**22) - 1], node.output[0]))
        names[node.output[0]] = encode.input[0]
        gone += [encode, node]
    for node in gone:
        graph.node.remove(node)
    for name in outputs & names.keys():  # outputs keep their names
        source = _resolved(name, names)
        if source in makers and source not in outputs:
            del names[name]
            names[source] = name
    for node in graph.node:
        node.input[:] = [_resolved(name, names) for name in node.input]
        node.output[:] = [_resolved(name, names) for name in node.output]
    for kind in ("Cast", "Constant"):
        used = {name for node in graph.node for name in node.input} | outputs
        for node in [node for node in graph.node if node.op_type == kind and node.output[0] not in used]:
            graph.node.remove(node)
    written: dict[str, list[str]] = {}
    for key, name in found:
        written.setdefault(key, []).append(_resolved(name, names))
    return written


def _constant(name: str, graph: onnx.GraphProto, makers: Mapping[str, onnx.NodeProto]) -> NDArray[Any]:
    """The value of a constant, which may stand behind a cast."""
    while name in makers and makers[name].op_type == "Cast":
        name = makers[name].input[0]
    if name in makers:
        return numpy_helper.to_array(makers[name].attribute[0].t)
    return numpy_helper.to_array(next(tensor for tensor in graph.initializer if tensor.name == name))


def _resolved(name: str, names: Mapping[str, str]) -> str:
    while name in names:
        name = names[name]
    return name


def round_tensors(graph: onnx.GraphProto, grids: Mapping[str, tuple[float, int]]) -> None:
    """Round the tensors of a graph to 8-bit grids (scale, zero) for all that read them, in place."""
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        mine = [name for name in node.output if name in grids]
        node.output[:] = [f"{name}/raw" if name in grids else name for name in node.output]
        graph.node.append(node)
        for name in mine:
            scale, zero = grids[name]
            constants = {f"{name}/scale": np.array(scale, np.float32), f"{name}/zero": np.array(zero, np.uint8)}
            graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in constants.items())
            encode = [f"{name}/raw", *constants]
            graph.node.append(helper.make_node("QuantizeLinear", encode, [f"{name}/codes"], name=f"{name}/encode"))
            decode = [f"{name}/codes", *constants]
            graph.node.append(helper.make_node("DequantizeLinear", decode, [name], name=f"{name}/decode"))
