"""ONNX files of compressed models as they are deployed, integer layers in ONNX Runtime's static QDQ format."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from automc.compression.quantize import Quantized, float_model
from automc.compression.recurrent import bake
from automc.compression.storage import runs_on_integers
from automc.export import recurrent, stored
from automc.export.floating import export_float, layer_of
from automc.export.integer import quantize_proto
from automc.export.sparse import pack_zeros

__all__ = ["build_onnx"]


def build_onnx(
    model: nn.Module,
    example: Sequence[Tensor],
    calibration: Sequence[Tensor],
    *,
    reduce_range: bool,
    integers: bool = True,
) -> bytes:
    """The serialised ONNX model of a compressed model, as deployed: fixed batch, 8-bit layers as QDQ, zeros packed.

    Layers that integer kernels compute exactly (see `runs_on_integers`; at most 7 bits under `reduce_range`) run on them, with the codes
    and scales that the layers hold. All others run in floating point, their inputs rounded as in PyTorch, which costs time and gains
    none. Weights are stored in as few bits as ONNX can pack.

    Args:
        model: what `Stitcher.apply` or recovery returned.
        example: inputs with the batch size of the deployment.
        calibration: inputs that set the ranges of the integer tensors that no layer rounds.
        integers: use integer kernels; without, every layer computes what PyTorch does, in floating point.

    Raises:
        AutomcError: neither exporter can express the model, or the file has no node for an integer layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}
    widest = 7 if reduce_range else 8
    integer = {
        n: x
        for n, x in layers.items()
        if integers and runs_on_integers(x.spec) and x.rounds_input and x.weight_bits <= widest
    }
    plain = float_model(model)
    recurrent_bits = bake(plain)
    for name in layers.keys() - integer.keys():
        if layers[name].rounds_input:
            plain.set_submodule(name, _Rounded(layers[name]).eval())
    proto = recurrent.store_codes(export_float(plain, example), recurrent_bits, layer_of)
    if integer:
        proto = quantize_proto(proto, integer, calibration, reduce_range=reduce_range)
    return pack_zeros(stored.store_codes(proto, layers, layer_of)).SerializeToString()


class _Rounded(nn.Module):
    """What a `Quantized` layer that rounds its input computes, in operators that ONNX has for any number of bits."""

    def __init__(self, layer: Quantized) -> None:
        super().__init__()
        self.inner = copy.deepcopy(layer.inner)
        self.scale, self.zero = float(layer.scale), int(layer.zero)
        self.last = 2**layer.activation_bits - 1

    def forward(self, inputs: Tensor) -> Tensor:
        codes = torch.clamp(torch.round(inputs / self.scale) + self.zero, 0, self.last)
        result: Tensor = self.inner((codes - self.zero) * self.scale)
        return result
