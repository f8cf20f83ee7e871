"""The demo's data: scikit-learn's 1,797 handwritten digits, 8 x 8 grey values, resized to 32 x 32.

The four splits are disjoint, drawn once with a fixed seed so that each holds the ten classes in proportion. Source: E. Alpaydin, C. Kaynak,
"Optical Recognition of Handwritten Digits" (1998), UCI Machine Learning Repository, doi:10.24432/C50P49, CC BY 4.0; the test part,
which comes with scikit-learn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from automc.evaluate.data import Data, TensorSplit, stratified_order

__all__ = ["SIZES", "augment", "digits"]

SIZES = {"train": 900, "calibration": 197, "validation": 300, "test": 400}
MEAN, STD = 4.90, 5.19
"""Of the grey values (0..16) of the resized training images."""
_SEED = 1797
_SIDE = 32
_BACKGROUND = -MEAN / STD


def digits(batch_size: int, seed: int = 0) -> Data:
    """The splits in batches of inputs (batch, 1, 32, 32), standardised, and targets (batch,) 0..9.

    Args:
        seed: of the order in which the training split is read; the splits themselves never change.
    """
    images, labels = _load()
    rows = torch.from_numpy(stratified_order(labels.numpy(), _SEED)).split(list(SIZES.values()))
    split: dict[str, Any] = {
        name: TensorSplit(images, labels, batch_size, index=index, shuffle_seed=seed if name == "train" else None)
        for name, index in zip(SIZES, rows, strict=True)
    }
    return Data(**split, name="digits", augment=augment)


def augment(inputs: Tensor) -> Tensor:
    """(batch, 1, 32, 32) -> the same, each image shifted by up to 3 pixels, turned by up to 10 degrees, scaled by up to 10 %."""
    count = len(inputs)
    angle = torch.empty(count).uniform_(-1, 1) * math.radians(10)
    scale = 1 + 0.1 * torch.empty(count).uniform_(-1, 1)
    shift = torch.empty(count, 2, 1).uniform_(-1, 1) * (2 * 3 / _SIDE)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
    matrix = torch.cat([rotation * scale.view(-1, 1, 1), shift], dim=2)
    grid = F.affine_grid(matrix, list(inputs.shape), align_corners=False)
    return F.grid_sample(inputs - _BACKGROUND, grid, align_corners=False) + _BACKGROUND


def _load() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 32, 32) float, standardised; labels (1797,) int64."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(images.astype(np.float32)).view(-1, 1, 8, 8)
    large = F.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    return (large - MEAN) / STD, torch.from_numpy(labels.astype(np.int64))
