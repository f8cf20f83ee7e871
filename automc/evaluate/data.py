"""Data: the four splits a search reads, as plain re-iterables of (inputs, targets) batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.errors import InputError

__all__ = [
    "ONE_SIZE", "SPLITS", "Data", "Split", "TensorSplit", "call_model", "gather", "inputs_of", "names_of", "sample_count", "stratified_order",
    "targets_of",
]  # fmt: skip

SPLITS = ("train", "calibration", "validation", "test")
Split: TypeAlias = Iterable[Any]
TARGETS = ("labels", "label", "targets", "target")
"""The keys of a batch with names under which its targets stand; all other tensors are inputs."""
ONE_SIZE = "Resize or pad them to one size: a model is compressed for, and measured at, one input size."
"""What to do with samples that differ in size."""
_READS = 4
"""So many reads of a few samples tell a split that changes, even if each sample changes only half of the time."""


@dataclass(frozen=True)
class Data:
    """The splits of a data set, each an iterable of (inputs, targets) batches that can be read again and again.

    Attributes:
        train: what recovery distils on (its inputs alone); None when there is none, calibration serves then.
        calibration: what ranges and moments are taken from (its inputs alone).
        validation: what guides the search.
        test: what nothing was chosen by; None when there is none, and the reported score is the validation score then.
        augment: a random change of a batch of inputs that keeps their meaning, for recovery.
        notes: what a reader of the scores has to know about the splits, one sentence each.
        is_seen: a model trained on the data may have been trained on the validation samples.
    """

    train: Split | None
    calibration: Split
    validation: Split
    test: Split | None
    name: str
    augment: Callable[[Tensor], Tensor] | None = None
    notes: tuple[str, ...] = ()
    is_seen: bool = False

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that tell data sets apart: the sizes of the splits, and a few samples of each but train.

        Training samples are usually augmented at random, so they never read the same twice; of another split that does not
        either, the size alone counts too.
        """
        digest = hashlib.sha256(self.name.encode())
        for name, split in self.splits.items():
            digest.update(f"{name}:{sample_count(split)}".encode())
            if name == "train":
                continue
            reads = {_fingerprint(split) for _ in range(_READS)}
            if len(reads) == 1:
                digest.update(reads.pop())
        return digest.hexdigest()[:16]

    @property
    def splits(self) -> Mapping[str, Split]:
        """The splits that are there, by name, in the order of SPLITS."""
        named = {name: getattr(self, name) for name in SPLITS}
        return {name: split for name, split in named.items() if split is not None}

    def changed(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A batch of inputs after a random change by `augment`, as they are where there is none; token numbers have no crops."""
        if self.augment is None or not inputs[0].is_floating_point():
            return inputs
        return self.augment(inputs[0]), *inputs[1:]

    def example(self) -> tuple[Tensor, ...]:
        """The first batch of calibration inputs, in the order of `input_names` where they have names.

        Raises:
            InputError: the calibration split is empty, or its batches hold no tensors.
        """
        return inputs_of(self._first())

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """The keywords that the model takes its inputs by, where batches are dictionaries; none where it takes them in order.

        Raises:
            InputError: as `example`.
        """
        return names_of(self._first())

    def _first(self) -> Any:
        batch = next(iter(self.calibration), None)
        if batch is None:
            raise InputError("The calibration split is empty.", remedy="Give it at least one batch of inputs.")
        return batch


class TensorSplit:
    """Samples in memory, cut into batches; the last batch may be smaller.

    x (n, ...) and y (n,) may stay uint8 or on disk (memory-mapped): only the rows of a batch are gathered and transformed.

    Args:
        transform: gathered rows of x (batch, ...) -> model inputs; None takes them as they are.
        index: (m,) rows of x and y that form the split, in order; None takes all.
        shuffle_seed: when given, every pass reads the rows in a new random order, the same orders for the same seed.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        transform: Callable[[Tensor], Tensor] | None = None,
        *,
        index: Tensor | None = None,
        shuffle_seed: int | None = None,
    ) -> None:
        if len(x) != len(y):
            raise InputError(f"There are {len(x)} samples but {len(y)} targets.", remedy="Give one target per sample.")
        self.x, self.y, self.batch_size = x, y, batch_size
        self._transform = transform
        self.index = torch.arange(len(x)) if index is None else index
        self._generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.index
        if self._generator is not None:
            order = order[torch.randperm(self.samples, generator=self._generator)]
        for rows in order.split(self.batch_size) if self.samples else ():
            yield self.rows(rows)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.index)

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the given rows of x and y, transformed."""
        x = self.x[rows]
        return (x if self._transform is None else self._transform(x)), self.y[rows]


def inputs_of(batch: Any) -> tuple[Tensor, ...]:
    """The model's inputs in a batch: a tensor; (inputs, targets); (first, second, targets); ((first, second), targets); a
    dictionary of tensors, or (dictionary, targets), in the order of `names_of`.

    Raises:
        InputError: the batch is none of these.
    """
    if isinstance(batch, Tensor):
        return (batch,)
    names = names_of(batch)
    if names:
        named = _named(batch)
        return tuple(named[name] for name in names)
    if isinstance(batch, (tuple, list)) and batch:
        inputs = batch[0] if isinstance(batch[0], (tuple, list)) else batch[: max(1, len(batch) - 1)]
        if inputs and all(isinstance(value, Tensor) for value in inputs):
            return tuple(inputs)
    raise InputError(
        f"A batch of the data is a {_describe(batch)}, not tensors.",
        remedy="Let the loader yield (inputs, targets), both tensors; several inputs as ((first, second), targets), or as a "
        "dictionary of the model's keywords.",
    )


def names_of(batch: Any) -> tuple[str, ...]:
    """The keywords of the inputs in a batch that is a dictionary, or (dictionary, targets), sorted; none in any other batch."""
    named = _named(batch)
    return tuple(sorted(key for key, value in named.items() if isinstance(value, Tensor) and key not in TARGETS))


def call_model(model: Callable[..., Any], batch: Any) -> Any:
    """What the model returns for a batch, its inputs given by keyword where they have names."""
    names, inputs = names_of(batch), inputs_of(batch)
    return model(**dict(zip(names, inputs, strict=True))) if names else model(*inputs)


def _named(batch: Any) -> Mapping[str, Any]:
    """The dictionary of a batch, empty where there is none."""
    inner = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    return inner if isinstance(inner, Mapping) else {}


def targets_of(batch: Any) -> Any:
    """The last item of a batch of two or more; what a dictionary holds under one of TARGETS.

    Raises:
        InputError: the batch holds inputs alone.
    """
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[-1]
    found = [batch[key] for key in TARGETS if key in batch] if isinstance(batch, Mapping) else []
    if found:
        return found[0]
    raise InputError(
        "The data has no targets, so it cannot be scored.", remedy="Let the loader yield (inputs, targets) batches."
    )


def gather(split: Iterable[Any], count: int) -> tuple[Tensor, ...]:
    """The first `count` samples of the inputs of a split (fewer where there are fewer), one tensor per model input.

    Raises:
        InputError: samples of different sizes among them.
    """
    batches: list[tuple[Tensor, ...]] = []
    seen = 0
    for batch in split:
        batches.append(inputs_of(batch))
        first, size = (
            " and ".join(str(tuple(each.shape[1:])) for each in found) for found in (batches[0], batches[-1])
        )
        if size != first:
            raise InputError(f"The samples differ in size: {first}, then {size}.", remedy=ONE_SIZE)
        seen += len(batches[-1][0])
        if seen >= count:
            break
    return tuple(torch.cat(tensors)[:count] for tensors in zip(*batches, strict=True))


def sample_count(split: Split) -> int | None:
    """Number of samples of a split where it can be told without reading it."""
    if hasattr(split, "samples"):
        return int(split.samples)
    source: Any = getattr(split, "dataset", None)
    return len(source) if hasattr(source, "__len__") else None


def stratified_order(labels: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """(n,) class labels -> (n,) row numbers in a random order of which every stretch holds the classes in proportion.

    RandomState, whose streams NumPy keeps for ever, so that a split is the same on every machine.
    """
    random = np.random.RandomState(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        position[rows] = (np.arange(len(rows)) + random.uniform()) / len(rows)
    return np.argsort(position, kind="stable")


def _fingerprint(split: Split) -> bytes:
    """A few samples that do not depend on the order of reading where the split can be indexed, else its first batch."""
    source: Any = getattr(split, "dataset", None)
    batches: Iterable[Any]
    if isinstance(split, TensorSplit):
        batches = [split.rows(split.index[:: max(1, split.samples // 8)])]
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        batches = [source[row] for row in sorted({0, len(source) // 2, len(source) - 1}) if row >= 0]
    else:
        batches = islice(split, 1)
    arrays = (value.detach().cpu().contiguous().numpy() for value in _tensors(list(batches)))
    return b"".join(f"{array.dtype}{array.shape}".encode() + array.tobytes() for array in arrays)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)
    elif isinstance(value, (int, float)):
        yield torch.tensor(value)


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"dictionary of {', '.join(map(str, batch)) or 'nothing'}"
    if isinstance(batch, (tuple, list)):
        return f"{type(batch).__name__} of {', '.join(type(value).__name__ for value in batch) or 'nothing'}"
    return type(batch).__name__
