"""One pass over calibration inputs: what every layer reads, as second moments, from which all compression follows.

For a layer y = W x + b, where x is a column of the (unfolded) input, the squared error of any replacement W' is
tr((W - W') C (W - W')^T) with C the covariance of x, once the bias absorbs the mean (Hassibi and Stork 1993; Frantar et
al. 2022, "OBC", arXiv 2208.11580). C is all that pruning, rounding and factorising need.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.quantize import best_range, sample
from automc.errors import InputError
from automc.graph import LayerGraph, LayerSpec
from automc.outputs import logits_of, tensors_of
from automc.tracing.trace import Traced

__all__ = ["MAX_FEATURES", "LayerStats", "Lazily", "calibrate", "columns_of", "diagonal_layers", "output_sensitivity"]

MAX_FEATURES = 8192
"""Widest input for which a full covariance is kept (268 MB in float32); wider layers keep its diagonal."""
MEMORY_BYTES = 3 * 2**30
"""What all covariances together may take; beyond it the widest layers keep their diagonal."""
SAMPLE_ROWS = 512
"""Input columns that are kept of each layer."""
RANGE_BITS = (8, 7, 6, 5, 4)
_COLUMNS_PER_FEATURE = 24
_MIN_COLUMNS = 20_000
_ROUNDING = 1e-6
_BLOCK = 576
"""Rows of a second moment that are summed together."""


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
    """

    covariance: Tensor
    mean: Tensor
    columns: int
    sample: Tensor | None = None
    ranges: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether the covariance is a matrix rather than its diagonal."""
        return self.covariance.dim() == 2

    @property
    def variance(self) -> Tensor:
        """(features,) the covariance's diagonal."""
        return self.covariance.diagonal() if self.full else self.covariance


@dataclass
class _Accumulator:
    """Sums over columns whose features come tap by tap; `order` puts them into PyTorch's order at the end."""

    total: Tensor
    moment: Tensor
    order: Tensor
    columns: int = 0
    kept: list[Tensor] = field(default_factory=list)

    def add(self, columns: Tensor, keep: Tensor) -> None:
        """`columns` is (count, features), `keep` the numbers of those to remember."""
        self.total += columns.sum(0)
        if self.moment.dim() == 1:
            self.moment += columns.square().sum(0)
        for start in range(0, len(self.moment) if self.moment.dim() == 2 else 0, _BLOCK):  # the upper triangle alone
            rows = slice(start, start + _BLOCK)
            self.moment[rows, start:].addmm_(columns[:, rows].T, columns[:, start:])
        self.columns += len(columns)
        self.kept.append(columns[keep])

    def finish(self) -> LayerStats:
        self.total = self.total[self.order]
        if self.moment.dim() == 2:
            self.moment = (self.moment.triu() + self.moment.triu(1).T)[:, self.order]
        self.moment = self.moment[self.order]
        self.kept = [rows[:, self.order] for rows in self.kept]
        mean = self.total / self.columns
        second = self.moment / self.columns
        covariance = second - (torch.outer(mean, mean) if second.dim() == 2 else mean.square())
        rounding = _ROUNDING * float(mean.square().sum())  # what the subtraction may have lost, as in constant inputs
        covariance += rounding * (torch.eye(len(mean)) if second.dim() == 2 else 1.0)
        kept = torch.cat(self.kept)
        values = sample(kept)
        ranges = {bits: best_range(values, bits) for bits in RANGE_BITS}
        return LayerStats(covariance, mean, self.columns, kept, ranges)


def calibrate(
    traced: Traced, batches: Iterable[tuple[Tensor, ...]], samples: int, *, memory_bytes: int = MEMORY_BYTES
) -> dict[str, LayerStats]:
    """Statistics of every ungrouped convolution, linear and recurrent layer, in one pass.

    Memory is one covariance, (features)^2 floats, and SAMPLE_ROWS input columns per layer; `diagonal_layers` tells which
    layers keep only the diagonal of it.

    Args:
        batches: inputs, each a tuple of (batch, ...) tensors.
        samples: how many samples there are in all; large maps are subsampled so that each layer sees enough columns.
        memory_bytes: what all covariances together may take.

    Raises:
        InputError: there is not a single calibration sample, or an input makes an activation that is not finite.
    """
    layers = [layer for layer in traced.graph.layers if layer.groups == 1]
    diagonal = diagonal_layers(traced.graph, memory_bytes)
    accumulators = {layer.name: _accumulator(layer, layer.name in diagonal) for layer in layers}
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


class Lazily(Mapping[str, LayerStats]):
    """Statistics that are taken when the first of them is asked for: a database that is complete never asks."""

    def __init__(self, take: Callable[[], Mapping[str, LayerStats]]) -> None:
        self._take: Callable[[], Mapping[str, LayerStats]] | None = take
        self._taken: Mapping[str, LayerStats] | None = None

    def __getitem__(self, name: str) -> LayerStats:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> Mapping[str, LayerStats]:
        if self._taken is None:
            assert self._take is not None
            self._taken, self._take = self._take(), None  # which holds the inputs
        return self._taken


def output_sensitivity(
    traced: Traced, batches: Iterable[tuple[Tensor, ...]], *, logits: bool, seed: int = 0
) -> dict[str, Tensor]:
    """(outputs,) per layer: mean squared gradient of the loss at each output channel, summed over positions.

    For logits this is the diagonal of the Fisher information: the gradient of the log-likelihood of labels that the model itself
    draws (Martens 2020, arXiv 1412.1193, section 5). Otherwise that of the relative squared error (Gauss-Newton), along random
    directions. One backward pass per batch.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [
        layer for layer in traced.graph.layers if layer.kind != "recurrent"
    ]  # whose output is not that of their gates
    total = {layer.name: torch.zeros(layer.out_channels) for layer in layers}
    samples = 0

    def watch(name: str, output: Tensor) -> None:
        channel_last = output.dim() != 4

        def add(gradient: Tensor) -> None:
            per_channel = gradient if channel_last else gradient.movedim(1, -1)
            total[name] += per_channel.square().flatten(0, -2).sum(0)

        output.register_hook(add)

    model = copy.deepcopy(traced.model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for name in total:
        model.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: watch(name, o))
    for inputs in batches:
        with torch.enable_grad():
            _probe(model(*inputs), logits, generator).backward()
        samples += len(inputs[0])
    return {name: value / max(1, samples) for name, value in total.items()}


def _probe(returned: Any, logits: bool, generator: torch.Generator) -> Tensor:
    """A scalar whose squared gradient is, on average, the curvature of the loss: of the logits, or of all outputs together."""
    outputs = logits_of(returned) if logits else None
    if outputs is not None:
        rows = outputs.movedim(1, -1).flatten(0, -2)
        labels = torch.multinomial(rows.detach().softmax(1), 1, generator=generator).squeeze(1)
        return F.cross_entropy(rows, labels, reduction="sum")
    probes = []
    for tensor in (each for each in tensors_of(returned) if each.requires_grad):
        direction = torch.randn(tensor.shape, generator=generator)
        probes.append((tensor * direction).sum() / tensor.detach().std().clamp_min(1e-6))
    return torch.stack(probes).sum()


def diagonal_layers(graph: LayerGraph, memory_bytes: int = MEMORY_BYTES) -> list[str]:
    """The layers whose covariance is too large to keep whole, widest first: pruning cannot make up for what goes there."""
    features = {layer.name: layer.features for layer in graph.layers if layer.groups == 1}
    total = sum(4 * count**2 for count in features.values())
    chosen = []
    for name, count in sorted(features.items(), key=lambda item: -item[1]):
        if count > MAX_FEATURES or total > memory_bytes:
            chosen.append(name)
            total -= 4 * count**2
    return chosen


def _accumulator(layer: LayerSpec, diagonal: bool) -> _Accumulator:
    features = layer.features
    order = torch.arange(features).reshape(math.prod(layer.kernel), -1).T.flatten()
    return _Accumulator(torch.zeros(features), torch.zeros((features,) if diagonal else (features, features)), order)


def _recorder(layer: LayerSpec, accumulator: _Accumulator, samples: int, generator: torch.Generator) -> Any:
    features = len(accumulator.total)
    wanted = max(_MIN_COLUMNS, _COLUMNS_PER_FEATURE * features)
    per_sample = max(1, math.ceil(wanted / max(1, samples)))

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        positions = layer.positions
        chosen = torch.arange(positions)
        if positions > per_sample:
            chosen = torch.randperm(positions, generator=generator)[:per_sample]
        columns = _gather(module, inputs[0].detach(), chosen)
        flat = columns.reshape(-1, features)
        count = max(1, math.ceil(SAMPLE_ROWS * len(columns) / max(1, samples)))
        accumulator.add(flat, torch.randint(len(flat), (count,), generator=generator))
        if not bool(torch.isfinite(accumulator.total).all()):
            raise InputError(
                f"The input of layer {layer.name!r} is not finite on the calibration data.",
                remedy="Check the data and the model's weights for NaN and overflow.",
            )

    return record


def columns_of(module: nn.Module, inputs: Tensor, positions: Tensor) -> Tensor:
    """(batch, positions, features) columns that a convolution, linear or recurrent layer multiplies its weights with.

    `positions` are output positions, row by row for a convolution; only their columns are gathered.
    """
    columns = _gather(module, inputs, positions)
    if not isinstance(module, nn.Conv2d):
        return columns
    return columns.unflatten(2, (math.prod(module.kernel_size), -1)).transpose(2, 3).flatten(2)


def _gather(module: nn.Module, inputs: Tensor, positions: Tensor) -> Tensor:
    """As `columns_of`, but the features of a convolution come tap by tap, which copies all channels of a tap at once."""
    if isinstance(module, nn.RNNBase):
        return (inputs if module.batch_first else inputs.transpose(0, 1))[:, positions]
    if isinstance(module, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])[:, positions]
    assert isinstance(module, nn.Conv2d)
    padded = F.pad(inputs, _padding(module)).movedim(1, -1)
    width = padded.shape[2]
    steps = [torch.arange(k) * d for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    columns_out = (width - module.dilation[1] * (module.kernel_size[1] - 1) - 1) // module.stride[1] + 1
    rows = (positions // columns_out * module.stride[0])[:, None] + steps[0]
    columns = (positions % columns_out * module.stride[1])[:, None] + steps[1]
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten()
    return padded.flatten(1, 2).index_select(1, pixels).reshape(len(inputs), len(positions), -1)


def _padding(module: nn.Conv2d) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) zeros around the input."""
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2
    if module.padding == "valid":
        return 0, 0, 0, 0
    return int(module.padding[1]), int(module.padding[1]), int(module.padding[0]), int(module.padding[0])
