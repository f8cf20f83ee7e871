"""One compressed layer as ONNX nodes: convolutions, matrix products, chains of factors, and rounded inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor, nn

from automc.compression.quantize import Quantized
from automc.errors import AutomcError

__all__ = ["Part", "layer_part", "to_proto"]


@dataclass
class Part:
    """Nodes in order of execution, and the constants that they read."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        """Add a constant; returns its name."""
        self.initializers.append(to_proto(name, value))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        """Add a node of one output, named after it; returns the output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output


def to_proto(name: str, value: Tensor | np.ndarray) -> onnx.TensorProto:
    """A tensor under a name."""
    array = value.detach().contiguous().numpy() if isinstance(value, Tensor) else value
    return numpy_helper.from_array(array, name)


def layer_part(name: str, layer: nn.Module, source: str, target: str) -> Part:
    """The nodes that compute what `layer` does, from tensor `source` to tensor `target`; their names begin with `name`.

    Raises:
        AutomcError: the layer, or one in its chain, is not a convolution or linear layer padded with zeros.
    """
    part = Part()
    chain = list(layer) if isinstance(layer, nn.Sequential) else [layer]
    for number, link in enumerate(chain):
        output = target if number == len(chain) - 1 else f"{name}.{number}/output"
        source = _link(part, f"{name}.{number}", link, source, output)
    return part


def _link(part: Part, name: str, layer: nn.Module, source: str, target: str) -> str:
    inner: nn.Module = layer
    if isinstance(layer, Quantized):
        inner = layer.inner
        if layer.rounds_input:
            source = _rounded(part, name, layer, source)
    weight = getattr(inner, "weight", None)
    if isinstance(inner, nn.Conv2d) and inner.padding_mode == "zeros" and weight is not None:
        return _conv(part, name, inner, weight, source, target)
    if isinstance(inner, nn.Linear) and weight is not None:
        return _linear(part, name, weight, inner.bias, source, target)
    raise AutomcError(f"There are no ONNX nodes for the {type(inner).__name__} {name!r}.")


def _conv(part: Part, name: str, layer: nn.Conv2d, weight: Tensor, source: str, target: str) -> str:
    inputs = [source, part.constant(f"{name}/weight", weight)]
    if layer.bias is not None:
        inputs.append(part.constant(f"{name}/bias", layer.bias))
    return part.node(
        "Conv", inputs, target, kernel_shape=list(layer.kernel_size), strides=list(layer.stride),
        dilations=list(layer.dilation), group=layer.groups, pads=_pads(layer),
    )  # fmt: skip


def _pads(layer: nn.Conv2d) -> list[int]:
    """[top, left, bottom, right] zeros; where "same" needs an odd number, the larger share stands behind."""
    padding = cast(Any, layer.padding)  # a text or two numbers; the annotation leaves out the text
    if padding == "valid":
        return [0, 0, 0, 0]
    if isinstance(padding, str):
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [*(t // 2 for t in totals), *(t - t // 2 for t in totals)]
    return [*padding, *padding]


def _linear(part: Part, name: str, weight: Tensor, bias: Tensor | None, source: str, target: str) -> str:
    product = target if bias is None else f"{name}/product"
    part.node("MatMul", [source, part.constant(f"{name}/weight", weight.t())], product)
    if bias is not None:
        part.node("Add", [product, part.constant(f"{name}/bias", bias)], target)
    return target


def _rounded(part: Part, name: str, layer: Quantized, source: str) -> str:
    """`source` rounded to the codes of the layer's input: QuantizeLinear knows 8 bits, arithmetic does for others."""
    scale, zero = float(layer.scale), int(layer.zero)
    step = part.constant(f"{name}/scale", np.array(scale, np.float32))
    if layer.activation_bits == 8:
        offset = part.constant(f"{name}/zero", np.array(zero, np.uint8))
        codes = part.node("QuantizeLinear", [source, step, offset], f"{name}/codes")
        return part.node("DequantizeLinear", [codes, step, offset], f"{name}/rounded")
    low = part.constant(f"{name}/low", np.array(-zero, np.float32))
    high = part.constant(f"{name}/high", np.array(2**layer.activation_bits - 1 - zero, np.float32))
    steps = part.node("Div", [source, step], f"{name}/steps")
    whole = part.node("Round", [steps], f"{name}/whole")
    clipped = part.node("Clip", [whole, low, high], f"{name}/clipped")
    return part.node("Mul", [clipped, step], f"{name}/rounded")
