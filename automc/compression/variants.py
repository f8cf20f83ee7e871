"""One layer under one combination of choices: pruned inputs, factors, zeros and fewer bits, each made up for by the next.

The order is fixed: the weights for the channels that are left (OBS), their factors, zeros, codes. Every step sees what the
one before left over, through the covariance of what its part reads. Output channels are not part of a variant: the rows of a
layer are solved for independently, so `take_outputs` removes them afterwards at the cost of copying. Only factors are not
independent in their rows; there the factors of all outputs serve, with rows of the last one dropped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from automc.calibrate import LayerStats
from automc.compression.lowrank import Target, covariance_after, mean_after
from automc.compression.obs import absorb_mean, refit
from automc.compression.quantize import Quantized, best_range, sample
from automc.compression.rounding import corrected_bias, round_weights
from automc.compression.sparsify import sparsify
from automc.graph import LayerSpec
from automc.policy import LowRank, Quantize, Sparsify

__all__ = ["Dense", "Key", "before_last", "covariance_of", "make_variant", "remaining", "take_outputs"]

Indices = tuple[int, ...]
_PLAIN_BITS = 7
"""From so many bits on weights go to their nearest values: what compensation could gain is lost in the rounding of the inputs."""


@dataclass(frozen=True)
class Key:
    """Which variant of which layer: the input channels that are gone, and what else was chosen for it."""

    layer: str
    gone: Indices = ()
    low_rank: LowRank | None = None
    quantize: Quantize | None = None
    sparsify: Sparsify | None = None


@dataclass(frozen=True)
class Dense:
    """The layer as it was, and what it reads. `stats` is None for grouped layers, whose weights are never refitted.

    Without `compensate` the weights that are left by pruning stay as they are, and the bias alone makes up for the others.
    """

    spec: LayerSpec
    module: nn.Conv2d | nn.Linear
    stats: LayerStats | None
    compensate: bool = True
    targets: dict[Indices, Target] = field(default_factory=dict, compare=False)
    """What the factorisations of the latest pruned form of the layer share."""

    def target(self, before: nn.Conv2d | nn.Linear, gone: Indices) -> Target:
        """`before`, the layer without the input channels `gone`, to be factorised to several ranks."""
        if gone not in self.targets:
            self.targets.clear()
            kept = self.features(gone)
            mean = None if self.stats is None else self.stats.mean[kept]
            self.targets[gone] = Target(before, covariance_of(self.stats, kept), mean)
        return self.targets[gone]

    def features(self, gone: Sequence[int]) -> Tensor:
        """The feature numbers that are left without the input channels `gone`."""
        taps = self.spec.kernel[0] * self.spec.kernel[1]
        left = remaining(self.spec.in_channels // self.spec.groups, gone)
        return (left[:, None] * taps + torch.arange(taps)).flatten()

    def windows(self, kept: Tensor) -> Tensor | None:
        """(rows, channels, height, width) of the stored input columns, (rows, features) of a linear layer; None without any."""
        if self.stats is None or self.stats.sample is None:
            return None
        columns = self.stats.sample[:, kept]
        return columns if isinstance(self.module, nn.Linear) else columns.unflatten(1, (-1, *self.spec.kernel))


def before_last(key: Key) -> Key | None:
    """The key without its last step: prune, factorise, set to zero, round. None for the layer as it was."""
    if key.quantize is not None:
        return replace(key, quantize=None)
    if key.sparsify is not None:
        return replace(key, sparsify=None)
    if key.low_rank is not None:
        return replace(key, low_rank=None)
    return replace(key, gone=()) if key.gone else None


def make_variant(dense: Dense, key: Key, before: nn.Module) -> nn.Module:
    """The module that stands in for a layer, with all of its outputs, in eval mode.

    Args:
        before: the variant of `before_last(key)`; the last step is taken from there.
    """
    kept = dense.features(key.gone)
    if key.quantize is not None:
        module = _rounded(before, dense, kept, key.quantize)
    elif key.sparsify is not None:
        module = _thinned(before, dense, kept, key.sparsify)
    elif key.low_rank is not None:
        assert isinstance(before, (nn.Conv2d, nn.Linear))
        module = dense.target(before, key.gone).factors(key.low_rank)
    else:
        module = _without_inputs(dense, key.gone, kept)
    return module.eval().requires_grad_(False)


def _without_inputs(dense: Dense, gone: Sequence[int], kept: Tensor) -> nn.Conv2d | nn.Linear:
    module = copy.deepcopy(dense.module)
    if not gone or dense.stats is None:
        return module
    old = module.weight.detach().flatten(1)
    bias = module.bias.detach() if module.bias is not None else torch.zeros(len(old))
    if dense.compensate:
        weight, bias = refit(old, bias, dense.stats, kept)
    else:
        weight, bias = old[:, kept], absorb_mean(old, bias, old[:, kept], dense.stats, kept)
    module.weight = nn.Parameter(weight.reshape(len(weight), -1, *module.weight.shape[2:]), requires_grad=False)
    module.bias = nn.Parameter(bias, requires_grad=False)
    if isinstance(module, nn.Linear):
        module.in_features = module.weight.shape[1]
    else:
        module.in_channels = module.weight.shape[1]
    return module


def _thinned(module: nn.Module, dense: Dense, kept: Tensor, spec: Sparsify) -> nn.Module:
    """The layer, or each of its factors, with weights set to zero; the bias makes up for the change of the mean."""
    parts = [_with_zeros(part, spec, *_moments(module, i, dense, kept)) for i, part in enumerate(_parts(module))]
    return nn.Sequential(*parts) if isinstance(module, nn.Sequential) else parts[0]


def _with_zeros(
    part: nn.Conv2d | nn.Linear, spec: Sparsify, covariance: Tensor | None, mean: Tensor | None
) -> nn.Conv2d | nn.Linear:
    part = copy.deepcopy(part)
    weight = part.weight.detach().flatten(1)
    new = sparsify(weight, spec, covariance, taps=math.prod(part.weight.shape[2:]))
    part.weight = nn.Parameter(new.view_as(part.weight), requires_grad=False)
    if mean is not None:
        old = None if part.bias is None else part.bias.detach()
        part.bias = nn.Parameter(corrected_bias(old, weight, new, mean), requires_grad=False)
    return part


def _rounded(module: nn.Module, dense: Dense, kept: Tensor, spec: Quantize) -> nn.Module:
    """The layer, or each of its factors, on its grid; the bias makes up for the change of the mean."""
    parts = _parts(module)
    read = _reads(parts, dense.windows(kept))
    rounded: list[nn.Module] = []
    for number, part in enumerate(parts):
        plain = spec.weight_bits >= _PLAIN_BITS
        moments = _variances(module, number, dense, kept, read) if plain else _moments(module, number, dense, kept)
        on_grid = _on_grid(part, spec, *moments)
        if read:
            on_grid.set_range(*best_range(sample(read[number]), spec.activation_bits))
        rounded.append(on_grid)
    return nn.Sequential(*rounded) if isinstance(module, nn.Sequential) else rounded[0]


def _on_grid(part: nn.Conv2d | nn.Linear, spec: Quantize, covariance: Tensor | None, mean: Tensor | None) -> Quantized:
    part = copy.deepcopy(part)
    weight = part.weight.detach().flatten(1)
    rounded = round_weights(weight, spec, covariance)
    if mean is not None:
        old = None if part.bias is None else part.bias.detach()
        part.bias = nn.Parameter(corrected_bias(old, weight, rounded.values, mean), requires_grad=False)
    return Quantized(part.requires_grad_(False), spec, rounded)


def _moments(module: nn.Module, number: int, dense: Dense, kept: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Covariance (a diagonal where only that is known) and mean of what a part multiplies its weights with, None where unknown."""
    stats = dense.stats
    part = _parts(module)[number]
    if stats is None or (isinstance(part, nn.Conv2d) and part.groups > 1):
        return None, None
    mean, whole = stats.mean[kept], covariance_of(stats, kept)
    if not isinstance(module, nn.Sequential) or (number == 0 and _reads_columns(part, dense)):
        return (stats.covariance[kept] if whole is None else whole), mean
    after = None if whole is None else covariance_after(module, number, whole)
    return after, mean_after(module, number, mean)


def _variances(
    module: nn.Module, number: int, dense: Dense, kept: Tensor, read: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """As `_moments`, with the variances alone; those between factors are of the stored input columns."""
    stats, part = dense.stats, _parts(module)[number]
    if stats is None or (isinstance(part, nn.Conv2d) and part.groups > 1):
        return None, None
    if not isinstance(module, nn.Sequential) or (number == 0 and _reads_columns(part, dense)):
        return stats.variance[kept], stats.mean[kept]
    columns = _columns(part, read[number]).var(0, correction=0) if read else None
    return columns, mean_after(module, number, stats.mean[kept])


def _columns(part: nn.Module, windows: Tensor) -> Tensor:
    """(rows, features) what a part multiplies its weights with on its way over the windows."""
    if not isinstance(part, nn.Conv2d):
        return windows
    height, width = part.kernel_size
    patches = windows.unfold(2, height, 1).unfold(3, width, 1)  # (rows, channels, down, across, height, width)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)


def _reads_columns(part: nn.Module, dense: Dense) -> bool:
    """Whether a first factor has the kernel of the layer, and so multiplies its weights with the same columns."""
    return isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == dense.spec.kernel)


def _parts(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    parts: list[nn.Conv2d | nn.Linear] = []
    for part in module if isinstance(module, nn.Sequential) else [module]:
        assert isinstance(part, (nn.Conv2d, nn.Linear))
        parts.append(part)
    return parts


def _reads(parts: Sequence[nn.Module], windows: Tensor | None) -> list[Tensor]:
    """What each part of a chain reads when the chain reads `windows`; empty where there are none."""
    read = []
    for part in parts if windows is not None else []:
        assert windows is not None
        read.append(windows)
        windows = _valid(part)(windows)
    return read


def _valid(part: nn.Module) -> nn.Module:
    """The layer without padding, stride and dilation: it maps the window of one output position to that position."""
    if isinstance(part, Quantized):
        part = copy.copy(part)
        part._modules = {"inner": _valid(part.inner)}
    elif isinstance(part, nn.Conv2d):
        part = copy.copy(part)
        part.padding, part.stride, part.dilation, part.padding_mode = (0, 0), (1, 1), (1, 1), "zeros"
    return part


def covariance_of(stats: LayerStats | None, kept: Tensor | slice) -> Tensor | None:
    """The covariance of the kept features, or None where only a diagonal is known."""
    return stats.covariance[kept][:, kept] if stats is not None and stats.full else None


def take_outputs(module: nn.Module, rows: Tensor) -> nn.Module:
    """A copy of a variant with these outputs alone; what is not cut is shared with the variant."""
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*list(module)[:-1], take_outputs(module[-1], rows)).eval()
    if isinstance(module, Quantized):
        inner = take_outputs(module.inner, rows)
        assert isinstance(inner, (nn.Conv2d, nn.Linear))
        return module.take_outputs(inner, rows)
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    cut = copy.copy(module)
    cut._parameters = {
        name: None if tensor is None else nn.Parameter(tensor[rows], requires_grad=False)
        for name, tensor in module._parameters.items()
    }
    setattr(cut, "out_features" if isinstance(cut, nn.Linear) else "out_channels", len(rows))
    return cut


def remaining(size: int, gone: Sequence[int]) -> Tensor:
    """The numbers below `size` that are not in `gone`."""
    return torch.tensor(sorted(set(range(size)).difference(gone)), dtype=torch.long)
