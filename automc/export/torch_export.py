"""The compressed model as a torch.export program: rounding of integer layers kept as fake quantisation."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from automc.calling import input_names
from automc.errors import AutomcError, first_line
from automc.export.verify import FLOAT_TOLERANCE, relative_error
from automc.outputs import Outputs, flat_outputs

__all__ = ["build_pt2"]


def build_pt2(model: nn.Module, example: Sequence[Tensor]) -> bytes:
    """The bytes of a .pt2 file, loadable with `torch.export.load`, for inputs of the shapes of `example`.

    A model that is bound to keywords is called by them. Outputs in classes of the model's own become a flat tuple of tensors.

    Raises:
        AutomcError: torch.export cannot express the model, or the file computes something else on `example`.
    """
    buffer = io.BytesIO()
    names = input_names(model)
    args, kwargs = ((), dict(zip(names, example, strict=True))) if names else (tuple(example), {})
    with warnings.catch_warnings(), torch.no_grad():
        expected = model(*example)
        is_plain = Outputs.of(expected).is_plain
        warnings.simplefilter("ignore")
        try:
            with nullcontext() if is_plain else flat_outputs(model):
                program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise AutomcError(
                f"torch.export cannot express the model: {first_line(error)}.", remedy="Export it as ONNX."
            ) from error
        _store_empty_tensors_alone(program)
        torch.export.save(program, buffer)
        buffer.seek(0)
        difference = relative_error(torch.export.load(buffer).module()(*args, **kwargs), expected)
    if not difference <= FLOAT_TOLERANCE:
        raise AutomcError(
            f"The pt2 file differs from the PyTorch model by {difference:.2g} of its outputs (allowed: {FLOAT_TOLERANCE:g}).",
            remedy="Export it as ONNX; models whose output is random, or depends on what they saw before, cannot be kept.",
        )
    return buffer.getvalue()


def _store_empty_tensors_alone(program: torch.export.ExportedProgram) -> None:
    """Give tensors without elements a storage of their own.

    Those that came through NumPy or from another process have one that is not empty, and torch.export.save, which asks such a tensor where in
    its storage it lies and is told 0, fails with "numel: integer multiplication overflow".
    """
    for tensors in (program.state_dict, program.constants):
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor) and not tensor.numel():
                alone = torch.empty_like(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                tensors[name] = nn.Parameter(alone, tensor.requires_grad) if is_parameter else alone
