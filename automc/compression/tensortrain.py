"""Tensor train: 1 x 1, k x 1, 1 x k, 1 x 1 (Oseledets 2011, SIAM J. Sci. Comput. 33(5); Garipov et al. 2016, arXiv 1611.03214).

The modes are input channels (whitened where their covariance is known), kernel rows, kernel columns, output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from automc.compression.tensors import tensorly_decompositions

__all__ = ["tensor_train"]


def tensor_train(weight: Tensor, ranks: tuple[int, int, int], root: Tensor | None) -> list[Tensor]:
    """Four factors of (outputs, inputs, height, width); `root` is of the covariance of the input channels."""
    white = weight if root is None else torch.einsum("oihw,ij->ojhw", weight, root)
    modes = white.permute(1, 2, 3, 0).contiguous().numpy()
    train = tensorly_decompositions().tensor_train(modes, rank=[1, *ranks, 1])
    first, rows, columns, last = (torch.from_numpy(core).to(weight.dtype) for core in train)
    inner = first[0].T if root is None else torch.linalg.solve_triangular(root, first[0].T, upper=False, left=False)
    return [
        inner[:, :, None, None],
        rows.permute(2, 0, 1)[:, :, :, None],
        columns.permute(2, 0, 1)[:, :, None, :],
        last[:, :, 0].T[:, :, None, None],
    ]
