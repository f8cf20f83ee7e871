"""What a search is about: the data and the score, from what the user typed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automc.errors import InputError, UnknownNameError
from automc.evaluate.data import SPLITS, Data, Split, TensorSplit, call_model, inputs_of, sample_count, targets_of
from automc.evaluate.functions import call, is_function, load_function
from automc.outputs import logits_of

__all__ = ["Data", "Score", "Split", "TensorSplit", "accuracy", "as_data", "guess_warning", "inputs_of", "load_data", "load_score", "outputs_are_logits", "sample_count", "targets_of"]  # fmt: skip

_KINDS = ("digits", "npz:FILE", "imagefolder:DIR", "cifar10:DIR", "file.py:function")
_RETURNS = "Return (train, calibration, validation, test), a dictionary with those names, or (calibration, validation)."


@dataclass(frozen=True)
class Score:
    """A number for a model on a split, higher is better. Calling it checks that the number is one."""

    name: str
    function: Callable[[Callable[..., Any], Split], Any]

    @property
    def logits(self) -> bool:
        """Whether this is the built-in accuracy, which takes outputs for logits; a score of the user's own may or may not."""
        return self.function is accuracy

    @property
    def per_sample(self) -> Callable[[Any, Any], Tensor] | None:
        """(outputs, targets) of a batch -> (batch,) values from 0 to 1 whose mean over all samples is the score.

        A function of the user's own says so by an attribute of this name; None where it has none.
        """
        if self.logits:
            return right_share
        declared: Callable[[Any, Any], Tensor] | None = getattr(self.function, "per_sample", None)
        return declared

    def __call__(self, model: Callable[..., Any], loader: Split) -> float:
        """Score a model: anything that maps the batches' input tensors to the outputs.

        Raises:
            InputError: the score raises nothing but is not a finite number.
        """
        with torch.no_grad():
            value = self.function(model, loader)
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise InputError(f"{self.name} returned {value!r}.", remedy="Return one finite number, higher is better.")
        return score


def accuracy(model: Callable[..., Any], loader: Split) -> float:
    """Share (0..1) of targets (batch, ...) of class numbers that the largest of outputs (batch, classes, ...) gets right.

    Of several outputs the one called "logits" counts.

    Raises:
        InputError: the targets are not class numbers, or do not have the shape of the outputs without their classes.
    """
    right = total = 0
    for batch in loader:
        targets = _classes_of(batch)
        returned = call_model(model, batch)
        outputs = logits_of(returned)
        if outputs is None or outputs.ndim < 2 or outputs.argmax(1).shape != targets.shape:
            raise InputError(
                f"Accuracy cannot compare outputs {_shape(returned if outputs is None else outputs)} with targets {tuple(targets.shape)}.",
                remedy="Return logits (batch, classes), or give your own score with --evaluate file.py:function.",
            )
        right += int((outputs.argmax(1) == targets.to(outputs.device)).sum())
        total += targets.numel()
    if not total:
        raise InputError("There is nothing to score: the split is empty.", remedy="Give it at least one batch.")
    return right / total


def right_share(outputs: Tensor, targets: Tensor) -> Tensor:
    """(batch,) share of each sample's targets (batch, ...) that the largest of outputs (batch, classes, ...) gets right."""
    right = outputs.argmax(1) == targets.to(outputs.device)
    return right.float().view(len(targets), -1).mean(1)


def outputs_are_logits(data: Data, score: Callable[..., Any], returned: Any) -> bool:
    """Whether the softmax of a model's outputs (batch, ...) means something: a regression's outputs have the same shape.

    Of several outputs the one called "logits" is asked about; without it, they are none. The built-in accuracy settles it. With any other score, outputs (batch, classes) are logits where the first validation
    targets are (batch,) integers below the number of classes.
    """
    outputs = logits_of(returned)
    if outputs is None or outputs.ndim < 2 or outputs.shape[1] < 2:
        return False
    if getattr(score, "logits", False):
        return True
    targets = _first_targets(data)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex() or not targets.numel():
        return False
    in_range = int(targets.min()) >= 0 and int(targets.max()) < outputs.shape[1]
    return outputs.ndim == 2 and targets.ndim == 1 and in_range


def guess_warning(score: Callable[..., Any], value: float, returned: Any) -> str | None:
    """A sentence where the built-in accuracy of the dense model, which returned such outputs, is no better than guessing."""
    outputs = logits_of(returned) if getattr(score, "logits", False) else None
    if outputs is None or outputs.ndim < 2 or outputs.shape[1] < 2 or value > 1.0 / outputs.shape[1]:
        return None
    return (
        f"The dense model gets {100 * value:.2f} % of the validation samples right, no more than guessing among its"
        f" {outputs.shape[1]} classes would: its weights and the data probably do not belong together. Check --weights, the order"
        " of the classes, and that the inputs are normalised as in training."
    )


def _first_targets(data: Data) -> Any:
    """Targets of the first validation batch, None where there are none."""
    batch = next(iter(data.validation), None)
    try:
        return targets_of(batch)
    except InputError:
        return None


def load_score(spec: str | None) -> Score:
    """Top-1 accuracy, or the function of (model, loader) that `file.py:function` names.

    Raises:
        InputError: no such file or function.
        MissingError: the file imports what is not installed.
    """
    if spec is None or spec == "accuracy":
        return Score("accuracy", accuracy)
    if not is_function(spec):
        raise InputError(f"{spec!r} is not a score.", remedy="Write file.py:function, a function of (model, loader).")
    return Score(spec.rpartition(":")[2], load_function(spec))


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


_NO_TEST = "There is no test split: the reported score is on samples that guided the search."


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


def _classes_of(batch: Any) -> Tensor:
    targets = targets_of(batch)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        kind = str(targets.dtype) if isinstance(targets, Tensor) else type(targets).__name__
        raise InputError(
            f"Accuracy needs integer class targets, not {kind}.",
            remedy="Give your own score: --evaluate file.py:function.",
        )
    return targets


def _shape(outputs: Any) -> str:
    return f"of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"of type {type(outputs).__name__}"
