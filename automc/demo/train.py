"""Train the demo's model: `python -m automc.demo.train` writes the weights that the package ships, in about four minutes.

One run with seed 0 on one thread, 60 epochs of the 900 training images, gave the shipped weights: accuracy 99.67 % on the 300 validation images and
100.0 % on the 400 test images (none wrong of 400: above 99.2 % with 95 % confidence). Nothing was chosen by the test images, nor by the calibration ones (99.5 %).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from automc.demo.digits import augment, digits
from automc.demo.model import WEIGHTS, build
from automc.evaluate.data import Split

__all__ = ["accuracy", "main", "train"]

EPOCHS, WARM_UP, RATE, DECAY, SMOOTHING, BATCH = 60, 3, 0.1, 1e-3, 0.1, 50


def train(epochs: int = EPOCHS, seed: int = 0) -> nn.Module:
    """SGD with Nesterov momentum, warm-up and cosine decay, on augmented batches with smoothed labels."""
    torch.manual_seed(seed)
    data = digits(BATCH, seed)
    model = build()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: _rate(epoch, epochs))
    for epoch in range(epochs):
        start = time.monotonic()
        loss = _epoch(model, data.train or (), optimizer)
        schedule.step()
        if epoch % 5 == 4 or epoch == epochs - 1:
            seconds = time.monotonic() - start
            print(
                f"epoch {epoch + 1}: loss {loss:.3f}, validation {accuracy(model, data.validation):.4f}, {seconds:.1f} s",
                flush=True,
            )
    return model.eval()


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of the split that the model, in evaluation mode, gets right."""
    model.eval()
    with torch.inference_mode():
        right = torch.cat([model(x).argmax(1) == y for x, y in split])
    return float(right.float().mean())


def _epoch(model: nn.Module, split: Split, optimizer: torch.optim.Optimizer) -> float:
    model.train()
    losses = []
    for inputs, targets in split:
        loss = F.cross_entropy(model(augment(inputs)), targets, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def _rate(epoch: int, epochs: int) -> float:
    if epoch < WARM_UP:
        return (epoch + 1) / (WARM_UP + 1)
    return 0.5 * (1 + math.cos(math.pi * (epoch - WARM_UP) / (epochs - WARM_UP)))


def main() -> None:
    """Train, print the accuracies and write the weights."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(WEIGHTS))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = train(options.epochs)
    data = digits(BATCH)
    for name in ("validation", "test"):
        print(f"{name} accuracy {accuracy(model, data.splits[name]):.4f}")
    temporary = options.out.with_suffix(".tmp")
    save_file(model.state_dict(), temporary)
    temporary.replace(options.out)


if __name__ == "__main__":
    main()
