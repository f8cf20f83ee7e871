"""What is wrong with what a model returns, as (sentence, remedy), and None where nothing is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from automc.errors import InputError
from automc.outputs import Outputs, tensors_of

__all__ = ["output_fault", "repeat_fault", "shape_fault"]

_HEADS = "Wrap it so that its forward returns the raw outputs of its head, of all boxes, and let the score function decode them."
_NOISE = 1e-3
"""Difference of two runs on the same inputs, relative to the largest output, that is more than rounding."""


def output_fault(outputs: Any, count: int) -> tuple[str, str] | None:
    """Outputs have to be tensors, in any structure, with one finite entry for each of `count` samples."""
    one_each = isinstance(outputs, (list, tuple)) and len(outputs) == count > 0
    if one_each and all(isinstance(each, Mapping) for each in outputs):
        return "The model returns one dictionary per sample, of as many detections as it finds.", _HEADS
    try:
        structure = Outputs.of(outputs)
    except InputError as error:
        return str(error).removesuffix(error.remedy).strip(), error.remedy
    for name, tensor in zip(structure.names, tensors_of(outputs), strict=True):
        what = "" if len(structure.names) == 1 else f" as {name}"
        if tensor.ndim == 0 or len(tensor) != count:
            remedy = "Return one output per sample, in the first dimension."
            return f"The model returns shape {tuple(tensor.shape)}{what} for {count} samples.", remedy
        if not bool(torch.isfinite(tensor).all()):
            remedy = "Check its weights, and that the inputs are normalised as in training."
            return f"The model returns NaN or infinite values{what}.", remedy
    return None


def repeat_fault(outputs: Any, again: Any) -> tuple[str, str] | None:
    """The same inputs have to give the same outputs, or no file could be checked against the model."""
    for first, second in zip(tensors_of(outputs), tensors_of(again), strict=True):
        scale = float(first.abs().max()) if first.numel() else 0.0
        if first.shape != second.shape or float((first.double() - second.double()).abs().max()) > _NOISE * scale:
            remedy = "Turn off what is random, or remembers, in evaluation mode."
            return "The model returns different outputs when it runs twice on the same inputs.", remedy
    return None


def shape_fault(outputs: Any, part: Any) -> tuple[str, str] | None:
    """Fewer samples have to give outputs of the same shape per sample."""
    for all_, some in zip(tensors_of(outputs), tensors_of(part), strict=False):
        if all_.shape[1:] != some.shape[1:]:
            shapes = f"{tuple(all_.shape[1:])} and {tuple(some.shape[1:])}"
            return f"The shape of the model's outputs depends on its inputs ({shapes} per sample).", _HEADS
    return None
