"""Batch norms that no layer absorbs: their statistics are taken anew after pruning.

Batch norms behind a layer are folded into it and need nothing. Those that stand before one, as in a DenseNet, remember the
statistics of channels that have changed since.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["recalibrate"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
