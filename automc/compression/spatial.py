"""Spatial SVD: k x 1, then 1 x k (Jaderberg et al. 2014, arXiv 1405.3866, scheme 2).

Weighted by the covariance of one column of the window, (inputs, height) averaged over its columns: what two columns have in common is left
to the refinement, since the factors share one vertical kernel across them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from automc.compression.svd import Spectrum

__all__ = ["spatial", "spatial_spectrum"]


def spatial_spectrum(weight: Tensor, root: Tensor | None) -> Spectrum:
    """Of (outputs, inputs, height, width) as (outputs x width, inputs x height); `root` is of the covariance of the latter."""
    outputs, inputs, height, width = weight.shape
    return Spectrum.of(weight.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height), root)


def spatial(shape: torch.Size, rank: int, spectrum: Spectrum) -> list[Tensor]:
    """Two factors of a weight of shape (outputs, inputs, height, width) with this `spatial_spectrum`."""
    outputs, inputs, height, width = shape
    out, inner = spectrum.truncated(rank)
    horizontal = out.reshape(outputs, width, rank).transpose(1, 2)[:, :, None, :]
    return [inner.reshape(rank, inputs, height, 1), horizontal]
