"""Splits in memory, what is in a batch, and the digest that tells data sets apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from automc.errors import InputError
from automc.evaluate.data import SPLITS, Data, TensorSplit, inputs_of, sample_count, stratified_order, targets_of
from automc.evaluate.splits import LIMITS, allot

X, Y = torch.arange(10.0).view(10, 1), torch.arange(10) % 2


def test_a_split_can_be_read_again_and_ends_with_a_smaller_batch() -> None:
    split = TensorSplit(X, Y, 4)
    for _ in range(2):
        assert [len(x) for x, _ in split] == [4, 4, 2]
    assert len(split) == 3
    assert split.samples == 10


def test_only_the_indexed_rows_are_read_and_transformed() -> None:
    split = TensorSplit(X, Y, 4, lambda x: x + 100, index=torch.tensor([7, 3]))
    ((x, y),) = split
    assert x.flatten().tolist() == [107, 103]
    assert y.tolist() == [1, 1]


def test_a_shuffled_split_reads_other_orders_and_the_same_for_the_same_seed() -> None:
    def orders(seed: int) -> list[list[float]]:
        split = TensorSplit(X, Y, 10, shuffle_seed=seed)
        return [next(iter(split))[0].flatten().tolist() for _ in range(3)]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    assert orders(1)[0] != orders(1)[1]
    assert sorted(orders(1)[0]) == X.flatten().tolist()


def test_an_empty_split_has_no_batches() -> None:
    assert list(TensorSplit(X, Y, 4, index=torch.empty(0, dtype=torch.long))) == []


def test_as_many_targets_as_samples_are_needed() -> None:
    with pytest.raises(InputError, match="10 samples but 9 targets"):
        TensorSplit(X, Y[:9], 4)


@pytest.mark.parametrize(
    ("batch", "count"), [(X, 1), ([X], 1), ((X, Y), 1), ((X, X, Y), 2), (((X, X), Y), 2), ([X, "name"], 1)]
)
def test_inputs_are_what_stands_before_the_targets(batch: object, count: int) -> None:
    inputs = inputs_of(batch)
    assert len(inputs) == count
    assert all(tensor is X for tensor in inputs)


@pytest.mark.parametrize("batch", [{"x": "text", "labels": Y}, (), "text", (1, 2), ((X, 3), Y), ((), Y)])
def test_a_batch_without_tensors_says_what_to_yield(batch: object) -> None:
    with pytest.raises(InputError, match=r"yield \(inputs, targets\)"):
        inputs_of(batch)


def test_targets_are_the_last_item() -> None:
    assert targets_of((X, Y)) is Y
    with pytest.raises(InputError, match="no targets"):
        targets_of(X)


def test_sizes_are_told_without_reading() -> None:
    assert sample_count(TensorSplit(X, Y, 4)) == 10
    assert sample_count(DataLoader(TensorDataset(X, Y), batch_size=3)) == 10
    assert sample_count([(X, Y)]) is None


def data_of(x: torch.Tensor, name: str = "data") -> Data:
    """The same samples in every split."""
    return Data(TensorSplit(x, Y, 4, shuffle_seed=0), TensorSplit(x, Y, 4), [(x, Y)], None, name)


def test_the_digest_tells_contents_apart_and_does_not_depend_on_reading() -> None:
    data = data_of(X)
    list(data.train or ())
    assert data.digest == data_of(X).digest
    assert data.digest != data_of(X + 1).digest
    assert data.digest != data_of(X, "other").digest
    assert len(data.digest) == 16


def test_a_shuffling_loader_does_not_change_the_digest() -> None:
    def digest() -> str:
        loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
        return Data(loader, loader, loader, None, "loader").digest

    assert digest() == digest()


class Augmented(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples that read differently each time."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return X[row] + torch.rand(1), Y[row]


@pytest.mark.parametrize("augmented", ["train", "calibration", "validation", "test"])
def test_random_augmentation_does_not_change_the_digest(augmented: str) -> None:
    def digest(offset: float) -> str:
        plain = DataLoader(TensorDataset(X + offset, Y), batch_size=3)
        splits: dict[str, Any] = {**dict.fromkeys(SPLITS, plain), augmented: DataLoader(Augmented(), batch_size=3)}
        return Data(**splits, name="data").digest

    assert digest(0.0) == digest(0.0)
    assert digest(0.0) != digest(1.0)


def test_the_size_of_the_train_split_is_part_of_the_digest() -> None:
    def digest(count: int) -> str:
        return Data(TensorSplit(X[:count], Y[:count], 4), [(X, Y)], [(X, Y)], None, "data").digest

    assert digest(10) != digest(9)


def test_the_example_is_the_first_calibration_batch() -> None:
    assert data_of(X).example()[0].flatten().tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="calibration split is empty"):
        Data(None, [], [(X, Y)], None, "empty").example()


def test_every_stretch_of_a_stratified_order_holds_the_classes_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = stratified_order(labels, seed=3)
    assert sorted(order.tolist()) == list(range(1000))
    for start in range(0, 1000, 100):
        counts = np.bincount(labels[order[start : start + 100]], minlength=3)
        assert np.abs(counts - [60, 30, 10]).max() <= 2


LABELS = np.arange(100) % 4


def pools(**sizes: int) -> dict[str, np.ndarray]:
    """Consecutive row numbers for each pool."""
    ends = np.cumsum(list(sizes.values()))
    return {name: np.arange(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


@pytest.mark.parametrize(
    ("given", "made", "note"),
    [
        ({"all": 100}, {"train": 50, "calibration": 10, "validation": 20, "test": 20}, "drawn at random"),
        ({"train": 70, "test": 30}, {"train": 45, "calibration": 11, "validation": 14, "test": 30}, "out of the train"),
        ({"train": 60, "validation": 40}, {"train": 48, "calibration": 12, "validation": 20, "test": 20}, "half"),
        ({"validation": 60, "test": 40}, {"calibration": 12, "validation": 48, "test": 40}, None),
        ({"test": 100}, {"calibration": 4, "validation": 16, "test": 80}, "out of the test"),
        ({"train": 100}, {"train": 64, "calibration": 16, "validation": 20}, "no test split"),
        ({"train": 40, "calibration": 20, "validation": 20, "test": 20}, None, None),
    ],
)
def test_missing_splits_are_made_without_overlap(
    given: dict[str, int], made: dict[str, int] | None, note: str | None
) -> None:
    rows, notes, is_seen = allot(pools(**given), LABELS)
    assert {name: len(chosen) for name, chosen in rows.items()} == (made or given)
    everything = np.concatenate(list(rows.values()))
    assert len(np.unique(everything)) == len(everything) == 100
    assert note in " ".join(notes) if note else notes == ()
    assert is_seen == ("validation" not in given and given != {"test": 100})


def test_splits_are_the_same_every_time() -> None:
    first, second = (allot(pools(all=100), LABELS).rows for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_splits_that_are_read_often_stay_small() -> None:
    rows, *_ = allot(pools(all=50_000), np.zeros(50_000))
    assert {name: len(rows[name]) for name in LIMITS} == LIMITS


@pytest.mark.parametrize("given", [{"all": 0}, {"all": 2}, {"train": 3}, {"calibration": 5}])
def test_too_few_samples_say_which_split_is_empty(given: dict[str, int]) -> None:
    with pytest.raises(InputError, match="empty"):
        allot(pools(**given), LABELS)
