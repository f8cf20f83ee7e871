"""Activation-aware SVD: k x k (or linear) into `rank` channels, then 1 x 1.

The best rank-r replacement of W on inputs with covariance C = L L^T is U_r S_r V_r^T L^-1 with U S V^T = W L
(Zhang et al. 2016, arXiv 1505.06798; Wang et al. 2025, "SVD-LLM", arXiv 2403.07378, eq. 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["svd", "truncated"]


def svd(weight: Tensor, rank: int, root: Tensor | None) -> list[Tensor]:
    """Two factors of (outputs, inputs, height, width); `root` is the lower triangular L of all features."""
    out, inner = truncated(weight.flatten(1), rank, root)
    return [inner.reshape(rank, *weight.shape[1:]), out[:, :, None, None]]


def truncated(matrix: Tensor, rank: int, root: Tensor | None) -> tuple[Tensor, Tensor]:
    """(rows, rank) and (rank, columns): the best product for inputs with covariance `root` `root`^T, evenly scaled."""
    u, s, v = torch.linalg.svd(matrix if root is None else matrix @ root, full_matrices=False)
    share = s[:rank].sqrt()
    inner = v[:rank] * share[:, None]
    if root is not None:
        inner = torch.linalg.solve_triangular(root, inner, upper=False, left=False)
    return u[:, :rank] * share, inner
