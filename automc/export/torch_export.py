"""The compressed model as a torch.export program: rounding of integer layers kept as fake quantisation."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from automc.errors import AutomcError

__all__ = ["build_pt2"]


def build_pt2(model: nn.Module, example: Sequence[Tensor]) -> bytes:
    """The bytes of a .pt2 file, loadable with `torch.export.load`, for inputs of the shapes of `example`.

    Raises:
        AutomcError: torch.export cannot express the model.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, tuple(example), strict=False)
        except Exception as error:
            raise AutomcError(
                f"torch.export cannot express the model: {str(error).splitlines()[0]}.", remedy="Export it as ONNX."
            ) from error
        torch.export.save(program, buffer)
    return buffer.getvalue()
