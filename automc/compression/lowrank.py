"""Low-rank factors of convolutions and linear layers that respect what the layer reads.

SVD: the best rank-r replacement of W on inputs with covariance C = L L^T is U_r S_r V_r^T L^-1 with U S V^T = W L
(activation-aware SVD; Zhang et al. 2015, arXiv 1505.06798; Wang et al. 2024, "SVD-LLM", arXiv 2403.07378, eq. 4).
Tucker-2: factors of the channel modes by higher-order orthogonal iteration (Kim et al. 2016, arXiv 1511.06530).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from automc.policy import LowRank

__all__ = ["factorise", "tucker_ranks"]

T = TypeVar("T", nn.Conv2d, nn.Linear)


def tucker_ranks(rank: int, in_channels: int, out_channels: int) -> tuple[int, int]:
    """(input rank, output rank) of a Tucker-2 of `rank`: the input rank in proportion to the channels, each at most them."""
    inputs = max(1, round(rank * in_channels / max(1, out_channels)))
    return min(inputs, in_channels), min(rank, out_channels)


def factorise(layer: nn.Conv2d | nn.Linear, spec: LowRank, covariance: Tensor | None) -> nn.Sequential:
    """The layers that replace `layer`. Ranks beyond what its (pruned) shape allows are capped.

    Args:
        covariance: (features, features) of what the layer reads, None for a plain factorisation of the weights.
    """
    if spec.method == "tucker" and isinstance(layer, nn.Conv2d):
        return _tucker(layer, spec.rank)
    return _svd(layer, spec.rank, covariance)


def _svd(layer: nn.Conv2d | nn.Linear, rank: int, covariance: Tensor | None) -> nn.Sequential:
    weight = layer.weight.detach().flatten(1)
    rank = min(rank, *weight.shape)
    root = None if covariance is None else _root(covariance)
    u, s, v = torch.linalg.svd(weight if root is None else weight @ root, full_matrices=False)
    share = s[:rank].sqrt()
    out, inner = u[:, :rank] * share, v[:rank] * share[:, None]
    if root is not None:
        inner = torch.linalg.solve_triangular(root, inner, upper=False, left=False)
    if isinstance(layer, nn.Linear):
        return nn.Sequential(_linear(inner, None), _linear(out, layer.bias))
    return nn.Sequential(
        _conv_like(layer, inner.reshape(rank, *layer.weight.shape[1:]), None), _pointwise(out, layer.bias)
    )


def _tucker(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    weight = layer.weight.detach()
    outputs, inputs = weight.shape[:2]
    rank_in, rank_out = tucker_ranks(rank, inputs, outputs)
    u_in = _leading(weight.transpose(0, 1).flatten(1), rank_in)
    for _ in range(3):
        u_out = _leading(torch.einsum("oihw,ir->orhw", weight, u_in).flatten(1), rank_out)
        u_in = _leading(torch.einsum("oihw,or->irhw", weight, u_out).flatten(1), rank_in)
    core = torch.einsum("oihw,or,is->rshw", weight, u_out, u_in)
    return nn.Sequential(_pointwise(u_in.T, None), _conv_like(layer, core, None), _pointwise(u_out, layer.bias))


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """(rows, rank) leading left singular vectors."""
    return torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank]


def _root(covariance: Tensor) -> Tensor:
    """Lower Cholesky factor of the covariance, lightly damped."""
    ridge = 1e-3 * float(covariance.diagonal().mean()) + 1e-8
    return torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _filled(layer, weight, bias)


def _pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    return _filled(layer, weight[:, :, None, None], bias)


def _conv_like(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution with the geometry of `layer` and other channels."""
    size = (layer.kernel_size[0], layer.kernel_size[1])
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], size, bias=bias is not None)
    conv.stride, conv.padding, conv.dilation = layer.stride, layer.padding, layer.dilation
    conv.padding_mode = layer.padding_mode
    conv._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice
    return _filled(conv, weight, bias)


def _filled(layer: T, weight: Tensor, bias: Tensor | None) -> T:
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
