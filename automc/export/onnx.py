"""ONNX files of compressed models as they are deployed, integer layers in ONNX Runtime's static QDQ format."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from automc.compression.carriers import carriers_of, detach
from automc.compression.quantize import Quantized, float_model
from automc.compression.recurrent import bake
from automc.compression.storage import runs_on_integers
from automc.export import recurrent, stored
from automc.export.floating import export_float, layer_of
from automc.export.integer import store_integers
from automc.export.sparse import pack_zeros

__all__ = ["build_onnx"]


def build_onnx(
    model: nn.Module,
    example: Sequence[Tensor],
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
    covered = _fixed(plain, model) if integer else set()
    if not integer:
        detach(plain)
    for name in integer.keys() - covered:
        plain.get_submodule(name).register_forward_pre_hook(_Encoded(layers[name]))
    for name in layers.keys() - integer.keys():
        if layers[name].rounds_input:
            plain.set_submodule(name, _Rounded(layers[name]).eval())
    proto = recurrent.store_codes(export_float(plain, example), recurrent_bits, layer_of)
    if integer:
        proto = store_integers(proto, integer)
    return pack_zeros(stored.store_codes(proto, layers, layer_of)).SerializeToString()


def _fixed(plain: nn.Module, model: nn.Module) -> set[str]:
    """Let `plain` round between layers as `model` does; the rounded layers whose inputs that rounds."""
    carriers = carriers_of(plain)
    if carriers is None:
        return set()
    carriers.fix(model)
    inside = (model.get_submodule(name).named_modules(prefix=name) for name in carriers.chain.covered)
    return {next(name for name, module in modules if isinstance(module, Quantized)) for modules in inside}


class _Encoded:
    """Rounds what a layer reads, in an operator that becomes QuantizeLinear and DequantizeLinear."""

    def __init__(self, layer: Quantized) -> None:
        self.scale, self.zero = float(layer.scale), int(layer.zero)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.fake_quantize_per_tensor_affine(inputs[0], self.scale, self.zero, 0, 255), *inputs[1:])


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
