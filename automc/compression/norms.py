"""The statistics of batch norms, taken anew after compression.

Batch norms that stand before a layer, as in a DenseNet, remember the statistics of channels that have changed since. Those
behind a layer are folded into it; layers that are refitted need nothing, others are scaled as the norm would scale them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from automc.compression.quantize import Quantized
from automc.tracing.folding import FoldedNorm

__all__ = ["recalibrate", "recalibrate_folded"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_EPSILON = 1e-5


def recalibrate(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Set the running statistics of every batch norm of `model` to those of one batch, in place; the mode stays eval.

    Norms without running statistics, and those that see a single value per channel, are left as they are.
    """
    norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.running_mean is not None]
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """In the order of execution: each norm is set before the layers behind it run."""
    values = inputs[0].transpose(0, 1).flatten(1)  # (channels, samples and positions)
    if values.shape[1] > 1:
        norm.running_mean = values.mean(1)
        norm.running_var = values.var(1)


def recalibrate_folded(
    model: nn.Module, norms: Mapping[str, FoldedNorm], gone: Mapping[str, Sequence[int]], inputs: Sequence[Tensor]
) -> None:
    """Scale the layers that absorbed a batch norm as that norm, with its statistics taken anew on one batch, would; in place.

    Args:
        gone: layer -> output channels that it has lost.
    """
    hooks = [
        model.get_submodule(name).register_forward_hook(_normalise(*_remaining(norm, gone.get(name, ()))))
        for name, norm in norms.items()
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _remaining(norm: FoldedNorm, gone: Sequence[int]) -> tuple[Tensor, Tensor]:
    kept = torch.ones(len(norm.weight), dtype=torch.bool)
    kept[list(gone)] = False
    return norm.weight[kept], norm.bias[kept]


def _normalise(weight: Tensor, bias: Tensor) -> Any:
    """A forward hook that gives what a layer puts out the batch norm's mean `bias` and deviation |weight|, per channel."""

    def adapt(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        last = module
        while isinstance(last, (nn.Sequential, Quantized)):
            last = last.inner if isinstance(last, Quantized) else last[-1]
        assert isinstance(last, (nn.Conv2d, nn.Linear))
        channels = 1 if isinstance(last, nn.Conv2d) else -1
        values = output.movedim(channels, 0).flatten(1)
        scale = weight.abs() / (values.var(1) + _EPSILON).sqrt()
        shift = bias - values.mean(1) * scale
        old = last.bias if last.bias is not None else torch.zeros(len(weight))
        last.weight = nn.Parameter(last.weight * scale.view(-1, *[1] * (last.weight.dim() - 1)), requires_grad=False)
        last.bias = nn.Parameter(old * scale + shift, requires_grad=False)
        aligned = output.movedim(channels, -1) * scale + shift
        return aligned.movedim(-1, channels)

    return adapt
