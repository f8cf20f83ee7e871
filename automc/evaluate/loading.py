"""The data of a search, from what the user typed or gave in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automc.errors import InputError, UnknownNameError
from automc.evaluate.data import SPLITS, Data
from automc.evaluate.functions import call, is_function, load_function

__all__ = ["as_data", "load_data"]

_KINDS = ("digits", "npz:FILE", "imagefolder:DIR", "cifar10:DIR", "file.py:function")
_RETURNS = "Return (train, calibration, validation, test), a dictionary with those names, or (calibration, validation)."
_NO_TEST = "There is no test split: the reported score is on samples that guided the search."


def load_data(spec: str | None, batch_size: int, seed: int = 0) -> Data:
    """The data that `digits` (None), `npz:FILE`, `imagefolder:DIR`, `cifar10:DIR` or `file.py:function` names.

    npz and cifar10 take options after a question mark: `cifar10:DIR?mean=0.49,0.48,0.45&std=0.25,0.24,0.26`.

    Args:
        seed: of the order in which the training split is read. Which samples are in which split never depends on it.

    Raises:
        UnknownNameError: not one of these kinds; carries the closest match.
        InputError: the data is there but not usable: the message says which file and why.
        MissingError: what it needs is not installed.
    """
    if batch_size < 1:
        raise InputError(f"A batch size of {batch_size} is not possible.", remedy="Give --batch-size 1 or more.")
    kind, _, place = (spec or "digits").partition(":")
    place, _, query = place.partition("?")
    if kind == "digits" and not place:
        from automc.demo.digits import digits

        return digits(batch_size, seed)
    if kind in ("npz", "cifar10"):
        from automc.evaluate import arrays

        load = arrays.load_npz if kind == "npz" else arrays.load_cifar10
        return load(Path(place).expanduser(), _options(query), batch_size, seed)
    if kind == "imagefolder":
        from automc.evaluate.folders import load_imagefolder

        return load_imagefolder(Path(place).expanduser(), _options(query), batch_size, seed)
    if spec is not None and is_function(spec):
        returned = call(load_function(spec), spec, batch_size=batch_size, seed=seed)
        return returned if isinstance(returned, Data) else _of_loaders(returned, spec.rpartition("/")[2])
    raise UnknownNameError("data set", spec or "", _KINDS)


def as_data(value: Any, batch_size: int, seed: int = 0, name: str = "data") -> Data:
    """Data from what a Python user has: Data, a spec, four loaders (train, calibration, validation, test), a dictionary with those
    names, or two loaders (calibration, validation). Train and test may be None.

    Raises:
        InputError: it is none of these, or calibration or validation is missing.
    """
    if isinstance(value, Data):
        return value
    if value is None or isinstance(value, str):
        return load_data(value, batch_size, seed)
    return _of_loaders(value, name)


def _of_loaders(value: Any, name: str) -> Data:
    splits = _named(value, name)
    for split in ("calibration", "validation"):
        if splits.get(split) is None:
            raise InputError(f"{name} gives no {split} loader.", remedy=_RETURNS)
    for split, loader in splits.items():
        if loader is not None and (not hasattr(loader, "__iter__") or hasattr(loader, "__next__")):
            raise InputError(
                f"The {split} loader of {name} is of type {type(loader).__name__}, which cannot be read more than once.",
                remedy="Give a DataLoader or a list of batches.",
            )
    notes = () if splits.get("test") is not None else (_NO_TEST,)
    loaders: dict[str, Any] = {split: splits.get(split) for split in SPLITS}
    return Data(**loaders, name=name, notes=notes)


def _named(value: Any, name: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping) and set(value) <= set(SPLITS):
        return value
    if isinstance(value, (tuple, list)) and len(value) in (2, 4):
        return dict(zip(SPLITS if len(value) == 4 else SPLITS[1:3], value, strict=True))
    described = f"keys {sorted(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
    count = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    raise InputError(f"{name} is {described}{count}, not loaders.", remedy=_RETURNS)


def _options(query: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in query.split("&") if part]
    for name, equals, _ in pairs:
        if not equals:
            raise InputError(f"{name!r} after the question mark is not name=value.", remedy="Write ?mean=0.5&std=0.2.")
    return {name: value for name, _, value in pairs}
