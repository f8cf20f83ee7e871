"""Compress a detector with a score of its own: a model of two outputs, judged by the mean overlap of its boxes.

    python examples/detector.py

Each image holds one bright rectangle; the network says how sure it is of one, and where it is.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import automc

SIDE = 24


class Detector(nn.Module):
    """A convolutional trunk with two heads: objectness (batch, 1) and box (batch, 4), corners as shares of the side."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(24, 48, 3, padding=1, stride=2), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48 * 36, 64), nn.ReLU(),
        )  # fmt: skip
        self.sure, self.box = nn.Linear(64, 1), nn.Linear(64, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.sure(features), self.box(features).sigmoid()


def scenes(count: int, seed: int) -> TensorDataset:
    """(count, 1, SIDE, SIDE) images and (count, 4) corners x0, y0, x1, y1 as shares of the side."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 0.5
    high = low + 0.25 + 0.2 * torch.rand(count, 2, generator=generator)
    at = torch.arange(SIDE) / SIDE
    inside = [(at >= low[:, i, None]) & (at < high[:, i, None]) for i in range(2)]
    images = (inside[1][:, :, None] & inside[0][:, None, :]).float().unsqueeze(1)
    return TensorDataset(images + 0.1 * torch.randn(images.shape, generator=generator), torch.cat([low, high], dim=1))


def overlap(boxes: Tensor, truth: Tensor) -> Tensor:
    """(count,) intersection over union."""
    low, high = torch.maximum(boxes[:, :2], truth[:, :2]), torch.minimum(boxes[:, 2:], truth[:, 2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(dim=1) for b in (boxes, truth)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-9)


def mean_overlap(model: Any, loader: Any) -> float:
    """The score: higher is better."""
    with torch.no_grad():
        return float(torch.cat([overlap(torch.as_tensor(model(x)[1]), truth) for x, truth in loader]).mean())


def loaders() -> list[DataLoader]:  # type: ignore[type-arg]
    """Train, calibration, validation and test."""
    return [DataLoader(scenes(count, seed), 64, shuffle=seed == 0) for seed, count in enumerate((768, 192, 256, 256))]


def train(model: nn.Module, data: DataLoader, epochs: int = 6) -> nn.Module:  # type: ignore[type-arg]
    """What you have done already."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for images, truth in data:
            sure, boxes = model(images)
            optimizer.zero_grad()
            loss = nn.functional.smooth_l1_loss(boxes, truth) + 0.1 * nn.functional.softplus(-sure).mean()
            loss.backward()
            optimizer.step()
    return model.eval()


def main(trials: int = 20, recover: str = "10s", profile: str = "10s") -> automc.Compressed:
    """Search, and say what came out."""
    data = loaders()
    model = train(Detector(), data[0])
    result = automc.compress(
        model, budget="70%macs", data=tuple(data), evaluate=mean_overlap, batch_size=16, trials=trials, recover=recover,
        profile=profile, runs=tempfile.mkdtemp(), tracking_uri="",
    )  # fmt: skip
    dense, best = result.summary.dense, result.summary.best
    print(f"mean overlap {dense.test} -> {best and best.test}, MACs {dense.cost.macs} -> {best and best.cost.macs}")
    return result


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
