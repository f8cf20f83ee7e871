"""The score of a model: the built-in accuracy, or a function of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from automc.errors import InputError
from automc.evaluate.data import Data, Split, call_model, targets_of
from automc.evaluate.functions import is_function, load_function
from automc.outputs import logits_of

__all__ = ["Score", "accuracy", "guess_warning", "load_score", "outputs_are_logits", "right_share"]


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


def outputs_are_logits(data: Data, score: Score, returned: Any) -> bool:
    """Whether the softmax of a model's outputs (batch, ...) means something: a regression's outputs have the same shape.

    Of several outputs the one called "logits" is asked about; without it, they are none. The built-in accuracy settles it. With any other score, outputs (batch, classes) are logits where the first validation
    targets are (batch,) integers below the number of classes.
    """
    outputs = logits_of(returned)
    if outputs is None or outputs.ndim < 2 or outputs.shape[1] < 2:
        return False
    if score.logits:
        return True
    targets = _first_targets(data)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex() or not targets.numel():
        return False
    in_range = int(targets.min()) >= 0 and int(targets.max()) < outputs.shape[1]
    return outputs.ndim == 2 and targets.ndim == 1 and in_range


def guess_warning(score: Score, value: float, returned: Any) -> str | None:
    """A sentence where the built-in accuracy of the dense model, which returned such outputs, is no better than guessing."""
    outputs = logits_of(returned) if score.logits else None
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
