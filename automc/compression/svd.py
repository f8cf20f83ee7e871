"""Activation-aware SVD: k x k (or linear) into `rank` channels, then 1 x 1.

The best rank-r replacement of W on inputs with covariance C = L L^T is U_r S_r V_r^T L^-1 with U S V^T = W L
(Zhang et al. 2016, arXiv 1505.06798; Wang et al. 2025, "SVD-LLM", arXiv 2403.07378, eq. 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Spectrum", "svd"]


@dataclass(frozen=True)
class Spectrum:
    """U S V^T = W L: the best products of every rank.

    Attributes:
        u, s, v: (rows, values), (values,), (values, columns).
        root: lower triangular L of the columns' covariance; None for white ones.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    root: Tensor | None

    @classmethod
    def of(cls, matrix: Tensor, root: Tensor | None) -> Spectrum:
        """Of (rows, columns) W for inputs with covariance `root` `root`^T."""
        u, s, v = torch.linalg.svd(matrix if root is None else matrix @ root, full_matrices=False)
        return cls(u, s, v, root)

    def truncated(self, rank: int) -> tuple[Tensor, Tensor]:
        """(rows, rank) and (rank, columns): the best product of this rank, evenly scaled."""
        share = self.s[:rank].sqrt()
        inner = self.v[:rank] * share[:, None]
        if self.root is not None:
            inner = torch.linalg.solve_triangular(self.root, inner, upper=False, left=False)
        return self.u[:, :rank] * share, inner


def svd(shape: torch.Size, rank: int, spectrum: Spectrum) -> list[Tensor]:
    """Two factors of a weight of shape (outputs, inputs, height, width); `spectrum` is of it as (outputs, features)."""
    out, inner = spectrum.truncated(rank)
    return [inner.reshape(rank, *shape[1:]), out[:, :, None, None]]
