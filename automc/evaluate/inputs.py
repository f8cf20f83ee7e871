"""What is wrong with a model and its data, found by running a few samples through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from automc.errors import AutomcError, InputError
from automc.evaluate.data import ONE_SIZE, Data, Split, TensorSplit, inputs_of, targets_of
from automc.evaluate.returned import output_fault, repeat_fault, shape_fault
from automc.evaluate.score import Score, load_score
from automc.outputs import logits_of
from automc.tracing.unwrap import unwrapped

__all__ = ["Fault", "check_data", "check_inputs", "check_match", "check_weights"]

_SAMPLES = 4
"""Samples that the model is tried on: enough to see that the outputs are one per sample."""
_OWN_SCORE = "Give your own score with --evaluate file.py:function."


class Fault(str):
    """A sentence that says what is wrong, then the remedy; `exit_code` is the one that this fault alone would cause."""

    exit_code: int

    def __new__(cls, message: str, remedy: str = "", exit_code: int = InputError.exit_code) -> Fault:
        fault = super().__new__(cls, f"{message} {remedy}".strip())
        fault.exit_code = exit_code
        return fault

    @classmethod
    def of(cls, error: AutomcError) -> Fault:
        """What an error says."""
        return cls(str(error), exit_code=error.exit_code)


def check_inputs(model: nn.Module, data: Data, score: Score | None = None) -> list[Fault]:
    """Every fault of a model and data: empty splits, NaN, shapes, what the model returns, labels, and the score.

    Leaves the model as it was.
    """
    faults = [*check_data(data), *check_weights(model)]
    return faults or list(check_match(model, data, score or load_score(None)))


def check_data(data: Data) -> Iterator[Fault]:
    """Faults of the first two batches of each split; of all inputs where they are in memory."""
    sizes: dict[str, list[str]] = {}
    for name, split in data.splits.items():
        try:
            batches = [inputs_of(batch) for batch in islice(split, 2)]
            sizes[name] = [" and ".join(str(tuple(tensor.shape[1:])) for tensor in inputs) for inputs in batches]
            yield from _split_faults(name, split, batches)
        except AutomcError as error:
            yield Fault.of(error)
        except Exception as error:  # a user's loader may raise anything; whatever it is belongs in the list
            remedy = "Make its loader run on its own."
            yield Fault(f"Reading the {name} split raised {type(error).__name__}: {error}.", remedy)
    yield from _size_faults(sizes)


def _split_faults(name: str, split: Split, batches: Sequence[tuple[Tensor, ...]]) -> Iterator[Fault]:
    if not batches:
        yield Fault(f"The {name} split is empty.", "Give it at least one batch.")
    elif not all(_finite(tensor) for tensor in (*chain.from_iterable(batches), *_in_memory(split))):
        yield Fault(f"The {name} inputs hold NaN or infinite values.", "Remove or replace those samples.")


def _size_faults(sizes: Mapping[str, Sequence[str]]) -> Iterator[Fault]:
    """One fault if samples differ in size; training samples may be of another size than the others."""
    train = [("train", size) for size in sizes.get("train", ())]
    others = [(name, size) for name, found in sizes.items() if name != "train" for size in found]
    for group in (others, train):
        different = next(((name, size) for name, size in group if size != group[0][1]), None)
        if different is not None:
            places = " and ".join(f"{size} ({name})" for name, size in (group[0], different))
            yield Fault(f"The samples differ in size: {places}.", ONE_SIZE)
            return


def check_weights(model: nn.Module) -> Iterator[Fault]:
    """Faults of the model by itself: no layers to replace, no parameters, or weights that are not finite float32 here."""
    try:
        model = unwrapped(model)
    except InputError as error:
        yield Fault.of(error)
        return
    if next(model.parameters(), None) is None:
        yield Fault("The model has no parameters.", "Return a trained torch.nn.Module.")
    parameters = dict(model.named_parameters())
    for name, tensor in {**parameters, **dict(model.named_buffers())}.items():
        fault = _weight_fault(name, tensor, may_be_infinite=name not in parameters)
        if fault is not None:
            yield fault
            return


def _weight_fault(name: str, tensor: Tensor, *, may_be_infinite: bool) -> Fault | None:
    """What is wrong with a parameter or buffer; buffers may be infinite, as attention masks are."""
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        return Fault(f"The model's {name} has no shape yet.", "Run the model once on an input, then train it.")
    if tensor.device.type != "cpu":
        return Fault(f"The model's {name} is on {tensor.device}.", "Return model.cpu(): compression runs there.")
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
        return Fault(f"The model's {name} is {_dtype(tensor)}.", "Return model.float(): compression starts at float32.")
    if bool(tensor.isnan().any()) if may_be_infinite else not _finite(tensor):
        return Fault(f"The model's {name} holds NaN or infinite values.", "Give weights of a training that converged.")
    return None


def check_match(model: nn.Module, data: Data, score: Score) -> Iterator[Fault]:
    """Faults that show only when the model meets the data; the first kind found hides those after it."""
    model = unwrapped(model)
    inputs = tuple(tensor[:_SAMPLES] for tensor in data.example())
    modes = {module: module.training for module in model.modules()}
    model.eval()  # in training mode one pass would change the running statistics of batch norms
    try:
        faults = list(_run_faults(model, inputs, data, score))
        yield from faults or _score_faults(model, data, score)
    finally:
        for module, training in modes.items():
            module.training = training


def _run_faults(model: nn.Module, inputs: tuple[Tensor, ...], data: Data, score: Score) -> Iterator[Fault]:
    try:
        outputs = _run(model, inputs, data.input_names)
    except Exception as error:  # any exception of the user's forward means that it does not take these inputs
        yield _misfit(model, inputs, data.input_names, error)
        return
    again = _run(model, inputs, data.input_names)
    half = tuple(tensor[: (len(tensor) + 1) // 2] for tensor in inputs)
    part = _run(model, half, data.input_names)
    fault = output_fault(outputs, len(inputs[0])) or repeat_fault(outputs, again) or shape_fault(outputs, part)
    if fault is not None:
        yield Fault(*fault)
    elif score.logits:
        yield from _label_faults(data, outputs)


def _run(model: nn.Module, inputs: Sequence[Tensor], names: Sequence[str]) -> Any:
    """Outputs for copies of the inputs: some models write into theirs."""
    copies = [tensor.clone() for tensor in inputs]
    with torch.no_grad():
        return model(**dict(zip(names, copies, strict=True))) if names else model(*copies)


def _label_faults(data: Data, returned: Any) -> Iterator[Fault]:
    outputs = logits_of(returned)
    if outputs is None:
        yield Fault("The model returns several outputs, and accuracy needs one, or one called logits.", _OWN_SCORE)
        return
    if outputs.ndim < 2:
        yield Fault(f"The model returns shape {tuple(outputs.shape)}, and accuracy needs (batch, classes).", _OWN_SCORE)
        return
    classes = outputs.shape[1]
    for name in ("validation", "test"):
        if name not in data.splits:
            continue
        try:
            targets = _targets(data.splits[name])
        except (AutomcError, TypeError, ValueError) as error:
            yield (
                Fault.of(error)
                if isinstance(error, AutomcError)
                else Fault(f"The {name} targets: {error}.", _OWN_SCORE)
            )
            continue
        if targets.is_floating_point():
            yield Fault(f"The {name} targets are {_dtype(targets)}, not class numbers.", _OWN_SCORE)
            continue
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            wrong = f"The {name} labels hold {low if low < 0 else high}"
            remedy = "Number the labels from 0, or give the model that was trained on them."
            yield Fault(f"{wrong}, and the model has {classes} outputs (labels 0 to {classes - 1}).", remedy)


def _targets(split: Split) -> Tensor:
    """All targets of a split that holds them in memory, else those of its first batch."""
    if isinstance(split, TensorSplit):
        return split.y[split.index]
    labels = getattr(split, "labels", None)
    return torch.as_tensor(labels if labels is not None else targets_of(next(iter(split))))


def _score_faults(model: nn.Module, data: Data, score: Score) -> Iterator[Fault]:
    """Faults of scoring the first few validation samples."""
    try:
        score(model, [_head(batch) for batch in islice(data.validation, 1)])
    except AutomcError as error:
        yield Fault.of(error)
    except Exception as error:  # the user's function may raise anything
        remedy = "It is called with (model, loader): make it run on those."
        yield Fault(f"The score {score.name} raised {type(error).__name__}: {error}.", remedy)


def _misfit(model: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], error: Exception) -> Fault:
    shapes = " and ".join(str(tuple(tensor.shape[1:])) for tensor in inputs)
    reason = (str(error).splitlines() or [""])[0].rstrip(".")
    remedy = f"{_expected(model)} Give inputs that fit, as (batch, channels, height, width) for images."
    if names:
        remedy = "Name the inputs as the model's forward does, and targets labels."
    return Fault(
        f"The model does not take samples of shape {shapes}: {type(error).__name__}: {reason}.", remedy.strip()
    )


def _expected(model: nn.Module) -> str:
    """What the model's first layer takes, in a sentence."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return f"Its first layer, {name}, takes {module.in_channels} channels."
        if isinstance(module, nn.Linear):
            return f"Its first layer, {name}, takes {module.in_features} features."
    return ""


def _in_memory(split: Split) -> tuple[Tensor, ...]:
    """All inputs of a split that costs little to read whole."""
    whole = isinstance(split, TensorSplit) and split.x.is_floating_point()
    return (split.x[split.index],) if whole and isinstance(split, TensorSplit) else ()


def _head(batch: Any) -> Any:
    """A copy of the first few samples of a batch."""
    if isinstance(batch, Tensor):
        return batch[:_SAMPLES].clone()
    if isinstance(batch, Mapping):
        return {key: _head(value) for key, value in batch.items()}
    return type(batch)(_head(value) for value in batch) if isinstance(batch, (tuple, list)) else batch


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
