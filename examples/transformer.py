"""Compress a transformer: attention heads, widths of its MLPs and bits, for a share of its MACs.

    python examples/transformer.py

The task is made up: is the most frequent token of a sequence even?
"""

from __future__ import annotations

import sys
import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import automc

LENGTH, TOKENS, WIDTH, HEADS = 16, 8, 32, 4


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        split = (x.shape[0], LENGTH, HEADS, WIDTH // HEADS)
        q, k, v = (layer(h).reshape(split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape[0], LENGTH, WIDTH))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Two blocks over embedded tokens, mean pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(tokens)).mean(dim=1))
        return logits


def sequences(count: int, seed: int) -> TensorDataset:
    """(count, LENGTH) tokens, and whether the most frequent one is even."""
    tokens = torch.randint(0, TOKENS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return TensorDataset(tokens, 1 - nn.functional.one_hot(tokens, TOKENS).sum(dim=1).argmax(dim=1) % 2)


def loaders() -> list[DataLoader]:  # type: ignore[type-arg]
    """Train, calibration, validation and test."""
    return [
        DataLoader(sequences(count, seed), 64, shuffle=seed == 0) for seed, count in enumerate((2048, 192, 256, 256))
    ]


def train(model: nn.Module, data: DataLoader, epochs: int = 4) -> nn.Module:  # type: ignore[type-arg]
    """What you have done already."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for tokens, labels in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens), labels).backward()
            optimizer.step()
    return model.eval()


def main(trials: int = 20, recover: str = "10s", profile: str = "10s") -> automc.Compressed:
    """Search, and say what came out."""
    data = loaders()
    model = train(Transformer(), data[0])
    result = automc.compress(
        model, budget="70%macs", data=tuple(data), batch_size=16, trials=trials, recover=recover, profile=profile,
        runs=tempfile.mkdtemp(), tracking_uri="",
    )  # fmt: skip
    for target, spec in result.policy:
        print(f"{target}: {spec.label}")
    return result


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
