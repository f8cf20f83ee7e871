"""Compress an image classifier of your own: a module, four loaders, a budget.

    python examples/image_classifier.py

The network here learns scikit-learn's handwritten digits in seconds; put yours in its place.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import automc


def build() -> nn.Module:
    """Three convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def loaders() -> tuple[DataLoader, DataLoader, DataLoader, DataLoader]:  # type: ignore[type-arg]
    """Train, calibration, validation and test: disjoint."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    data = TensorDataset(images, torch.tensor(digits.target))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).split([900, 200, 300, 397])
    train, calibration, validation, test = (torch.utils.data.Subset(data, rows.tolist()) for rows in order)
    return DataLoader(train, 64, shuffle=True), *(DataLoader(part, 64) for part in (calibration, validation, test))  # type: ignore[return-value]


def train(model: nn.Module, data: DataLoader, epochs: int = 4) -> nn.Module:  # type: ignore[type-arg]
    """What you have done already."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(epochs):
        for images, labels in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


def main(trials: int = 20, recover: str = "10s", profile: str = "10s") -> automc.Compressed:
    """Search, and say what came out."""
    data = loaders()
    model = train(build(), data[0])
    result = automc.compress(
        model, budget="70%", data=data, batch_size=64, trials=trials, recover=recover, profile=profile, runs=tempfile.mkdtemp(),
        tracking_uri="",
    )  # fmt: skip
    dense, best = result.certificate.dense_latency_s, result.certificate.latency_s
    print(
        f"{1e3 * dense:.2f} ms -> {1e3 * best:.2f} ms, test accuracy {result.summary.best and result.summary.best.test}"
    )
    return result


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
