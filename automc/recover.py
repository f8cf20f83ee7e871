"""Fine-tuning finalists by distillation from the dense model; no labels are needed.

The student learns the dense model's softened outputs (Hinton et al. 2015, arXiv 1503.02531). Integer layers train through
their rounding with straight-through gradients; layers whose batch norm was folded get one back, set to the statistics of what
they put out now, and it is folded again at the end. The cosine schedule runs over the time given, not over a step count.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from automc.compression.quantize import Quantized, requantize, set_ranges
from automc.errors import AutomcError, InputError
from automc.evaluate.data import inputs_of
from automc.evaluate.divergence import distillation_loss, divergence
from automc.policy import Policy
from automc.prepare import Prepared

__all__ = ["recover", "refine_within"]

_RATE = 0.01
_SETTLING_BATCHES = 16
_NEAR = 0.05
"""Models that diverge less than this from the dense one train without batch statistics, whose noise would cost more."""
_LEAST_BATCH = 16
"""Smaller batches are put together: batch norm needs several samples."""
_FEWEST_REFINED, _MOST_REFINED = 256, 2048
_LOSS_AT_FULL_RATE = 0.3
"""Models that start nearer to the dense one than this learn at a lower rate, in proportion to their loss."""


class _Normed(nn.Sequential):
    """A layer followed by the batch norm that it trains with."""


def recover(
    model: nn.Module,
    prepared: Prepared,
    *,
    seconds: float,
    seed: int,
    advance: Callable[[float], None] = lambda _: None,
) -> nn.Module:
    """A fine-tuned copy of `model`, trained for about `seconds`; shapes, and so the cost, stay as they are.

    Where training brought it no nearer to the dense model on calibration inputs, a copy of `model` as it was.

    Args:
        advance: told the seconds spent since it was last told.

    Raises:
        AutomcError: the loss is not finite from the first step on.
    """
    torch.manual_seed(seed)
    student, teacher = copy.deepcopy(model), prepared.traced.model
    start = time.perf_counter()
    distance = _distance(student, prepared)
    is_near = distance < _NEAR
    normed = [] if is_near else _unfold(student, prepared)
    student.train(not is_near)
    with _zeros_kept(student):
        _train(student, teacher, _batches(prepared), start + seconds, prepared.logits, advance)
    student.eval()
    requantize(student)
    _settle(student, [student.get_submodule(name) for name in normed], prepared)
    for name in normed:
        _fold(student, name)
    set_ranges(student, [prepared.ranges])
    if not _distance(student, prepared) < distance:
        student = copy.deepcopy(model)
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    return student


def refine_within(policy: Policy, prepared: Prepared, seconds: float) -> nn.Module | None:
    """The model of `policy` with its layers solved again on as many training inputs as `seconds` allow.

    None where they are too few to learn from, or where the model comes no nearer to the dense one on calibration inputs.
    """
    stitched = prepared.stitcher.apply(policy)
    start = time.perf_counter()
    before = _distance(stitched, prepared)
    passes = 0.6 * len(prepared.traced.graph.layers)  # each layer waits for the ones before it alone, then is solved
    per_sample = (time.perf_counter() - start) / (2 * len(prepared.ranges[0]))
    samples = min(_MOST_REFINED, int(seconds / (passes * per_sample)))
    if samples < _FEWEST_REFINED:
        return None
    taken, batches = 0, []
    for inputs in _batches(prepared, augmented=False):
        batches.append(inputs)
        taken += len(inputs[0])
        if taken >= samples and len(batches) >= 4:
            break
    refined = prepared.stitcher.refine(policy, batches)
    return refined if _distance(refined, prepared) < before else None


def _distance(student: nn.Module, prepared: Prepared) -> float:
    """Divergence from the dense model on calibration inputs."""
    with torch.no_grad():
        teacher = prepared.traced.model(*prepared.ranges)
        return divergence(teacher, student(*prepared.ranges), logits=prepared.logits)


def _train(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterator[tuple[Tensor, ...]],
    deadline: float,
    logits: bool,
    advance: Callable[[float], None],
) -> None:
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    optimizer = torch.optim.SGD(student.parameters(), lr=_RATE, momentum=0.9, nesterov=True, weight_decay=1e-4)
    full_rate = _RATE
    best = copy.deepcopy(student.state_dict())
    start = last = time.perf_counter()
    for step in itertools.count():
        progress = (last - start) / max(1e-9, deadline - start)
        if progress >= 1.0:
            return
        rate = full_rate * min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step(student, teacher, next(batches), optimizer, logits)
        if not math.isfinite(loss):
            if step == 0:
                raise AutomcError("Fine-tuning starts with a loss that is not finite.", remedy="Use --recover 0.")
            student.load_state_dict(best)
            return
        if step == 0:
            full_rate = _RATE * min(1.0, max(0.01, loss / _LOSS_AT_FULL_RATE))
        if step % 20 == 0:
            best = copy.deepcopy(student.state_dict())
        now = time.perf_counter()
        advance(now - last)
        last = now


@contextmanager
def _zeros_kept(student: nn.Module) -> Iterator[None]:
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


def _step(
    student: nn.Module, teacher: nn.Module, inputs: tuple[Tensor, ...], optimizer: torch.optim.Optimizer, logits: bool
) -> float:
    with torch.no_grad():
        target = teacher(*inputs)
    loss = distillation_loss(student(*inputs), target, logits=logits)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    value = loss.item()
    if math.isfinite(value):
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
    return value


def _batches(prepared: Prepared, *, augmented: bool = True) -> Iterator[tuple[Tensor, ...]]:
    """Endless training inputs; calibration inputs where there is no training split."""
    split: Iterable[Any] = prepared.data.train if prepared.data.train is not None else prepared.data.calibration
    augment = prepared.data.augment if augmented else None
    waiting: list[tuple[Tensor, ...]] = []
    while True:
        empty = True
        for batch in split:
            empty, inputs = False, inputs_of(batch)
            changes = augment is not None and inputs[0].is_floating_point()  # token numbers have no crops
            waiting.append((augment(inputs[0]), *inputs[1:]) if augment is not None and changes else inputs)
            if sum(len(inputs[0]) for inputs in waiting) >= _LEAST_BATCH:
                yield tuple(torch.cat(tensors) for tensors in zip(*waiting, strict=True))
                waiting = []
        if empty:
            raise InputError("The training split is empty.", remedy="Give it inputs, or None to distil on calibration.")


def _unfold(student: nn.Module, prepared: Prepared) -> list[str]:
    """Give layers whose batch norm was folded a new one that, on the calibration inputs, changes nothing; their names."""
    names = [n for n in prepared.traced.folded if isinstance(_last(student.get_submodule(n)), nn.Conv2d)]
    for name in names:
        layer = student.get_submodule(name)
        student.set_submodule(name, _Normed(layer, nn.BatchNorm2d(_last(layer).out_channels)))
    _set_statistics(student, [student.get_submodule(name) for name in names], prepared.ranges)
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


def _settle(student: nn.Module, layers: Sequence[nn.Module], prepared: Prepared) -> None:
    """Set the new norms' running statistics to the average over many inputs as they are, without augmentation.

    The running averages of training follow the last few batches, which alone costs a point or two of accuracy.
    """
    norms = [layer[1] for layer in layers if isinstance(layer, _Normed)]
    if not norms:
        return
    for norm in norms:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    with torch.no_grad():
        for inputs in itertools.islice(_batches(prepared, augmented=False), _SETTLING_BATCHES):
            student(*inputs)
    student.eval()


def _last(layer: nn.Module) -> nn.Conv2d:
    """The convolution that puts out what the layer puts out: behind rounding, the last of its factors."""
    while isinstance(layer, (nn.Sequential, Quantized)):
        layer = layer.inner if isinstance(layer, Quantized) else layer[-1]
    return layer  # type: ignore[return-value]


def _fold(student: nn.Module, name: str) -> None:
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
