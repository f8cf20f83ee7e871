"""The demo's model: ResNet-20 for 32 x 32 images, K. He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2.

One input channel instead of three, and projection shortcuts (option B) where the width changes.
"""

from __future__ import annotations

from importlib.resources import as_file, files

import torch
from torch import Tensor, nn

__all__ = ["BATCH_SIZE", "WEIGHTS", "build", "load"]

WEIGHTS = "resnet20_digits.safetensors"
BATCH_SIZE = 80
"""So that the dense model takes about 100 ms on one thread of ONNX Runtime where a ResNet-18 at 224 x 224, batch 1, takes 50 ms.

Measured side by side with ONNX Runtime 1.31, best of 25: ResNet-18 24.8 ms; this model 39.5, 59.0 and 78.8 ms at batches of 64, 96 and
128, so 0.616 ms an image: 80 images come to 49 ms there, and to 99 ms where ResNet-18 takes 50 ms.
"""


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut: (batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class ResNet20(nn.Module):
    """(batch, 1, 32, 32) standardised grey values -> (batch, 10) logits; three stages of three blocks, 16-32-64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stage1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.stage2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.stage3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def build() -> nn.Module:
    """The network with fresh weights, in training mode."""
    return ResNet20()


def load() -> nn.Module:
    """The network with the weights that come with the package, in evaluation mode."""
    from safetensors.torch import load_file

    model = build()
    with as_file(files("automc.demo") / WEIGHTS) as path:
        model.load_state_dict(load_file(path))
    return model.eval()
