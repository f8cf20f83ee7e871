"""Tiny data sets and user files on disk, for the tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MODELS = """
from torch import nn
from collections import OrderedDict
class Net(nn.Sequential):
    def __init__(self, channels=3, classes=4):
        super().__init__(OrderedDict(
            conv=nn.Conv2d(channels, 8, 3, padding=1), bn=nn.BatchNorm2d(8), act=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(8, classes)))
def build(): return Net()
def gray(): return Net(1)
def two_classes(): return Net(classes=2)
def half(): return Net().half()
class Dict(Net):
    def forward(self, x): return {"logits": super().forward(x)}
def dictionary(): return Dict()
class Tuple(Net):
    def forward(self, x): return super().forward(x), x
def pair(): return Tuple()
class Mean(Net):
    def forward(self, x): return super().forward(x).mean(0, keepdim=True)
def mean(): return Mean()
class Flat(Net):
    def forward(self, x): return super().forward(x)[:, 0]
def flat(): return Flat()
class NaN(Net):
    def forward(self, x): return super().forward(x) / 0 * 0
def nan_outputs(): return NaN()
def nan_weights():
    net = Net()
    net.conv.weight.data[0] = float("nan")
    return net
def empty(): return nn.Flatten()
def needs_path(path): return Net()
def number(): return 3
INSTANCE = Net()
LIMIT = 3
"""


def write_models(folder: Path) -> str:
    """A file of builders, good and bad; its path."""
    path = folder / "nets.py"
    path.write_text(MODELS)
    return str(path)


def write_npz(path: Path, count: int = 80, **arrays: Any) -> str:
    """Colour images (count, 8, 8, 3) of bytes in four classes, the brighter the higher; arrays replace or join them."""
    y = np.arange(count) % 4
    x = (y[:, None, None, None] * 60 + np.random.RandomState(0).randint(0, 20, (count, 8, 8, 3))).astype(np.uint8)
    found: dict[str, NDArray[Any]] = {"x": x, "y": y, **arrays}
    np.savez(path, **{name: array for name, array in found.items() if array is not None})  # type: ignore[arg-type]
    return f"npz:{path}"


def write_cifar10(folder: Path, batches: tuple[int, ...] = (1, 2), train: int = 60, test: int = 30) -> str:
    """Binary batches whose image number i is label i % 10 and all bytes i."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [(f"data_batch_{number}.bin", train) for number in batches] + ([("test_batch.bin", test)] if test else [])
    start = 0
    for name, count in files:
        numbers = np.arange(start, start + count)
        records = np.repeat(numbers[:, None] % 256, 3073, axis=1).astype(np.uint8)
        records[:, 0] = numbers % 10
        (folder / name).write_bytes(records.tobytes())
        start += count
    return f"cifar10:{folder}"


def write_images(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> str:
    """One folder per class of `count` images 300 x 260, class k of one grey 100 * k."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (300, 260), (100 * number,) * 3).save(folder / name / f"{image}.png")
    return f"imagefolder:{folder}"


def write_python(folder: Path, text: str, name: str = "mine.py") -> str:
    """A user's file; its path."""
    path = folder / name
    path.write_text(text)
    return str(path)
