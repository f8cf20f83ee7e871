"""Which samples go where: makes the splits that a data set lacks, always the same ones, without overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from automc.errors import InputError
from automc.evaluate.data import stratified_order

__all__ = ["LIMITS", "Allotted", "Rows", "allot"]

Rows: TypeAlias = NDArray[np.int64]
LIMITS = {"calibration": 512, "validation": 1000, "test": 5000}
"""The most samples that a split made here takes: a search reads calibration once and validation for every trial."""
_SHARES = {"calibration": 0.10, "validation": 0.20, "test": 0.20}
_SEED = 0


class Allotted(NamedTuple):
    """Which rows are in which split, what to note about them, and whether validation may be of what a model was trained on."""

    rows: dict[str, Rows]
    notes: tuple[str, ...]
    is_seen: bool


def allot(pools: Mapping[str, Rows], labels: NDArray[Any]) -> Allotted:
    """Rows of each split, and what to note about them.

    What is given stays, but for what is taken to make a missing split: test from half of validation; validation from train, else
    from test; calibration from train, else from validation. A pool called "all" is divided 50 / 10 / 20 / 20, within LIMITS.

    Args:
        pools: split name, or "all" -> row numbers.
        labels: (n, ...) targets of all rows; with class labels, each split made holds the classes in proportion.

    Raises:
        InputError: too few rows to make the splits.
    """
    is_seen = ("train" in pools and "validation" not in pools) or "all" in pools
    left = {name: _shuffled(rows, labels) for name, rows in pools.items() if len(rows)}
    notes = _divide(left) if "all" in left else _complete(left)
    for name in ("calibration", "validation"):
        if not len(left.get(name, ())):
            raise InputError(f"The {name} split is empty.", remedy="Give more samples, or name the split of each one.")
    return Allotted({name: rows for name, rows in left.items() if len(rows)}, tuple(notes), is_seen)


def _divide(left: dict[str, Rows]) -> list[str]:
    rows = left["all"]
    for name, share in _SHARES.items():
        left[name], left["all"] = _cut(left["all"], min(LIMITS[name], round(share * len(rows))))
    left["train"] = left.pop("all")
    return [
        "The data names no splits, so they were drawn at random: a model trained on all of it has seen the test samples."
    ]


def _complete(left: dict[str, Rows]) -> list[str]:
    notes = []
    if "test" not in left and "validation" in left:
        left["test"], left["validation"] = _cut(left["validation"], len(left["validation"]) // 2)
        notes.append("There is no test split: half of the validation samples were set aside as one.")
    if "validation" not in left:
        source = _take("validation", ("train", "test"), left)
        notes.append(f"Validation samples were taken out of the {source} samples." + _SEEN.get(source, ""))
    if "calibration" not in left:
        _take("calibration", ("train", "validation"), left)
    if "test" not in left:
        notes.append("There is no test split: the reported score is on samples that guided the search.")
    return notes


_SEEN = {"train": " A model trained on them scores higher there than on new ones."}


def _take(name: str, sources: tuple[str, ...], left: dict[str, Rows]) -> str:
    """Cut a fifth, within LIMITS, off the first source that is there."""
    source = next((s for s in sources if s in left), sources[-1])
    rows = left.get(source, np.empty(0, np.int64))
    left[name], left[source] = _cut(rows, min(LIMITS[name], len(rows) // 5))
    return source


def _cut(rows: Rows, count: int) -> tuple[Rows, Rows]:
    return rows[:count], rows[count:]


def _shuffled(rows: Rows, labels: NDArray[Any]) -> Rows:
    chosen = labels[rows]
    if chosen.ndim == 1 and np.issubdtype(chosen.dtype, np.integer):
        return rows[stratified_order(chosen, _SEED)]
    return rows[np.random.RandomState(_SEED).permutation(len(rows))]
