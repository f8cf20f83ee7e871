"""Weights on a grid of few values, each rounding error made up for by the weights that are still to be rounded.

GPTQ (Frantar et al. 2023, arXiv 2210.17323): one order of the columns for all rows lets them share one factor; it follows OBQ (Frantar et
al. 2022, "OBC", arXiv 2208.11580). Grids: uniform ones of 2 to 8 bits; binary {-s, s} (Rastegari et al. 2016, "XNOR-Net", arXiv
1603.05279); ternary {-s, 0, s} (Li et al. 2016, "TWN", arXiv 1605.04711); code books of k-means (Han et al. 2016, "Deep Compression",
arXiv 1510.00149). Those papers take scales from the plain weights; here the layer's inputs say what an error costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy.linalg.lapack import strtri
from torch import Tensor

from automc.compression.codebook import learn_codebook
from automc.compression.grid import Grid, uniform_grid
from automc.policy import Quantize

__all__ = ["EliminationFactor", "Rounded", "corrected_bias", "elimination_factor", "round_weights"]

DAMPING = 0.01
"""Ridge, as a share of the mean variance of a feature."""
_BLOCK = 64
"""Columns whose errors reach the rest of the matrix in one product."""


@dataclass(frozen=True)
class Rounded:
    """A layer's weights on their grid.

    Attributes:
        values: (outputs, features) what the codes stand for.
        codes: (outputs, features) integers; indices into the code book where there is one.
        grid: scales and zero points (outputs, groups), or the code book.
    """

    values: Tensor
    codes: Tensor
    grid: Grid

    @property
    def scale(self) -> Tensor:
        """(outputs, groups)."""
        return self.grid.scale

    @property
    def zero(self) -> Tensor:
        """(outputs, groups) the code that stands for zero."""
        return self.grid.zero


@dataclass(frozen=True)
class EliminationFactor:
    """What compensation needs of a covariance C, in the order in which columns are rounded.

    Attributes:
        order: (features,) from the most to the least varying feature.
        upper: (features, features) U with C^-1 = U^T U, rows and columns in that order.
    """

    order: Tensor
    upper: Tensor


def elimination_factor(covariance: Tensor) -> EliminationFactor:
    """The factor of a (features, features) covariance, damped; worth keeping where one layer is rounded to several grids."""
    order = covariance.diagonal().argsort(descending=True, stable=True)
    ridge = DAMPING * float(covariance.diagonal().mean()) + 1e-8
    damped = covariance[order][:, order] + ridge * torch.eye(len(order))
    # With J the reversal of rows: J C J = L L^T, so C = R R^T with R = J L J upper, and U = R^-1: one factorisation less than GPTQ.
    root = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    upper, _ = strtri(root.numpy())  # half the work of solving for an identity, all that torch offers
    return EliminationFactor(order, torch.from_numpy(upper))


def round_weights(
    weight: Tensor, spec: Quantize, covariance: Tensor | None, *, factor: EliminationFactor | None = None
) -> Rounded:
    """`weight` rounded as `spec` says, so that the layer's output changes least on inputs of this covariance.

    Every output is rounded by itself: the rows of a pruned layer are those of the whole one. Only a k-means code book is
    shared by all rows and changes with them. Weights that are zero stay zero, on every grid but the binary one.

    Args:
        weight: (outputs, features).
        covariance: (features, features); or (features,) its diagonal, or None: then nothing is compensated and every weight
            goes to its nearest value.
        factor: `elimination_factor(covariance)`, where it is at hand.
    """
    weight = weight.detach().float()
    matrix = covariance if covariance is not None and covariance.dim() == 2 else None
    if matrix is not None and factor is None:
        factor = elimination_factor(matrix)
    importance = _importance(weight.shape[1], covariance, factor)
    grid = (
        learn_codebook(weight, spec, importance) if spec.codes == "kmeans" else uniform_grid(weight, spec, importance)
    )
    if matrix is None or factor is None:
        codes = grid.encode(weight, torch.arange(weight.shape[1]))
    else:
        codes = _compensated(weight, grid, factor)
        grid = _rescaled(weight, codes, grid, matrix)
    values = grid.decode(codes, torch.arange(weight.shape[1]))
    return Rounded(values, codes.to(torch.int16), grid)


def corrected_bias(bias: Tensor | None, weight: Tensor, values: Tensor, mean: Tensor) -> Tensor:
    """(outputs,) bias that absorbs what rounding `weight` to `values` adds to the mean output (Nagel et al. 2019, arXiv 1906.04721).

    Args:
        mean: (features,) of the inputs.
    """
    shift = (weight - values) @ mean
    return shift if bias is None else bias + shift


def _importance(features: int, covariance: Tensor | None, factor: EliminationFactor | None) -> Tensor:
    """(features,) what an error in each weight costs: the variance of its input that the features rounded after it do not explain."""
    if covariance is None:
        return torch.ones(features)
    if factor is None:
        return covariance
    importance = torch.empty(features)
    importance[factor.order] = factor.upper.diagonal().square().reciprocal()
    return importance


def _compensated(weight: Tensor, grid: Grid, factor: EliminationFactor) -> Tensor:
    """(outputs, features) codes by GPTQ, algorithm 1; transposed inside, so that a column is contiguous."""
    left = weight[:, factor.order].T.contiguous()
    given_zero = left == 0
    codes = torch.empty_like(left)
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        errors = torch.empty_like(left[start:end])
        for row in range(start, end):
            column = factor.order[row : row + 1]
            values = left[row].masked_fill(given_zero[row], 0.0)
            codes[row] = grid.encode(values[:, None], column)[:, 0]
            rounded = grid.decode(codes[row][:, None], column)[:, 0]
            error = (left[row] - rounded) / factor.upper[row, row]
            left[row + 1 : end] -= torch.outer(factor.upper[row, row + 1 : end], error)
            errors[row - start] = error
        left[end:] -= factor.upper[start:end, end:].T @ errors
    result = torch.empty_like(weight)
    result[:, factor.order] = codes.T
    return result


def _rescaled(weight: Tensor, codes: Tensor, grid: Grid, covariance: Tensor) -> Grid:
    """The grid with the scale of each row that is best for its codes q: w C q / q C q. Only where a row has one scale and no zero point."""
    if grid.book is not None or grid.scale.shape[1] != 1 or bool(grid.zero.any()):
        return grid
    image = codes @ covariance
    energy = (image * codes).sum(1, keepdim=True)
    best = (image * weight).sum(1, keepdim=True) / energy
    usable = (energy > 0) & (best > 0)
    return replace(grid, scale=torch.where(usable, best, grid.scale))
