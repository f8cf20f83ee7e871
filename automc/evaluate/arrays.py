"""Data sets in arrays: `npz:FILE`, and the official binary batches of CIFAR-10, `cifar10:DIR`."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from automc.errors import InputError
from automc.evaluate.data import SPLITS, Data, TensorSplit
from automc.evaluate.splits import Allotted, Rows, allot

__all__ = [
    "AUGMENTATIONS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Normalize",
    "augmentation",
    "crop_and_flip",
    "load_cifar10",
    "load_npz",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Normalize:
    """Images (batch, h, w, c) or (batch, c, h, w) -> (batch, c, h, w) float: bytes to 0..1, then (x - mean) / std per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        images = images.movedim(-1, 1) if self.channels_last else images
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        shape = (-1,) + (1,) * (images.ndim - 2)
        return ((scaled - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)).contiguous()


def crop_and_flip(inputs: Tensor) -> Tensor:
    """(batch, c, h, w) -> the same, each image shifted by up to 4 pixels (zeros move in), and mirrored or not."""
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, count, 1))
    across = torch.arange(width).expand(count, -1)
    across = torch.where(torch.rand(count, 1) < 0.5, across.flip(1), across) + left
    down = torch.arange(height) + top
    image = torch.arange(count).view(-1, 1, 1)
    return padded.movedim(1, -1)[image, down[:, :, None], across[:, None, :]].movedim(-1, 1).contiguous()


AUGMENTATIONS: Mapping[str, Callable[[Tensor], Tensor] | None] = {"none": None, "crop_flip": crop_and_flip}
"""What `?augment=` may say."""


def augmentation(options: Mapping[str, str], default: str = "none") -> Callable[[Tensor], Tensor] | None:
    """How the images that recovery trains on are changed.

    Raises:
        InputError: not one of AUGMENTATIONS.
    """
    name = options.get("augment", default)
    if name not in AUGMENTATIONS:
        raise InputError(f"There is no augmentation called {name!r}.", remedy=f"Known: {', '.join(AUGMENTATIONS)}.")
    return AUGMENTATIONS[name]


def load_npz(path: Path, options: Mapping[str, str], batch_size: int, seed: int) -> Data:
    """x uint8 (n, h, w, c), normalised like ImageNet if it has three channels and scaled to 0..1 if not, or float
    (n, ...) or token numbers (n, length), taken as they are; y (n, ...), where false and true are 0 and 1; optional split (n,) of names or numbers, in the order of SPLITS.

    Args:
        options: `mean` and `std`, one number per channel, replace the normalisation; `augment=crop_flip` shifts and mirrors
            images for recovery, which by default takes them as they are.

    Raises:
        InputError: not an npz file, an array is missing, or their shapes or types do not fit.
    """
    arrays = _read_npz(path)
    x, y = arrays["x"], arrays["y"]
    y = y.astype(np.int64) if y.dtype == np.bool_ else y
    if len(x) != len(y) or not len(x):
        raise InputError(
            f"{path} holds {len(x)} samples (x) and {len(y)} targets (y).", remedy="Give one y for each x."
        )
    transform = _transform_of(x, {name: text for name, text in options.items() if name != "augment"}, path)
    augment = augmentation(options)
    if augment is not None and x.ndim != 4:
        raise InputError(f"x in {path} has no images to crop or mirror.", remedy="Leave augment= out.")
    pools = _named_rows(arrays["split"], len(x), path) if "split" in arrays else {"all": np.arange(len(x))}
    allotted = allot(pools, y)
    inputs = torch.from_numpy(_as_inputs(x))
    targets = torch.from_numpy(y.astype(np.int64 if np.issubdtype(y.dtype, np.integer) else np.float32))
    return _data(f"npz:{path.name}", inputs, targets, allotted, batch_size, seed, transform, augment)


def load_cifar10(folder: Path, options: Mapping[str, str], batch_size: int, seed: int) -> Data:
    """The training batches that are there and the test batch: inputs (batch, 3, 32, 32), targets 0..9.

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).

    Args:
        options: `mean` and `std`, three numbers each, replace ImageNet's; `augment=none` turns shifting and mirroring for
            recovery off.

    Raises:
        InputError: no folder, no batch in it, or a file that is not whole records of 3,073 bytes.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", remedy="Point cifar10: at cifar-10-batches-bin.")
    train = [_read_records(path) for path in sorted(folder.glob("data_batch_*.bin"))]
    test = [_read_records(path) for path in sorted(folder.glob("test_batch.bin"))]
    if not train and not test:
        raise InputError(
            f"{folder} holds no data_batch_*.bin or test_batch.bin.", remedy="Unpack cifar-10-binary.tar.gz there."
        )
    records = np.concatenate([*train, *test])
    split = sum(map(len, train))
    everything = np.arange(len(records))
    pools = {"train": everything[:split], "test": everything[split:]} if train else {"all": everything}
    labels = records[:, 0].astype(np.int64)
    allotted = allot(pools, labels)
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
    augment = augmentation(options, "crop_flip")
    transform = _normalize(
        {name: text for name, text in options.items() if name != "augment"}, 3, (IMAGENET_MEAN, IMAGENET_STD)
    )
    return _data(
        "cifar10",
        images,
        torch.from_numpy(labels),
        allotted,
        batch_size,
        seed,
        transform,
        augment,
    )


def _data(
    name: str,
    x: Tensor,
    y: Tensor,
    allotted: Allotted,
    batch_size: int,
    seed: int,
    transform: Any,
    augment: Callable[[Tensor], Tensor] | None,
) -> Data:
    splits: dict[str, Any] = dict.fromkeys(SPLITS)
    for split, numbers in allotted.rows.items():
        shuffle = seed if split == "train" else None
        index = torch.from_numpy(np.ascontiguousarray(numbers))
        splits[split] = TensorSplit(x, y, batch_size, transform, index=index, shuffle_seed=shuffle)
    return Data(name=name, augment=augment, notes=allotted.notes, is_seen=allotted.is_seen, **splits)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise InputError(f"There is no file {path}.", remedy="Check the path after npz:.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "y", "split") if name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is not an npz file of plain arrays ({error}).", remedy="Write it with numpy.savez."
        ) from error
    missing = [name for name in ("x", "y") if name not in arrays]
    if missing:
        raise InputError(
            f"{path} has no array called {missing[0]!r}.", remedy="Save it with numpy.savez(file, x=..., y=...)."
        )
    return arrays


def _as_inputs(x: NDArray[Any]) -> NDArray[Any]:
    """Images of bytes as they are, other integers (token numbers) as int64, anything else as float32."""
    if x.dtype == np.uint8 and x.ndim == 4:
        return x
    return x.astype(np.int64 if np.issubdtype(x.dtype, np.integer) else np.float32, copy=False)


def _transform_of(x: NDArray[Any], options: Mapping[str, str], path: Path) -> Normalize | None:
    if x.dtype == np.uint8 and x.ndim == 4:
        return _normalize(options, x.shape[-1], channels_last=True)
    if np.issubdtype(x.dtype, np.floating) and x.ndim >= 2:
        return _normalize(options, x.shape[1], ((0.0,), (1.0,))) if options else None
    if np.issubdtype(x.dtype, np.integer) and x.ndim == 2 and not options:
        return None
    raise InputError(
        f"x in {path} is {x.dtype} of shape {x.shape}.",
        remedy="It has to be uint8 (n, h, w, c) or float (n, c, h, w), or token numbers (n, length).",
    )


def _normalize(
    options: Mapping[str, str], channels: int, default: Any = None, *, channels_last: bool = False
) -> Normalize:
    if default is None:
        default = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,), (1.0,))
    unknown = sorted(set(options) - {"mean", "std"})
    if unknown:
        raise InputError(f"{unknown[0]!r} is not an option of this data.", remedy="Known options: mean, std, augment.")
    mean, std = (
        _numbers(options[n], n, channels) if n in options else d for n, d in zip(("mean", "std"), default, strict=True)
    )
    if min(std) <= 0:
        raise InputError(
            "A std of zero or below divides by nothing.", remedy="Give the standard deviation per channel."
        )
    return Normalize(mean, std, channels_last)


def _numbers(text: str, name: str, channels: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"{name}={text} is not numbers.", remedy="Write them as mean=0.49,0.48,0.45.") from None
    if len(numbers) not in (1, channels):
        raise InputError(
            f"{name} has {len(numbers)} numbers for {channels} channels.", remedy="Give one per channel, or one."
        )
    return numbers


def _named_rows(split: NDArray[Any], count: int, path: Path) -> dict[str, Rows]:
    if split.shape != (count,):
        raise InputError(f"split in {path} has shape {split.shape} for {count} samples.", remedy="Give one name each.")
    if np.issubdtype(split.dtype, np.integer) and split.min() >= 0 and split.max() < len(SPLITS):
        split = np.array(SPLITS)[split]
    unknown = sorted(set(split.tolist()) - set(SPLITS), key=str)
    if unknown:
        raise InputError(f"{unknown[0]!r} in {path} is not a split.", remedy=f"Use {', '.join(SPLITS)}, or 0 to 3.")
    return {name: np.flatnonzero(split == name) for name in SPLITS}


def _read_records(path: Path) -> NDArray[np.uint8]:
    """(n, 3073) bytes: label, then red, green and blue planes of 1,024."""
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % _RECORD or data[::_RECORD].max() > 9:
        raise InputError(f"{path} is not a CIFAR-10 batch of {_RECORD}-byte records.", remedy="Use the binary version.")
    return data.reshape(-1, _RECORD)
