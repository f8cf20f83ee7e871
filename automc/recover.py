"""Fine-tuning finalists by distillation from the dense model; no labels are needed.

The student learns the dense model's softened outputs (Hinton et al. 2015, arXiv 1503.02531). Integer layers train through
their rounding with straight-through gradients, layers whose batch norm was folded with one (see `student`). The cosine schedule runs over the time given, not over a step count.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from automc.compression.carriers import set_ranges
from automc.compression.quantize import requantize
from automc.errors import AutomcError
from automc.evaluate.divergence import distillation_loss
from automc.policy import Policy
from automc.prepare import Prepared
from automc.student import (
    ENOUGH_TO_MIX,
    Lesson,
    distance,
    fold,
    mixed,
    quick_layout,
    samples,
    settle,
    unfold,
    zeros_kept,
)

__all__ = ["LOSS_AT_FULL_RATE", "NEAR", "RATE", "recover", "refine_within"]

RATE = 0.01
NEAR = 0.05
"""Models that diverge less than this from the dense one train without batch statistics, whose noise would cost more."""
_WARM_UP = 10
_LEAST_GAIN = 0.02
"""Share of the divergence by which training has to bring a model nearer; less is noise."""
_FEWEST_REFINED, _MOST_REFINED = 256, 2048
LOSS_AT_FULL_RATE = 0.3
"""Models that start nearer to the dense one than this learn at a lower rate, in proportion to their loss."""


def recover(
    model: nn.Module,
    prepared: Prepared,
    *,
    seconds: float,
    seed: int,
    advance: Callable[[float], None] = lambda _: None,
) -> nn.Module:
    """A fine-tuned copy of `model`, trained for about `seconds`; shapes, and so the cost, stay as they are.

    Where the time is enough for hundreds of steps it also learns from mixtures of inputs (see `student.mixed`).

    Where training brought it not clearly nearer to the dense model on held-out inputs, a copy of `model` as it was.

    Args:
        advance: told the seconds spent since it was last told.

    Raises:
        AutomcError: the loss is not finite from the first step on.
    """
    torch.manual_seed(seed)
    student, teacher = copy.deepcopy(model), quick_layout(copy.deepcopy(prepared.traced.model))
    start = time.perf_counter()
    lesson = Lesson.of(prepared)
    judge = lesson.judge
    before = judge.divergence(student)
    is_near = distance(student, lesson) < NEAR
    normed = [] if is_near else unfold(student, lesson)
    student.train(not is_near)
    quick_layout(student)
    with zeros_kept(student):
        _train(student, teacher, samples(lesson), start + seconds, prepared.logits, advance)
    student.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    requantize(student)
    settle(student, normed, lesson)
    for name in normed:
        fold(student, name)
    set_ranges(student, [prepared.ranges])
    if not judge.divergence(student) < (1 - _LEAST_GAIN) * before:
        student = copy.deepcopy(model)
    for parameter in student.parameters():
        parameter.requires_grad_(False)
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
    deadline: float,
    logits: bool,
    advance: Callable[[float], None],
) -> None:
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=1e-4)
    full_rate = RATE
    best = copy.deepcopy(student.state_dict())
    start = last = time.perf_counter()
    for step in itertools.count():
        progress = (last - start) / max(1e-9, deadline - start)
        if progress >= 1.0:
            return
        if step == _WARM_UP and (deadline - last) * step / (last - start) >= ENOUGH_TO_MIX:
            batches = mixed(batches)
        rate = full_rate * min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step(student, teacher, next(batches)[0], optimizer, logits)
        if not math.isfinite(loss):
            if step == 0:
                raise AutomcError("Fine-tuning starts with a loss that is not finite.", remedy="Use --recover 0.")
            student.load_state_dict(best)
            return
        if step == 0:
            full_rate = RATE * min(1.0, max(0.01, loss / LOSS_AT_FULL_RATE))
        if step % 20 == 0:
            best = copy.deepcopy(student.state_dict())
        now = time.perf_counter()
        advance(now - last)
        last = now


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
