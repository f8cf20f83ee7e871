"""One pass over calibration inputs: what every layer reads, as second moments, from which all compression follows.

For a layer y = W x + b, where x is a column of the (unfolded) input, the squared error of any replacement W' is
tr((W - W') C (W - W')^T) with C the covariance of x, once the bias absorbs the mean (Hassibi and Stork 1993; Frantar et
al. 2022, "OBC", arXiv 2208.11580). C is all that pruning, rounding and factorising need.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.errors import InputError
from automc.graph import LayerSpec
from automc.trace import Traced

__all__ = ["LayerStats", "calibrate"]

MAX_FEATURES = 8192
"""Widest input for which a full covariance is kept (268 MB in float32); wider layers keep its diagonal."""
_COLUMNS_PER_FEATURE = 24
_MIN_COLUMNS = 20_000
_ROUNDING = 1e-6


@dataclass(frozen=True)
class LayerStats:
    """What one layer reads, over all calibration samples.

    Attributes:
        covariance: (features, features) covariance of the unfolded input, features = in_channels x kernel height x kernel
            width in PyTorch's weight order; (features,) its diagonal where features exceeds MAX_FEATURES.
        mean: (features,) mean of the unfolded input.
        columns: how many input columns were seen.
        sample: (rows, features) some of those columns, for what moments do not tell: the ranges inside a factorised layer.
        ranges: bits -> (low, high) of the layer's input that those bits should cover, in the dense model.
        fisher: (outputs,) mean squared gradient of the loss with respect to each output channel; None where not asked for.
    """

    covariance: Tensor
    mean: Tensor
    columns: int
    sample: Tensor | None = None
    ranges: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    fisher: Tensor | None = None

    @property
    def full(self) -> bool:
        """Whether the covariance is a matrix rather than its diagonal."""
        return self.covariance.dim() == 2


@dataclass
class _Accumulator:
    total: Tensor
    moment: Tensor
    columns: int = 0

    def add(self, columns: Tensor) -> None:
        """`columns` is (count, features)."""
        self.total += columns.sum(0)
        self.moment += columns.T @ columns if self.moment.dim() == 2 else columns.square().sum(0)
        self.columns += len(columns)

    def finish(self) -> LayerStats:
        mean = self.total / self.columns
        second = self.moment / self.columns
        covariance = second - (torch.outer(mean, mean) if second.dim() == 2 else mean.square())
        rounding = _ROUNDING * float(mean.square().sum())  # what the subtraction may have lost, as in constant inputs
        covariance += rounding * (torch.eye(len(mean)) if second.dim() == 2 else 1.0)
        return LayerStats(covariance, mean, self.columns)


def calibrate(traced: Traced, batches: Iterable[tuple[Tensor, ...]], samples: int) -> dict[str, LayerStats]:
    """Statistics of every ungrouped convolution and linear layer, in one pass; memory is one covariance per layer.

    Args:
        batches: inputs, each a tuple of (batch, ...) tensors.
        samples: how many samples there are in all; large maps are subsampled so that each layer sees enough columns.

    Raises:
        InputError: there is not a single calibration sample, or an input makes an activation that is not finite.
    """
    layers = [layer for layer in traced.graph.layers if layer.groups == 1]
    accumulators = {layer.name: _accumulator(layer) for layer in layers}
    generator = torch.Generator().manual_seed(0)
    hooks = []
    for layer in layers:
        module = traced.model.get_submodule(layer.name)
        hooks.append(module.register_forward_pre_hook(_recorder(layer, accumulators[layer.name], samples, generator)))
    seen = 0
    try:
        with torch.no_grad():
            for inputs in batches:
                traced.model(*inputs)
                seen += len(inputs[0])
    finally:
        for hook in hooks:
            hook.remove()
    if seen == 0:
        raise InputError("There are no calibration samples.", remedy="Give --data a calibration split with inputs.")
    return {name: accumulator.finish() for name, accumulator in accumulators.items()}


def _accumulator(layer: LayerSpec) -> _Accumulator:
    features = layer.in_channels * math.prod(layer.kernel)
    shape = (features, features) if features <= MAX_FEATURES else (features,)
    return _Accumulator(torch.zeros(features), torch.zeros(shape))


def _recorder(layer: LayerSpec, accumulator: _Accumulator, samples: int, generator: torch.Generator) -> Any:
    features = len(accumulator.total)
    wanted = max(_MIN_COLUMNS, _COLUMNS_PER_FEATURE * features)
    per_sample = max(1, math.ceil(wanted / max(1, samples)))

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        positions = layer.positions
        chosen = torch.arange(positions)
        if positions > per_sample:
            chosen = torch.randperm(positions, generator=generator)[:per_sample]
        columns = unfold(module, inputs[0].detach(), chosen)
        flat = columns.reshape(-1, features)
        if not bool(torch.isfinite(flat).all()):
            raise InputError(
                f"The input of layer {layer.name!r} is not finite on the calibration data.",
                remedy="Check the data and the model's weights for NaN and overflow.",
            )
        accumulator.add(flat)

    return record


def unfold(module: nn.Module, inputs: Tensor, positions: Tensor) -> Tensor:
    """(batch, positions, features) columns that a convolution or linear layer multiplies its weights with.

    `positions` are output positions, row by row for a convolution; only their columns are gathered.
    """
    if isinstance(module, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])[:, positions]
    assert isinstance(module, nn.Conv2d)
    padded = F.pad(inputs, _padding(module))
    height, width = module.kernel_size[0], module.kernel_size[1]
    steps = [torch.arange(k) * d for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    columns_out = (padded.shape[3] - module.dilation[1] * (width - 1) - 1) // module.stride[1] + 1
    rows = (positions // columns_out) * module.stride[0]
    columns = (positions % columns_out) * module.stride[1]
    picked = padded[:, :, (rows[:, None] + steps[0])[:, :, None], (columns[:, None] + steps[1])[:, None, :]]
    return picked.transpose(1, 2).reshape(len(inputs), len(positions), -1, height * width).flatten(2)


def _padding(module: nn.Conv2d) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) zeros around the input."""
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2
    if module.padding == "valid":
        return 0, 0, 0, 0
    return int(module.padding[1]), int(module.padding[1]), int(module.padding[0]), int(module.padding[0])
