"""A compressed model made ready to be trained, taken a step further, and put back into the form in which it is exported.

Layers whose batch norm was folded get one back, set to the statistics of what they put out now; it is folded again at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from automc.compression.quantize import Quantized
from automc.errors import InputError
from automc.evaluate.data import Data, inputs_of, targets_of
from automc.evaluate.divergence import divergence
from automc.evaluate.score import Score
from automc.evaluate.worth import Judge

if TYPE_CHECKING:
    from automc.prepare import Prepared  # takes a second to import, which every process of a training would spend

__all__ = [
    "WARM_UP",
    "Lesson",
    "descend",
    "distance",
    "fold",
    "mixed",
    "quick_layout",
    "rate_at",
    "samples",
    "settle",
    "unfold",
    "zeros_kept",
]

WARM_UP = 10
"""Steps over which the learning rate rises."""
_CLIP = 5.0
"""The largest norm of a gradient."""
_SETTLING_BATCHES = 16
_LEAST_BATCH = 16
"""Smaller batches are put together: batch norm needs several samples."""
_ONEDNN_BLOCK = 16
"""Channels that its kernels compute together, at most."""
_MIXED_SHARE = 0.5


@dataclass(frozen=True)
class Lesson:
    """What a compressed model is taught by, and examined with. It goes to other processes.

    Attributes:
        teacher: the dense model.
        folded: its layers whose batch norm was folded.
        ranges: calibration inputs.
        logits: the outputs are logits of classes.
        score: of a model on a split, higher is better.
    """

    teacher: nn.Module
    folded: tuple[str, ...]
    data: Data
    ranges: tuple[Tensor, ...]
    logits: bool
    score: Score

    @classmethod
    def of(cls, prepared: Prepared) -> Lesson:
        traced = prepared.traced
        return cls(traced.model, tuple(traced.folded), prepared.data, prepared.ranges, prepared.logits, prepared.score)

    @cached_property
    def judge(self) -> Judge:
        """What examines the student."""
        return Judge(self.teacher, self.data, self.score, logits=self.logits)


class _Normed(nn.Sequential):
    """A layer followed by the batch norm that it trains with."""


def distance(student: nn.Module, lesson: Lesson) -> float:
    """Divergence from the dense model on calibration inputs."""
    with torch.no_grad():
        return divergence(lesson.teacher(*lesson.ranges), student(*lesson.ranges), logits=lesson.logits)


def samples(lesson: Lesson, *, augmented: bool = True) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
    """Endless (inputs, targets) of training; of calibration where there is no training split. Targets are None without labels.

    Raises:
        InputError: there is not a single sample.
    """
    data = lesson.data
    split: Iterable[Any] = data.train if data.train is not None else data.calibration
    waiting: list[tuple[tuple[Tensor, ...], Tensor | None]] = []
    while True:
        empty = True
        for batch in split:
            empty, inputs = False, inputs_of(batch)
            waiting.append((data.changed(inputs) if augmented else inputs, _labels(batch, len(inputs[0]))))
            if sum(len(inputs[0]) for inputs, _ in waiting) >= _LEAST_BATCH:
                yield _joined(waiting)
                waiting = []
        if empty:
            raise InputError("The training split is empty.", remedy="Give it inputs, or None to distil on calibration.")


def mixed(batches: Iterable[tuple[tuple[Tensor, ...], Tensor | None]]) -> Iterator[tuple[tuple[Tensor, ...], None]]:
    """The inputs of training, every second batch a weighted mean of itself and of itself in another order, without targets.

    The dense model was trained on the samples and is sure of them; of mixtures it says what it says of new inputs, and the student agrees
    with it there (Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent", arXiv 2106.05237, on mixup).
    Batches that hold anything but floating-point numbers stay as they are.
    """
    for inputs, _ in batches:
        if float(torch.rand(())) < _MIXED_SHARE and all(tensor.is_floating_point() for tensor in inputs):
            share, order = float(torch.rand(())), torch.randperm(len(inputs[0]))
            inputs = tuple(share * tensor + (1.0 - share) * tensor[order] for tensor in inputs)
        yield inputs, None


def quick_layout(model: nn.Module) -> nn.Module:
    """`model` with the weights of its two-dimensional convolutions channels last in memory: PyTorch trains them up to a third quicker on CPUs.

    A model with a strided 1x1 convolution of few channels stays as it is: with channels last, on processors without AVX-512, oneDNN writes the
    gradients of such weights past the end of its workspace, and ends the process (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not any(prod(c.kernel_size) == 1 < prod(c.stride) and c.in_channels < _ONEDNN_BLOCK for c in convs):
        for conv in convs:
            conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)
    return model


def rate_at(step: int, progress: float, full: float) -> float:
    """The learning rate of a step: a linear warm-up to `full`, under half a cosine over the training, of which `progress` (0 to 1) is over."""
    return full * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, student: nn.Module) -> None:
    """One step against the gradient of `loss`, that of the student clipped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), _CLIP)
    optimizer.step()


def _labels(batch: Any, count: int) -> Tensor | None:
    """(count, ...) class numbers of a batch; None where it has none."""
    try:
        targets = targets_of(batch)
    except InputError:
        return None
    usable = isinstance(targets, Tensor) and targets.dim() > 0 and len(targets) == count
    return targets if usable and not targets.is_floating_point() and not targets.is_complex() else None


def _joined(parts: Sequence[tuple[tuple[Tensor, ...], Tensor | None]]) -> tuple[tuple[Tensor, ...], Tensor | None]:
    inputs = tuple(torch.cat(tensors) for tensors in zip(*(inputs for inputs, _ in parts), strict=True))
    labels = [targets for _, targets in parts if targets is not None]
    return inputs, torch.cat(labels) if len(labels) == len(parts) else None


def unfold(student: nn.Module, lesson: Lesson) -> list[str]:
    """Give layers whose batch norm was folded a new one that, on the calibration inputs, changes nothing; their names."""
    names = [n for n in lesson.folded if isinstance(_last(student.get_submodule(n)), nn.Conv2d)]
    for name in names:
        layer = student.get_submodule(name)
        student.set_submodule(name, _Normed(layer, nn.BatchNorm2d(_last(layer).out_channels)))
    _set_statistics(student, [student.get_submodule(name) for name in names], lesson.ranges)
    return names


def _set_statistics(student: nn.Module, layers: Sequence[nn.Module], inputs: Sequence[Tensor]) -> None:
    def record(norm: nn.BatchNorm2d, values: Tensor) -> Tensor:
        mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3)).clamp_min(1e-8)
        norm.running_mean, norm.running_var = mean, variance
        norm.weight.data.copy_((variance + norm.eps).sqrt())
        norm.bias.data.copy_(mean)
        return values

    hooks = [
        layer[1].register_forward_hook(lambda norm, args, _: record(norm, args[0]))
        for layer in layers
        if isinstance(layer, _Normed)
    ]
    student.eval()
    with torch.no_grad():
        student(*inputs)
    for hook in hooks:
        hook.remove()


def settle(student: nn.Module, names: Sequence[str], lesson: Lesson) -> None:
    """Set the new norms' running statistics to the average over many inputs as they are, without augmentation.

    The running averages of training follow the last few batches, which alone costs a point or two of accuracy.
    """
    layers = [student.get_submodule(name) for name in names]
    norms = [layer[1] for layer in layers if isinstance(layer, _Normed)]
    if not norms:
        return
    for norm in norms:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    with torch.no_grad():
        for inputs, _ in itertools.islice(samples(lesson, augmented=False), _SETTLING_BATCHES):
            student(*inputs)
    student.eval()


def fold(student: nn.Module, name: str) -> None:
    """Fold the batch norm of a layer into it again."""
    pair = student.get_submodule(name)
    assert isinstance(pair, _Normed)
    conv, norm = _last(pair[0]), pair[1]
    assert isinstance(norm, nn.BatchNorm2d)
    statistics: Any = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    rounded = [module for module in pair[0].modules() if isinstance(module, Quantized) and module.inner is conv]
    if rounded:
        rounded[0].scale_outputs(statistics[3].detach() / (statistics[1] + norm.eps).sqrt())
    else:
        conv.weight = nn.Parameter(weight.detach())
    conv.bias = nn.Parameter(bias.detach())
    student.set_submodule(name, pair[0])


def _last(layer: nn.Module) -> nn.Conv2d:
    """The convolution that puts out what the layer puts out: behind rounding, the last of its factors."""
    while isinstance(layer, (nn.Sequential, Quantized)):
        layer = layer.inner if isinstance(layer, Quantized) else layer[-1]
    return layer  # type: ignore[return-value]


@contextmanager
def zeros_kept(student: nn.Module) -> Iterator[None]:
    """Weights that are exactly zero get no gradient, so that a sparse layer stays sparse; decay leaves zeros as they are."""
    hooks = []
    for parameter in student.parameters():
        left = parameter.detach() != 0
        if parameter.dim() > 1 and not bool(left.all()):
            hooks.append(parameter.requires_grad_(True).register_hook(lambda gradient, left=left: gradient * left))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
