"""An ONNX file as a PyTorch program: a list of steps over named tensors, of the operators that the exporter writes for float models.

Constants are folded when the file is read, so that weights stored in few bits run in floating point. Operators follow the ONNX
specification (onnx.ai/onnx/operators) as far as exported models use them; any other is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from automc.devices.device import Model
from automc.devices.onnx_ops import OPS
from automc.errors import InputError

__all__ = ["Program", "Step"]


@dataclass(frozen=True)
class Step:
    """One operator: names of what it reads ("" where an input is left out) and writes, and what it computes."""

    name: str
    op: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    attributes: dict[str, Any]

    def __call__(self, values: dict[str, Any]) -> tuple[Any, ...]:
        """What it writes, given what is known so far."""
        given = [values[name] if name else None for name in self.reads]
        result = OPS[self.op](*given, **self.attributes)
        return tuple(result) if len(self.writes) > 1 else (result,)


class Program(nn.Module):
    """A model as steps, in order. Weights are buffers, small integer constants stay Python lists.

    Attributes:
        shapes: of the inputs, batch included.
    """

    def __init__(self, model: Model) -> None:
        """Read a file.

        Raises:
            InputError: not an ONNX model, or an operator of it is not known here.
        """
        super().__init__()
        graph = _read(model)
        self._constants: dict[str, Any] = {}
        self._weights: dict[str, str] = {}
        for tensor in graph.initializer:
            self._constants[tensor.name] = _constant(numpy_helper.to_array(tensor))
        given = [value for value in graph.input if value.name not in self._constants]
        self.inputs = tuple(value.name for value in given)
        self.shapes = [tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in given]
        self.outputs = tuple(value.name for value in graph.output)
        self.steps = self._fold([_step(node) for node in graph.node])
        used = {name for step in self.steps for name in step.reads} | set(self.outputs)
        for name, value in list(self._constants.items()):
            if isinstance(value, Tensor) and name in used:
                self._weights[name] = f"weight{len(self._weights)}"
                self.register_buffer(self._weights[name], self._constants.pop(name))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs for one batch."""
        return self.walk(inputs, lambda *_: None)

    def walk(self, inputs: Sequence[Tensor], after: Callable[[Step, dict[str, Any]], None]) -> tuple[Tensor, ...]:
        """The same; `after` is told each step once it is done, and every value so far."""
        values = {**self._constants, **{name: getattr(self, buffer) for name, buffer in self._weights.items()}}
        values.update(zip(self.inputs, inputs, strict=True))
        for step in self.steps:
            values.update(zip(step.writes, step(values), strict=True))
            after(step, values)
        return tuple(values[name] for name in self.outputs)

    def _fold(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """The steps that depend on the inputs; what does not is computed now."""
        left = []
        for step in steps:
            if all(not name or name in self._constants for name in step.reads):
                self._constants.update(zip(step.writes, step(self._constants), strict=True))
            else:
                left.append(step)
        return tuple(left)


def _read(model: Model) -> Any:
    try:
        proto = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
    except Exception as error:  # protobuf raises a family of its own
        raise InputError(f"PyTorch cannot load the model: it is not ONNX ({error}).") from error
    unknown = sorted({node.op_type for node in proto.graph.node} - OPS.keys())
    if unknown:
        raise InputError(
            f"PyTorch cannot load the model: it has {', '.join(unknown)}, which are not translated from ONNX.",
            remedy="Use --device cpu.",
        )
    return proto.graph


def _step(node: Any) -> Step:
    attributes = {a.name: _attribute(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    writes = tuple(name for name in node.output if name)
    if node.op_type == "Split" and "num_outputs" not in attributes:
        attributes["num_outputs"] = len(writes)
    return Step(node.name or writes[0], node.op_type, tuple(node.input), writes, attributes)


def _attribute(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return _constant(numpy_helper.to_array(value)) if isinstance(value, onnx.TensorProto) else value


def _constant(array: np.ndarray[Any, Any]) -> Any:
    """Shapes, axes and indices as Python integers, so that programs have no shapes that depend on data; anything else as a tensor."""
    if array.dtype == np.int64 and array.ndim <= 1:
        return array.tolist()
    if array.dtype.kind not in "fiub":  # 4-bit codes come in a type that PyTorch does not know
        array = array.astype(np.int8)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())
