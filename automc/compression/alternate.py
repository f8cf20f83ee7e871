"""Alternating least squares of factors under the covariance of what the layer reads.

The error tr((W - W') C (W - W')^T) of factors that compose to W' is quadratic in each of them. The last one is a linear layer on known
features P x, so its best weights have a closed form, W C P^T (P C P^T)^-1; the others are improved by conjugate gradients (Hestenes and
Stiefel 1952), which never raise the error. ALS for convolution factors: Lebedev et al. 2015, arXiv 1412.6553.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from automc.compression.compose import join, reading

__all__ = ["refine", "refit_last"]

_RIDGE = 1e-6
"""Of the mean feature variance: keeps the closed form stable where features repeat."""


def refine(weights: Sequence[Tensor], weight: Tensor, covariance: Tensor, *, sweeps: int, steps: int) -> list[Tensor]:
    """Better `weights` for the (outputs, features) `weight`: `sweeps` over all factors, `steps` gradients for each."""
    found = list(weights)
    for _ in range(sweeps):
        for index in range(len(found) - 1):
            found[index] = _conjugate_gradients(found, index, weight, covariance, steps)
        found[-1] = refit_last(found, weight, covariance)
    return found


def refit_last(weights: Sequence[Tensor], weight: Tensor, covariance: Tensor) -> Tensor:
    """The last factor's best weights given the others, near the present ones where the data do not tell."""
    (features,) = reading(weights, len(weights) - 1)
    last = weights[-1].flatten(1)
    read = features @ covariance
    moment = (read @ features.T).double()
    moment += (_RIDGE * float(moment.diagonal().mean()) + 1e-30) * torch.eye(len(moment), dtype=torch.double)
    wanted = ((weight - last @ features) @ read.T).double()
    step = torch.cholesky_solve(wanted.T, torch.linalg.cholesky(moment)).T
    return (last + step.to(last.dtype)).reshape(weights[-1].shape)


def _conjugate_gradients(
    weights: Sequence[Tensor], index: int, weight: Tensor, covariance: Tensor, steps: int
) -> Tensor:
    """Factor `index` after some steps towards its best weights given the others."""

    def composed(factor: Tensor) -> Tensor:
        return join([*weights[:index], factor, *weights[index + 1 :]]).flatten(1)

    found = weights[index]
    pair: Any = torch.func.vjp(composed, found)
    present, pull_back = pair
    residual = pull_back((weight - present) @ covariance)[0]
    direction, square = residual, float(residual.square().sum())
    for _ in range(steps):
        curved = pull_back(composed(direction) @ covariance)[0]
        curvature = float((direction * curved).sum())
        if curvature <= 0.0 or square <= 0.0:
            break
        found = found + square / curvature * direction
        residual = residual - square / curvature * curved
        previous, square = square, float(residual.square().sum())
        direction = residual + square / previous * direction
    return found
