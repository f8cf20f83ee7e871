"""Batch norms become part of the layer before them; what they were is remembered, since training wants them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

__all__ = ["FoldedNorm", "fold_batch_norms"]


@dataclass(frozen=True)
class FoldedNorm:
    """A batch norm that became part of the layer before it; all (outputs,): y = weight (x - mean) / deviation + bias."""

    weight: Tensor
    bias: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> FoldedNorm:
        """What `norm` has learned, without its running mean; a norm that learns nothing has weight 1 and bias 0."""
        assert norm.running_var is not None
        deviation = (norm.running_var + norm.eps).sqrt()
        if not norm.affine:
            return cls(torch.ones_like(deviation), torch.zeros_like(deviation), deviation)
        return cls(norm.weight.detach().clone(), norm.bias.detach().clone(), deviation)


def fold_batch_norms(model: nn.Module, batch_norm_of: Mapping[str, str], shared: set[str]) -> dict[str, FoldedNorm]:
    """Fold norms into their layers, but for modules that go by several names: one of them would keep the norm."""
    folded = {}
    foldable = {layer: norm for layer, norm in batch_norm_of.items() if not {layer, norm} & shared}
    for layer_name, norm_name in foldable.items():
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
        statistics: Any = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        if isinstance(layer, _ConvNd):
            weight, bias = cast(Any, fuse_conv_bn_weights)(
                layer.weight, layer.bias, *statistics, transpose=layer.transposed
            )
        else:
            assert isinstance(layer, nn.Linear)
            weight, bias = fuse_linear_bn_weights(layer.weight, layer.bias, *statistics)
        layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        model.set_submodule(norm_name, nn.Identity())
        folded[layer_name] = FoldedNorm.of(norm)
    return folded
