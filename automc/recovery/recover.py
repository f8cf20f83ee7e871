"""Fine-tuning finalists by distillation from the dense model; no labels are needed.

The student learns the dense model's softened outputs (Hinton et al. 2015, arXiv 1503.02531) by Adam (Kingma and Ba 2015, arXiv 1412.6980). Integer layers train through
their rounding with straight-through gradients, layers whose batch norm was folded with one (see `student`). The cosine schedule runs over the time given, not over a step count.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from automc.compression.carriers import set_ranges
from automc.compression.quantize import requantize
from automc.errors import AutomcError
from automc.evaluate.divergence import distillation_loss
from automc.policy import Policy
from automc.prepare import Prepared
from automc.recovery.student import (
    WARM_UP,
    Lesson,
    descend,
    distance,
    fold,
    mixed,
    quick_layout,
    rate_at,
    samples,
    settle,
    unfold,
    zeros_kept,
)

__all__ = ["NEAR", "recover", "refine_within", "taught"]

_RATE = 0.01
"""What a step changes in a weight, relative to the root mean square of its tensor (Shazeer and Stern 2018, "Adafactor", arXiv 1804.04235, section 8).
So it does not matter how a layer is scaled: batch norms are folded into layers, and the factors of one matrix differ in norm by a few times; at a
rate that suits pruned layers momentum SGD throws such factors back."""
_SMALLEST = 1e-3
"""Tensors of smaller numbers, such as biases that start at 0, learn as if theirs were of this size."""
_LOSS_AT_FULL_RATE = 5.0
"""Models that start nearer to the dense one than this learn at a lower rate. The loss grows with the square of the distance, and the distance
that is covered with the rate, so the rate falls with the root of the loss."""
_LEAST_SHARE = 1e-4
"""Of that loss, which rounding may make less than nothing."""
NEAR = 0.05
"""Models that diverge less than this from the dense one train without batch statistics, whose noise would cost more."""
_ENOUGH_TO_MIX = 1000
"""Steps: shorter trainings get farther on the samples as they are."""
_LEAST_GAIN = 0.02
"""Share of the divergence by which training has to bring a model nearer; less is noise."""
_FEWEST_REFINED, _MOST_REFINED = 256, 2048


def recover(
    model: nn.Module,
    prepared: Prepared,
    *,
    seconds: float,
    seed: int,
    advance: Callable[[float], None] = lambda _: None,
) -> nn.Module:
    """A fine-tuned copy of `model`, trained for about `seconds`; shapes, and so the cost, stay as they are.

    Where training brought it not clearly nearer to the dense model on held-out inputs, a copy of `model` as it was.

    Args:
        advance: told the seconds spent since it was last told.

    Raises:
        AutomcError: the loss is not finite from the first step on.
    """
    start = time.perf_counter()
    lesson = Lesson.of(prepared)
    before = lesson.judge.divergence(model)

    def progress(_: int) -> float:
        return (time.perf_counter() - start) / max(1e-9, seconds)

    student = taught(model, lesson, progress, seed=seed, advance=advance)
    if not lesson.judge.divergence(student) < (1 - _LEAST_GAIN) * before:
        student = copy.deepcopy(model)
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    return student


def taught(
    model: nn.Module,
    lesson: Lesson,
    progress: Callable[[int], float],
    *,
    seed: int,
    advance: Callable[[float], None] = lambda _: None,
) -> nn.Module:
    """A copy of `model` that has learned from the dense model, in the form that is exported, better or not.

    Where there is room for a thousand steps it also learns from mixtures of inputs (see `student.mixed`).

    Args:
        progress: of the steps taken: the share of the training that is over; it ends at 1.
        advance: told the seconds spent since it was last told.

    Raises:
        AutomcError: the loss is not finite from the first step on.
    """
    torch.manual_seed(seed)
    student, teacher = copy.deepcopy(model), quick_layout(copy.deepcopy(lesson.teacher))
    is_near = distance(student, lesson) < NEAR
    normed = [] if is_near else unfold(student, lesson)
    student.train(not is_near)
    quick_layout(student)
    with zeros_kept(student):
        _train(student, teacher, samples(lesson), progress, lesson.logits, advance)
    student.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    requantize(student)
    settle(student, normed, lesson)
    for name in normed:
        fold(student, name)
    set_ranges(student, [lesson.ranges])
    return student


def refine_within(policy: Policy, prepared: Prepared, seconds: float) -> nn.Module | None:
    """The model of `policy` with its layers solved again on as many training inputs as `seconds` allow.

    None where they are too few to learn from, or where the model comes no nearer to the dense one on held-out inputs.
    """
    stitched, lesson = prepared.stitcher.apply(policy), Lesson.of(prepared)
    start = time.perf_counter()
    judge = lesson.judge
    distance(stitched, lesson)
    passes = 0.6 * len(prepared.traced.graph.layers)  # each layer waits for the ones before it alone, then is solved
    per_sample = (time.perf_counter() - start) / (2 * len(prepared.ranges[0]))
    wanted = min(_MOST_REFINED, int(seconds / (passes * per_sample)))
    if wanted < _FEWEST_REFINED:
        return None
    taken, batches = 0, []
    for inputs, _ in samples(lesson, augmented=False):
        batches.append(inputs)
        taken += len(inputs[0])
        if taken >= wanted and len(batches) >= 4:
            break
    refined = prepared.stitcher.refine(policy, batches)
    return refined if judge.divergence(refined) < judge.divergence(stitched) else None


def _train(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterator[tuple[tuple[Tensor, ...], Tensor | None]],
    progress: Callable[[int], float],
    logits: bool,
    advance: Callable[[float], None],
) -> None:
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad and parameter.numel()]
    optimizer = torch.optim.Adam([{"params": [p], "size": _size(p)} for p in trained], betas=(0.9, 0.99))
    full_rate = _RATE
    best, began = copy.deepcopy(student.state_dict()), 0.0
    last = time.perf_counter()
    for step in itertools.count():
        over = progress(step)
        if over >= 1.0:
            return
        if step == 0:
            began = over
        if step == WARM_UP and step * (1.0 - began) / (over - began) >= _ENOUGH_TO_MIX:
            batches = mixed(batches)
        inputs = next(batches)[0]
        loss = _loss(student, teacher, inputs, logits)
        value = loss.item()
        if not math.isfinite(value):
            if step == 0:
                raise AutomcError("Fine-tuning starts with a loss that is not finite.", remedy="Use --recover 0.")
            student.load_state_dict(best)
            return
        if step == 0:
            full_rate = _RATE * math.sqrt(min(1.0, max(_LEAST_SHARE, value / _LOSS_AT_FULL_RATE)))
        rate = rate_at(step, over, full_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"]
        descend(optimizer, loss, student)
        if step % 20 == 0:
            best = copy.deepcopy(student.state_dict())
        now = time.perf_counter()
        advance(now - last)
        last = now


def _size(parameter: Tensor) -> float:
    return max(_SMALLEST, float(parameter.detach().square().mean().sqrt()))


def _loss(student: nn.Module, teacher: nn.Module, inputs: Sequence[Tensor], logits: bool) -> Tensor:
    with torch.no_grad():
        target = teacher(*inputs)
    return distillation_loss(student(*inputs), target, logits=logits)
