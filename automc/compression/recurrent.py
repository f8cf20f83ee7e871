"""LSTM, GRU and plain recurrent layers: a lower rank of what they read, fewer bits of what they store.

One layer (of one or both directions) computes W x + U h for all its gates. Its input part W = A B factorises into a linear
layer B in front of a narrower recurrent layer with the weights A, fitted to what the layer reads as for linear layers
(Prabhavalkar et al. 2016, arXiv 1603.08042, factorise both parts). The weights of both parts are rounded per gate row, and stored
as integers; the runtime computes in floating point.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from automc.compression.lowrank import factorise
from automc.compression.stacks import StandIn, input_parts, like
from automc.policy import LowRank, Quantize

__all__ = ["Projected", "RoundedRecurrent", "bake", "factorise_recurrent", "recurrent_variant"]


class Projected(StandIn):
    """A recurrent layer that reads a linear projection of its input."""

    def __init__(self, layer: nn.RNNBase, project: nn.Linear, inner: nn.RNNBase) -> None:
        super().__init__(layer)
        self.project, self.inner = project, inner

    def forward(self, inputs: Tensor, hx: Any = None) -> Any:
        return self.inner(self.project(inputs), hx)


class RoundedRecurrent(StandIn):
    """A recurrent layer whose weights are rounded to `weight_bits` per row; gradients pass straight through."""

    def __init__(self, inner: nn.RNNBase | Projected, weight_bits: int) -> None:
        super().__init__(inner)
        self.inner, self.weight_bits = inner, weight_bits

    def forward(self, inputs: Tensor, hx: Any = None) -> Any:
        return functional_call(self.inner, self._weights(), (inputs, hx))

    def plain(self) -> nn.Module:
        """The layer with its weights rounded for good."""
        layer = copy.deepcopy(self.inner)
        with torch.no_grad():
            for name, weight in self._weights().items():
                layer.get_parameter(name).copy_(weight)
        return layer

    def _weights(self) -> dict[str, Tensor]:
        matrices = ((name, weight) for name, weight in self.inner.named_parameters() if weight.dim() > 1)
        return {name: _nearest(weight, self.weight_bits) for name, weight in matrices}


def _nearest(weight: Tensor, bits: int) -> Tensor:
    """`weight` rounded to symmetric `bits`-bit integers per row, as floats; gradients pass straight through."""
    limit = 2 ** (bits - 1) - 1
    scale = (weight.detach().abs().amax(1) / limit).clamp_min(1e-12)
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -limit, limit)


def factorise_recurrent(layer: nn.RNNBase, spec: LowRank, covariance: Tensor | None) -> Projected:
    """`layer` behind a projection of its input to `spec.rank` features, at most as many as it reads.

    Args:
        covariance: (inputs, inputs) of what the layer reads, None for a plain factorisation of the weights.
    """
    names = input_parts(layer)
    weight = torch.cat([getattr(layer, name).detach() for name in names])  # both directions read one projection
    whole = nn.Linear(weight.shape[1], len(weight), bias=False)
    whole.weight = nn.Parameter(weight, requires_grad=False)
    project, gates = factorise(whole, LowRank(spec.rank), covariance)
    assert isinstance(project, nn.Linear)
    assert isinstance(gates, nn.Linear)
    inner = like(layer, project.out_features)
    known = dict(zip(names, gates.weight.chunk(len(names)), strict=True))
    for name, parameter in inner.named_parameters():
        parameter.data.copy_(known[name] if name in known else getattr(layer, name).data)
        parameter.requires_grad_(False)
    return Projected(layer, project, inner)


def recurrent_variant(
    layer: nn.RNNBase, low_rank: LowRank | None, quantize: Quantize | None, covariance: Tensor | None
) -> nn.Module:
    """The module that stands in for a recurrent layer.

    Args:
        covariance: (inputs, inputs) of what the layer reads, None where only its weights are known.
    """
    module: Any = layer if low_rank is None else factorise_recurrent(layer, low_rank, covariance)
    if quantize is not None:
        module = RoundedRecurrent(copy.deepcopy(module), quantize.weight_bits)
    return module.eval().requires_grad_(False)


def bake(model: nn.Module) -> dict[str, int]:
    """Replace every `RoundedRecurrent` by its plain layer, in place; the bits of each, by name."""
    bits = {}
    for name, module in _rounded(model):
        model.set_submodule(name, module.plain())
        bits[name] = module.weight_bits
    return bits


def _rounded(model: nn.Module) -> list[tuple[str, RoundedRecurrent]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, RoundedRecurrent)]
