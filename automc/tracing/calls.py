"""How the layers of a model are called: one forward pass, recorded, and another on inputs that have nothing of the first."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from automc.calling import protect_inputs
from automc.errors import AutomcError, InputError
from automc.outputs import Outputs

__all__ = ["LAYERS", "Call", "run_and_record", "unchanging"]

LAYERS = (nn.Conv2d, nn.Linear, nn.RNNBase)
"""Layers that can be compressed by more than the channels that pass through them."""


@dataclass
class Call:
    """How one layer was called in the example forward pass.

    Attributes:
        samples: how many the example held; 1 of a layer that reads the same whatever the example is.
        shapes: of each call what it read and what it wrote, where that can be told, samples moved to the front.
        read: of each such call a number that tells apart what it read.
    """

    samples: int
    is_followed: bool = True
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    count: int = 0

    def per_sample(self, number: int, *, channels_last: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of a call for one sample; windows or frames that were merged into the batch are among its positions."""
        here, there = (self._of_sample(shape, channels_last) for shape in self.shapes[number])
        return here, there

    def _of_sample(self, shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
        times, *rest = shape
        times = max(1, round(times / self.samples))
        if times == 1:
            return tuple(rest)
        return (times, *rest) if channels_last else (*rest[:-1], times * rest[-1])


def run_and_record(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[dict[str, Call], Outputs]:
    """How each layer is called, and what the model returns. A model that writes into its inputs gets copies from now on."""
    layers = [name for name, module in model.named_modules() if isinstance(module, (*LAYERS, _ConvNd))]
    calls = {name: Call(len(example[0])) for name in layers}

    def record(call: Call, module: nn.Module, inputs: Sequence[Any], named: Sequence[Any], output: Any) -> None:
        call.count += 1
        recurrent = isinstance(module, nn.RNNBase)
        call.is_followed = bool(inputs) and isinstance(inputs[0], Tensor) and (not recurrent or inputs[0].dim() == 3)
        read = next((one for one in (*inputs, *named) if isinstance(one, Tensor)), None)
        written = output[0] if isinstance(output, tuple) else output
        if read is None or not isinstance(written, Tensor) or (recurrent and read.dim() != 3):
            return
        batch = 1 if recurrent and not module.batch_first else 0
        here, there = (tuple(tensor.movedim(batch, 0).shape) for tensor in (read, written))
        call.shapes.append((here, there))
        call.read.append(_fingerprint(read))

    given = tuple(tensor.clone() for tensor in example)
    try:
        with torch.no_grad(), _watched(model, calls, record):
            output = model(*given)
    except AutomcError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
        raise InputError(
            f"The model does not run on an input of shape {shapes}: {error}",
            remedy="Check that the model and its inputs belong together.",
        ) from error
    if not all(torch.equal(now, before) for now, before in zip(given, example, strict=True)):
        protect_inputs(model)
    return calls, Outputs.of(output)


@contextmanager
def _watched(model: nn.Module, calls: Mapping[str, Call], record: Callable[..., None]) -> Iterator[None]:
    """Have `record` told of each call of the layers: what is noted of it, the module, its inputs, those by keyword, and its output."""
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda m, i, k, o, call=call: record(call, m, i, [*k.values()], o), with_kwargs=True
        )
        for name, call in calls.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _fingerprint(tensor: Tensor) -> float:
    flat = tensor.detach().double().flatten()
    return float(flat @ torch.linspace(1.0, 2.0, len(flat), dtype=flat.dtype))


def unchanging(model: nn.Module, example: tuple[Tensor, ...], calls: Mapping[str, Call]) -> set[str]:
    """Layers that read the same whatever the model is given, such as embeddings of positions: an exported file holds what they write."""
    read = {name: Call(call.samples) for name, call in calls.items()}

    def record(call: Call, module: nn.Module, inputs: Sequence[Any], named: Sequence[Any], output: Any) -> None:
        tensor = next((one for one in (*inputs, *named) if isinstance(one, Tensor)), None)
        call.read.append(math.nan if tensor is None else _fingerprint(tensor))

    other = tuple(_changed(tensor) for tensor in example)
    if all(torch.equal(a, b) for a, b in zip(example, other, strict=True)):
        return set()
    try:
        twin = copy.deepcopy(model)  # a model's buffers may note what it saw
        with torch.no_grad(), _watched(twin, read, record):
            twin(*other)
    except Exception:  # the model's code may refuse other inputs; then nothing is known of them
        return set()
    fixed = {name for name, call in calls.items() if call.read and read[name].read == call.read}
    for name in fixed:
        calls[name].samples = 1
    return fixed


def _changed(tensor: Tensor) -> Tensor:
    """Nothing of what the tensor holds: NaN, which goes through all layers where noise may fade; whole numbers in reverse."""
    if tensor.is_floating_point():
        return torch.full_like(tensor, math.nan)
    return tensor.flip(tuple(range(tensor.dim())))
