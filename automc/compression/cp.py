"""CP: 1 x 1, depthwise k x 1, depthwise 1 x k, 1 x 1 (Lebedev et al. 2015, arXiv 1412.6553).

A best CP approximation need not exist: components grow without bound and cancel (de Silva and Lim 2008, arXiv math/0607647). Their norms
are therefore penalised, and the best of several starts is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.compression.tensors import tensorly_decompositions

__all__ = ["cp"]

_SEEDS = (0, 1, 2)
_ITERATIONS = 40
_PENALTY = 1e-3
"""Weight of the squared norms of the components of a tensor whose entries have a mean square of 1."""


def cp(weight: Tensor, rank: int, root: Tensor | None) -> list[Tensor]:
    """Four factors of (outputs, inputs, height, width); `root` is of the covariance of the input channels."""
    white = weight if root is None else torch.einsum("oihw,ij->ojhw", weight, root)
    scale = float(white.square().mean().sqrt()) or 1.0
    tensor = (white / scale).double().numpy()
    starts = [_decompose(tensor, rank, seed) for seed in _SEEDS]
    best = min(starts, key=lambda factors: _distance(tensor, factors))
    out, inner, rows, columns = (torch.from_numpy(factor).to(weight.dtype) for factor in _balanced(best, scale))
    inner = inner.T if root is None else torch.linalg.solve_triangular(root, inner.T, upper=False, left=False)
    return [inner[:, :, None, None], rows.T[:, None, :, None], columns.T[:, None, None, :], out[:, :, None, None]]


def _decompose(tensor: NDArray[np.float64], rank: int, seed: int) -> list[NDArray[np.float64]]:
    """Per mode the (size, rank) components, their weights taken into the first."""
    found = tensorly_decompositions().parafac(
        tensor, rank, n_iter_max=_ITERATIONS, init="random", random_state=seed, l2_reg=_PENALTY, tol=1e-5
    )
    return [found.factors[0] * found.weights, *found.factors[1:]]


def _distance(tensor: NDArray[np.float64], factors: list[NDArray[np.float64]]) -> float:
    return float(np.square(tensor - np.einsum("or,ir,hr,wr->oihw", *factors, optimize=True)).sum())


def _balanced(factors: list[NDArray[np.float64]], scale: float) -> list[NDArray[np.float64]]:
    """The same components times `scale`, each with the same norm in every mode."""
    norms = [np.linalg.norm(factor, axis=0) + 1e-30 for factor in factors]
    share = (scale * np.prod(norms, axis=0)) ** (1 / len(factors))
    return [factor / norm * share for factor, norm in zip(factors, norms, strict=True)]
