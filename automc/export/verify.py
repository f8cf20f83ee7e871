"""Whether an exported file computes what the PyTorch model computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from automc.compression.quantize import quantized_layers
from automc.devices.device import Session
from automc.errors import AutomcError, InputError
from automc.outputs import tensors_of

__all__ = ["FLOAT_TOLERANCE", "INTEGER_TOLERANCE", "relative_error", "verify", "verify_dense"]

FLOAT_TOLERANCE = 1e-3
INTEGER_TOLERANCE = 0.1
"""Sums in another order may fall on the other side of a half, and layers behind spread that: 0.4 to 0.7 % over the images of a trained
ResNet-20, 3 % on a single image of a strongly compressed one, nearly nothing in the tests' networks. A fault of the export shows in tens of percent."""


def verify(session: Session, model: nn.Module, inputs: Sequence[Tensor]) -> float:
    """The relative error of the exported model on one batch of its size.

    Raises:
        AutomcError: it is beyond the tolerance: 0.001 for floating point, 0.1 where integer layers round.
    """
    with torch.inference_mode():
        expected = model(*inputs)
    found = [torch.from_numpy(array) for array in session.run(*(tensor.numpy() for tensor in inputs))]
    error = relative_error(found, expected)
    tolerance = INTEGER_TOLERANCE if quantized_layers(model) else FLOAT_TOLERANCE
    if not error <= tolerance:
        raise AutomcError(
            f"The exported model differs from the PyTorch model by {error:.2g} of its outputs (allowed: {tolerance:g}).",
            remedy="This is a fault of the export: please report it with the run's config.yaml.",
        )
    return error


def verify_dense(session: Session, model: nn.Module, batches: Iterable[Sequence[Tensor]]) -> None:
    """Whether the exported dense model follows the PyTorch model on other inputs than the one that it was exported with.

    Raises:
        InputError: it does not: the model's code takes another way for them.
    """
    for inputs in batches:
        with torch.inference_mode():
            expected = model(*inputs)
        try:
            found = session.run(*(tensor.numpy() for tensor in inputs))
        except Exception as failure:  # runtimes raise families of their own
            lines = str(failure).strip().splitlines() or [type(failure).__name__]
            raise InputError(
                f"The exported model does not run: {lines[0]}.",
                remedy="The runtime names the operator; replace what it comes from in the model's code, or take another --device.",
            ) from failure
        error = relative_error([torch.from_numpy(a) for a in found], expected)
        if not error <= FLOAT_TOLERANCE:
            raise InputError(
                f"The exported model differs from the PyTorch model by {error:.2g} of its outputs on calibration inputs: what the "
                "model's code does depends on the values of its input, and an export keeps the way that it took once.",
                remedy="Write the branches and loops over values without Python's if and for (torch.where, fixed lengths), or give "
                "the part that has none.",
            )


def relative_error(found: Any, expected: Any) -> float:
    """Root mean square of the difference over the root mean square of `expected`; infinite where shapes differ.

    Of several outputs the largest error; outputs of integers differ by the share of entries that do.
    """
    pairs = list(zip_longest(tensors_of(found), tensors_of(expected)))
    if any(a is None or b is None or a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(_relative_error(a, b) for a, b in pairs)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if not expected.is_floating_point():
        return float((found != expected).float().mean())
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-12))
