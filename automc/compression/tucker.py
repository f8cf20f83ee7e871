"""Tucker-2: 1 x 1, k x k, 1 x 1 by higher-order orthogonal iteration (Kim et al. 2016, arXiv 1511.06530).

With data the input channels are whitened by their covariance first, so that the iteration minimises the output error as far as taps do not
correlate; the refinement sees to the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["tucker"]

_SWEEPS = 3


def tucker(weight: Tensor, rank_in: int, rank_out: int, root: Tensor | None) -> list[Tensor]:
    """Three factors of (outputs, inputs, height, width); `root` is of the covariance of the input channels."""
    white = weight if root is None else torch.einsum("oihw,ij->ojhw", weight, root)
    u_in = _leading(white.transpose(0, 1).flatten(1), rank_in)
    for _ in range(_SWEEPS):
        u_out = _leading(torch.einsum("oihw,ir->orhw", white, u_in).flatten(1), rank_out)
        u_in = _leading(torch.einsum("oihw,or->irhw", white, u_out).flatten(1), rank_in)
    core = torch.einsum("oihw,or,is->rshw", white, u_out, u_in)
    inner = u_in.T if root is None else torch.linalg.solve_triangular(root, u_in.T, upper=False, left=False)
    return [inner[:, :, None, None], core, u_out[:, :, None, None]]


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """(rows, rank) leading left singular vectors, through the Gram matrix: rows are few and columns many."""
    return torch.linalg.eigh((matrix @ matrix.T).double())[1][:, -rank:].flip(1).to(matrix.dtype)
