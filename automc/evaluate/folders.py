"""Images in class folders: `imagefolder:DIR`, one folder per class, or train/ and val/ folders of such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automc.errors import InputError, MissingError
from automc.evaluate.arrays import IMAGENET_MEAN, IMAGENET_STD, augmentation
from automc.evaluate.data import SPLITS, Data
from automc.evaluate.splits import allot

__all__ = ["FileSplit", "load_imagefolder", "read_image"]

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
_FOLDERS = {"train": "train", "calibration": "calibration", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}  # fmt: skip
_RESIZE, _CROP = 256, 224


class FileSplit:
    """Image files, read batch by batch: inputs (batch, 3, 224, 224) normalised like ImageNet, targets (batch,)."""

    def __init__(self, paths: list[Path], labels: list[int], batch_size: int, shuffle_seed: int | None = None) -> None:
        self.paths, self.labels, self.batch_size = paths, labels, batch_size
        self._generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(self.samples)
        if self._generator is not None:
            order = torch.randperm(self.samples, generator=self._generator)
        for rows in order.split(self.batch_size):
            images = torch.stack([read_image(self.paths[row]) for row in rows.tolist()])
            yield images, torch.tensor([self.labels[row] for row in rows.tolist()])

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.paths)


def read_image(path: Path) -> Tensor:
    """(3, 224, 224): the shorter side resized to 256, the centre cut out, (x / 255 - mean) / std as for ImageNet.

    Raises:
        InputError: the file is not an image.
        MissingError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingError("Reading images needs Pillow.", remedy="Install it: pip install pillow") from error
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as an image ({error}).", remedy="Remove or replace the file."
        ) from error
    scale = _RESIZE / min(image.size)
    width, height = (max(_CROP, int(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - _CROP) / 2), round((height - _CROP) / 2)
    pixels = np.asarray(image.crop((left, top, left + _CROP, top + _CROP)), np.float32) / 255
    pixels = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def load_imagefolder(folder: Path, options: Mapping[str, str], batch_size: int, seed: int) -> Data:
    """Classes are numbered in the order of their folders' names, as torchvision's ImageFolder does.

    Args:
        options: `augment=crop_flip` shifts and mirrors images for recovery, which by default takes them as they are.

    Raises:
        InputError: another option, no folder, no images in it, or splits that do not have the same classes.
    """
    if unknown := sorted(set(options) - {"augment"}):
        raise InputError(f"{unknown[0]!r} is not an option of this data.", remedy="Known options: augment.")
    augment = augmentation(options)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", remedy="Check the path after imagefolder:.")
    roots = {_FOLDERS[f.name]: f for f in sorted(folder.iterdir()) if f.is_dir() and f.name in _FOLDERS} or {
        "all": folder
    }
    classes = _classes(roots)
    found = {split: _images(root, classes) for split, root in roots.items()}
    files = [item for items in found.values() for item in items]
    if not files:
        raise InputError(
            f"{folder} holds no images.",
            remedy=f"Put one folder per class there, of {', '.join(sorted(_ENDINGS))} files.",
        )
    pools, start = {}, 0
    for split, items in found.items():
        pools[split], start = np.arange(start, start + len(items)), start + len(items)
    rows, notes, is_seen = allot(pools, np.array([label for _, label in files]))
    splits: dict[str, Any] = dict.fromkeys(SPLITS)
    for split, index in rows.items():
        paths, labels = [files[row][0] for row in index], [files[row][1] for row in index]
        splits[split] = FileSplit(paths, labels, batch_size, seed if split == "train" else None)
    return Data(name=f"imagefolder:{folder.name}", notes=notes, augment=augment, is_seen=is_seen, **splits)


def _classes(roots: dict[str, Path]) -> list[str]:
    named = {split: sorted(f.name for f in root.iterdir() if f.is_dir()) for split, root in roots.items()}
    classes = max(named.values(), key=len)
    for split, names in named.items():
        extra = sorted(set(names) - set(classes))
        if extra:
            raise InputError(
                f"Class folder {extra[0]!r} of {split} is missing elsewhere.",
                remedy="Give all splits the same classes.",
            )
    return classes


def _images(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    return [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in _ENDINGS
    ]
