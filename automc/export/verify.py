"""Whether an exported file computes what the PyTorch model computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from automc.compression.quantize import quantized_layers
from automc.devices.device import Session
from automc.errors import AutomcError

__all__ = ["FLOAT_TOLERANCE", "INTEGER_TOLERANCE", "relative_error", "verify"]

FLOAT_TOLERANCE = 1e-3
INTEGER_TOLERANCE = 0.1
"""Integer layers round what PyTorch only simulates: their outputs differ by a few rounding steps (1% in the tests' networks)."""


def verify(session: Session, model: nn.Module, inputs: Sequence[Tensor]) -> float:
    """The relative error of the exported model on one batch of its size.

    Raises:
        AutomcError: it is beyond the tolerance: 0.001 for floating point, 0.1 where integer layers round.
    """
    with torch.inference_mode():
        expected = model(*inputs)
    found = torch.from_numpy(session.run(*(tensor.numpy() for tensor in inputs))[0])
    error = relative_error(found, expected)
    tolerance = INTEGER_TOLERANCE if quantized_layers(model) else FLOAT_TOLERANCE
    if not error <= tolerance:
        raise AutomcError(
            f"The exported model differs from the PyTorch model by {error:.2g} of its outputs (allowed: {tolerance:g}).",
            remedy="This is a fault of the export: please report it with the run's config.yaml.",
        )
    return error


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over the root mean square of `expected`; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-12))
