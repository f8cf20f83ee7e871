"""Spatial SVD: k x 1, then 1 x k (Jaderberg et al. 2014, arXiv 1405.3866, scheme 2).

Weighted by the covariance of one column of the window, (inputs, height) averaged over its columns: what two columns have in common is left
to the refinement, since the factors share one vertical kernel across them.
"""

from __future__ import annotations

from torch import Tensor

from automc.compression.svd import truncated

__all__ = ["spatial"]


def spatial(weight: Tensor, rank: int, root: Tensor | None) -> list[Tensor]:
    """Two factors of (outputs, inputs, height, width); `root` is of the covariance of (inputs, height)."""
    outputs, inputs, height, width = weight.shape
    matrix = weight.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)
    out, inner = truncated(matrix, rank, root)
    horizontal = out.reshape(outputs, width, rank).transpose(1, 2)[:, :, None, :]
    return [inner.reshape(rank, inputs, height, 1), horizontal]
