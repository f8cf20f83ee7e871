"""Integer layers, simulated in PyTorch the way ONNX Runtime executes them.

Weights are symmetric per output channel, activations asymmetric uint8 per tensor, as in ONNX Runtime's static QDQ format
(Jacob et al. 2018, arXiv 1712.05877). Ranges minimise the mean squared rounding error over calibration activations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from automc.policy import Quantize

__all__ = ["Quantized", "best_range", "fake_quantize_weight", "float_model", "quantized_layers", "sample", "set_ranges"]

_SHRINK = np.linspace(1.0, 0.2, 33)
_SAMPLE = 16_384


class Quantized(nn.Module):
    """A convolution or linear layer that rounds its weights and its input; gradients pass straight through.

    Attributes:
        inner: the layer in floating point.
        scale, zero: of the input's codes; the input is left as it is until `set_range` has been called.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, inner: nn.Conv2d | nn.Linear, spec: Quantize) -> None:
        super().__init__()
        self.inner = inner
        self.spec = spec
        self.weight_bits = spec.weight_bits
        self.activation_bits = spec.activation_bits
        self.rounds_input = False
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    def take_outputs(self, inner: nn.Conv2d | nn.Linear, rows: Tensor) -> Quantized:
        """The same rounding around `inner`, which holds the outputs `rows` alone."""
        cut = copy.copy(self)
        cut._modules = {"inner": inner}
        return cut

    def set_range(self, low: float, high: float) -> None:
        """Let the codes cover [low, high], which contains zero."""
        scale = (high - low) / (2**self.activation_bits - 1)
        self.scale.fill_(scale)
        self.zero.fill_(round(-low / scale))
        self.rounds_input = True

    def forward(self, inputs: Tensor) -> Tensor:
        weight = fake_quantize_weight(self.inner.weight, self.weight_bits)
        if self.rounds_input:
            last = 2**self.activation_bits - 1
            inputs = torch.fake_quantize_per_tensor_affine(inputs, self.scale, self.zero, 0, last)
        if isinstance(self.inner, nn.Linear):
            return F.linear(inputs, weight, self.inner.bias)
        return self.inner._conv_forward(inputs, weight, self.inner.bias)


def fake_quantize_weight(weight: Tensor, bits: int) -> Tensor:
    """`weight` rounded to symmetric `bits`-bit integers per output channel (dimension 0), as floats."""
    limit = 2 ** (bits - 1) - 1
    scale = (weight.detach().flatten(1).abs().amax(1) / limit).clamp_min(1e-12)
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -limit, limit)


def best_range(values: NDArray[np.float32], bits: int = 8) -> tuple[float, float]:
    """The range (low <= 0 <= high) whose `bits`-bit rounding of `values` has the least mean squared error.

    Shrinks the ends together from the minimum and maximum; ties and constant inputs keep the full range.
    """
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if high == low:
        return 0.0, 1.0  # all zero: any range represents it exactly
    best, error = (low, high), np.inf
    for shrink in _SHRINK:
        scale = (high - low) * shrink / (2**bits - 1)
        zero = round(-low * shrink / scale)
        codes = np.clip(np.round(values / scale) + zero, 0, 2**bits - 1)
        candidate = float(np.mean(((codes - zero) * scale - values) ** 2))
        if candidate < error:
            best, error = (low * shrink, high * shrink), candidate
    return best


def sample(values: Tensor) -> NDArray[np.float32]:
    """At most 16,384 evenly spaced entries of a tensor, with its extremes."""
    flat = values.detach().flatten()
    step = max(1, len(flat) // _SAMPLE)
    chosen = torch.cat([flat[::step], flat.min()[None], flat.max()[None]])
    result: NDArray[np.float32] = chosen.numpy().astype(np.float32)
    return result


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the integer layers of a model."""
    return [name for name, module in model.named_modules() if isinstance(module, Quantized)]


def set_ranges(model: nn.Module, batches: Iterable[Sequence[Tensor]], *, only_unset: bool = False) -> None:
    """Set the input range of every integer layer from the inputs that it sees on `batches`, in floating point, in place.

    Args:
        only_unset: leave those alone that have a range already.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}
    if only_unset:
        layers = {name: layer for name, layer in layers.items() if not layer.rounds_input}
    if not layers:
        return
    seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in layers}
    for layer in layers.values():
        layer.rounds_input = False
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(sample(inputs[0])))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            for inputs in batches:
                model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in layers.items():
        layer.set_range(*best_range(np.concatenate(seen[name]), layer.activation_bits))


def float_model(model: nn.Module) -> nn.Module:
    """A copy with every integer layer replaced by its floating-point layer: what the ONNX exporter is given."""
    plain = copy.deepcopy(model)
    for name in quantized_layers(plain):
        layer = plain.get_submodule(name)
        assert isinstance(layer, Quantized)
        plain.set_submodule(name, layer.inner)
    return plain
