"""Compress a keyword spotter: a one-dimensional network over sound, for a budget in bytes.

    python examples/keyword_spotting.py

The sounds are made up: each of six keywords is a rising or falling tone in noise.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import automc

SAMPLES, KEYWORDS = 1024, 6


def build() -> nn.Module:
    """A small M5 (Dai et al. 2017, arXiv 1610.00087): convolutions over the raw wave."""
    return nn.Sequential(
        nn.Conv1d(1, 32, 32, stride=8), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Conv1d(32, 48, 3, stride=2), nn.BatchNorm1d(48), nn.ReLU(),
        nn.Conv1d(48, 64, 3, stride=2), nn.BatchNorm1d(64), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, KEYWORDS),
    )  # fmt: skip


def sounds(count: int, seed: int) -> TensorDataset:
    """(count, 1, SAMPLES) waves and their keywords."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, KEYWORDS, (count,), generator=generator)
    time = torch.linspace(0, 1, SAMPLES)
    start = 40.0 + 30.0 * (labels // 2).float()[:, None]
    slope = (labels % 2 * 2 - 1).float()[:, None] * 20.0
    phase = 6.28 * torch.rand(count, 1, generator=generator)
    wave: Tensor = torch.sin(6.28 * (start + slope * time) * time + phase)
    return TensorDataset((wave + 0.3 * torch.randn(count, SAMPLES, generator=generator)).unsqueeze(1), labels)


def loaders() -> list[DataLoader]:  # type: ignore[type-arg]
    """Train, calibration, validation and test."""
    return [DataLoader(sounds(count, seed), 64, shuffle=seed == 0) for seed, count in enumerate((768, 192, 256, 256))]


def train(model: nn.Module, data: DataLoader, epochs: int = 6) -> nn.Module:  # type: ignore[type-arg]
    """What you have done already."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for waves, labels in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(waves), labels).backward()
            optimizer.step()
    return model.eval()


def main(trials: int = 20, recover: str = "10s", profile: str = "10s") -> automc.Compressed:
    """Search, and say what came out."""
    data = loaders()
    model = train(build(), data[0])
    result = automc.compress(
        model, budget="60%size", data=tuple(data), batch_size=16, trials=trials, recover=recover, profile=profile,
        runs=tempfile.mkdtemp(), tracking_uri="",
    )  # fmt: skip
    dense = result.summary.dense.cost.size_bytes or 0.0
    print(f"{dense / 1e3:.0f} kB -> {result.certificate.size_bytes / 1e3:.0f} kB, {len(result.policy)} choices")
    return result


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
