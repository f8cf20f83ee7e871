"""Layers with rounded weights and inputs, simulated in PyTorch the way ONNX Runtime executes them.

Weights lie on the grid that `round_weights` found; inputs are asymmetric unsigned integers per tensor, as in ONNX Runtime's static
QDQ format (Jacob et al. 2018, arXiv 1712.05877). Training rounds to the same grid, with straight-through gradients (Bengio et al. 2013,
arXiv 1308.3432).
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.grid import Grid
from automc.compression.ranges import best_range
from automc.compression.rounding import Rounded, round_weights
from automc.compression.steps import on_grid, stepped
from automc.policy import Quantize

__all__ = ["Quantized", "best_range", "float_model", "quantized_layers", "requantize", "sample"]

_SAMPLE = 16_384


class Quantized(nn.Module):
    """A convolution or linear layer whose weights lie on a grid, and that rounds its input.

    Where the weights require gradients they may leave the grid, and the layer computes with the nearest values on it.

    Args:
        rounded: the weights of `inner` as `round_weights` decided; rounded to nearest where not given.

    Attributes:
        inner: the layer in floating point, its weights on the grid.
        scale, zero: of the input's codes; the input is left as it is until `set_range` has been called.
        weight_scale, weight_zero: (outputs, groups) of the weights' codes.
        book: (entries,) the values of a k-means code book; empty without.
    """

    scale: Tensor
    zero: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    book: Tensor

    def __init__(self, inner: nn.Conv2d | nn.Linear, spec: Quantize, rounded: Rounded | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.spec = spec
        self.weight_bits = spec.weight_bits
        self.activation_bits = spec.activation_bits
        self.rounds_input = False
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))
        self.take(rounded if rounded is not None else round_weights(inner.weight.flatten(1), spec, None))

    @property
    def grid(self) -> Grid:
        """The values that weights may take."""
        return Grid(self.spec, self.weight_scale, self.weight_zero, self.book if self.book.numel() else None)

    def codes(self) -> Tensor:
        """(outputs, features) the integers that the weights are stored as."""
        weight = self.inner.weight.detach().flatten(1)
        return self.grid.encode(weight, torch.arange(weight.shape[1])).to(torch.int64)

    def take_outputs(self, inner: nn.Conv2d | nn.Linear, rows: Tensor) -> Quantized:
        """The same rounding around `inner`, which holds the outputs `rows` alone."""
        cut = copy.copy(self)
        cut._modules = {"inner": inner}
        grid = {"weight_scale": self.weight_scale[rows], "weight_zero": self.weight_zero[rows]}
        cut._buffers = {**self._buffers, **grid}
        return cut

    def set_range(self, low: float, high: float) -> None:
        """Let the codes of the input cover [low, high], which contains zero; inputs of 32 bits stay as they are."""
        if self.activation_bits >= 32:
            return
        scale = (high - low) / (2**self.activation_bits - 1)
        self.scale.fill_(scale)
        self.zero.fill_(round(-low / scale))
        self.rounds_input = True

    def round_bias(self) -> None:
        """Move the bias to multiples of a product's step, which is what 8-bit kernels add up."""
        bias = self.inner.bias
        if bias is not None and self.rounds_input:
            step = self.weight_scale.detach().flatten() * self.scale.detach()
            rounded = (bias.detach() / step).round() * step
            self.inner.bias = nn.Parameter(rounded, requires_grad=bias.requires_grad)

    def requantize(self) -> None:
        """Move trained weights to the nearest values on the grid."""
        with torch.no_grad():
            self.inner.weight.copy_(self._on_grid())

    def scale_outputs(self, factor: Tensor) -> None:
        """Multiply each output's weights with `factor` (outputs,), and the grid with them: their codes stay or are mirrored.

        The entries of a code book, which all outputs share, are found anew.
        """
        weight = self.inner.weight
        with torch.no_grad():
            weight.mul_(factor.reshape(-1, *[1] * (weight.dim() - 1)))
        if self.book.numel():
            self.take(round_weights(weight.flatten(1), self.spec, None))
            return
        self.weight_scale.mul_(factor.abs()[:, None])
        mirrored = sum(self.grid.limits) - self.weight_zero
        self.weight_zero.copy_(torch.where(factor[:, None] < 0, mirrored, self.weight_zero))

    @property
    def is_even(self) -> bool:
        """Whether the grid of the weights is evenly spaced, with steps that can be learned."""
        return not self.book.numel() and self.spec.codes != "binary"

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.inner.weight
        if self.weight_scale.requires_grad:
            weight = self._stepped()
        elif weight.requires_grad:
            weight = weight + (self._on_grid() - weight).detach()
        if self.rounds_input:
            inputs = on_grid(inputs, self.scale, self.zero, 0, 2**self.activation_bits - 1)
        if isinstance(self.inner, nn.Linear):
            return F.linear(inputs, weight, self.inner.bias)
        return self.inner._conv_forward(inputs, weight, self.inner.bias)

    def _stepped(self) -> Tensor:
        """The weights on the grid, with gradients for its steps."""
        weight = self.inner.weight
        rows, groups = self.weight_scale.shape
        size = self.spec.group_size if groups > 1 else weight[0].numel()
        flat = F.pad(weight.flatten(1), (0, groups * size - weight[0].numel())).reshape(rows, groups, size)
        rounded = stepped(flat, self.weight_scale[:, :, None], self.weight_zero[:, :, None], *self.grid.limits)
        return rounded.flatten(1)[:, : weight[0].numel()].reshape(weight.shape)

    def _on_grid(self) -> Tensor:
        weight = self.inner.weight.detach()
        return self.grid.nearest(weight.flatten(1)).reshape(weight.shape)

    def take(self, rounded: Rounded) -> None:
        """Hold these weights, rounded anew, and their grid."""
        grid, old = rounded.grid, self.inner.weight
        self.register_buffer("weight_scale", grid.scale.clone())
        self.register_buffer("weight_zero", grid.zero.clone())
        self.register_buffer("book", torch.zeros(0) if grid.book is None else grid.book.clone())
        self.inner.weight = nn.Parameter(
            rounded.values.reshape(old.shape).to(old.dtype), requires_grad=old.requires_grad
        )


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the layers of a model that are rounded."""
    return [name for name, module in model.named_modules() if isinstance(module, Quantized)]


def requantize(model: nn.Module) -> None:
    """Move the trained weights of every rounded layer to its grid, in place."""
    for module in model.modules():
        if isinstance(module, Quantized):
            module.requantize()


def sample(values: Tensor) -> NDArray[np.float32]:
    """At most 16,384 evenly spaced entries of a tensor, with its extremes."""
    flat = values.detach().flatten()
    step = max(1, len(flat) // _SAMPLE)
    chosen = torch.cat([flat[::step], flat.min()[None], flat.max()[None]])
    result: NDArray[np.float32] = chosen.numpy().astype(np.float32)
    return result


def float_model(model: nn.Module) -> nn.Module:
    """A copy with every rounded layer replaced by its floating-point layer, weights as they were rounded: what the exporter is given."""
    plain = copy.deepcopy(model)
    for name in quantized_layers(plain):
        layer = plain.get_submodule(name)
        assert isinstance(layer, Quantized)
        plain.set_submodule(name, layer.inner)
    return plain
