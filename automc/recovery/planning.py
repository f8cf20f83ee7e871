"""How long to fine-tune for, and within which bounds: from epochs, or from the time that there is."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from automc.errors import InputError
from automc.evaluate.data import sample_count
from automc.prepare import Prepared
from automc.protocols import Observer
from automc.recovery.distil import Loss, Weights
from automc.recovery.recover import NEAR
from automc.recovery.student import Lesson, distance, samples
from automc.recovery.training import Plan

__all__ = ["MOST", "Effort", "FineTuned", "fine_tuned", "seconds_of_examination", "seconds_per_step"]

MOST = 6
"""Trainings, where nothing else is said."""
_RATE = 0.01
_AWAY_AT_FULL_RATE = 0.3
"""Models that start nearer to the dense one than this learn at a lower rate, in proportion to their divergence."""
_ENOUGH_EPOCHS = 60
"""Time goes into one training up to here, and only then into others with other choices."""
_EPOCHS_AT_FULL_RATE = 10
"""So long a training starts at the full rate, however near the model is: it has the time to come back from there."""

_TIMED_STEPS = 3
_ROUNDS_IN_TIME = 9
"""Examinations of the longest training where there is no time for as many epochs."""
_STARTING_S = 10.0
"""Ray and its processes take so long to start."""


@dataclass(frozen=True)
class Effort:
    """How hard to try.

    Attributes:
        epochs: of the longest training; None takes what `seconds` allow.
        seconds: for all trainings together; None takes what the epochs need.
        trainings: how many; None takes as many as leave the longest its epochs in `seconds`, at most MOST.
        workers: CPUs; where there are more than trainings, a training has several.
        address: of a Ray cluster whose nodes have automc and see the folder of the run; None takes this machine.
        frozen: batch-norm statistics stay as they are; None decides by how near the model is to the dense one.
        hints, attention: let the dense model's features and attention maps have a share of the loss.
    """

    epochs: int | None = None
    seconds: float | None = None
    trainings: int | None = None
    workers: int = 1
    address: str | None = None
    frozen: bool | None = None
    hints: bool = False
    attention: bool = False
    seed: int = 0


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model, and its scores on the validation samples in PyTorch."""

    model: nn.Module
    before: float
    after: float


def fine_tuned(model: nn.Module, prepared: Prepared, effort: Effort, folder: Path, observer: Observer) -> FineTuned:
    """`model` fine-tuned, never worse than it was; checkpoints in `folder`, whose trainings are gone on with.

    Raises:
        InputError: there is nothing to train on, or not so many CPUs.
        AutomcError: no training could be begun.
    """
    from automc.recovery.tuning import Bounds, tune  # Ray takes a second to import

    lesson = Lesson.of(prepared)
    before = lesson.judge.examine(model)
    inputs, targets = next(samples(lesson, augmented=False))
    usable = lesson.logits and targets is not None and lesson.data.train is not None
    _tell(lesson, usable, observer)
    away = distance(model, lesson)
    share = min(1.0, max(0.01, away / _AWAY_AT_FULL_RATE))
    frozen = away < NEAR if effort.frozen is None else effort.frozen
    plan, count = _plan(model, lesson, effort, len(inputs[0]), frozen)
    if away >= NEAR:
        epochs = plan.rounds * plan.steps / _steps_of_epoch(lesson, len(inputs[0]))
        share = max(share, min(1.0, epochs / _EPOCHS_AT_FULL_RATE))
    bounds = Bounds(_RATE * share, count, usable, effort.hints, effort.attention)
    observer.stage("fine-tune", None)
    layers = [layer.name for layer in prepared.traced.graph.layers]
    found, tuned = tune(
        model, lesson, plan, bounds, layers, folder, workers=effort.workers, address=effort.address, observer=observer
    )
    return FineTuned(tuned, before["score"], found["score"])


def _tell(lesson: Lesson, labels: bool, observer: Observer) -> None:
    if lesson.data.train is None:
        observer.message(
            "There are no training samples: fine-tuning distils on the calibration inputs, without labels."
        )
    elif not labels:
        observer.message("Fine-tuning uses no labels: it distils from the dense model alone.")


def _plan(model: nn.Module, lesson: Lesson, effort: Effort, batch: int, frozen: bool) -> tuple[Plan, int]:
    """The plan of the longest training and the number of trainings.

    Epochs as they are asked for; else as many steps as fit, in epochs or, where there are few, in parts of one.
    """
    epoch = _steps_of_epoch(lesson, batch)
    if effort.seconds is None:
        rounds, count = effort.epochs or 1, effort.trainings or MOST
        threads = max(1, effort.workers // count)
        return Plan(rounds, epoch, frozen, patience=max(3, rounds // 3), seed=effort.seed, threads=threads), count
    deadline = time.time() + effort.seconds
    usable_s = max(1.0, effort.seconds - _STARTING_S)
    spent_s = _ROUNDS_IN_TIME * seconds_of_examination(model, lesson)
    steps, count, threads = 0, 0, 1
    for count in (effort.trainings,) if effort.trainings else range(MOST, 0, -1):
        threads = max(1, effort.workers // count)
        longest_s = usable_s * min(1.0, effort.workers / _all_trainings(count))
        longest_s = max(0.2 * longest_s, longest_s - spent_s)
        steps = max(1, int(longest_s / seconds_per_step(model, lesson, threads)))
        if steps >= epoch * min(effort.epochs or math.inf, _ENOUGH_EPOCHS):
            break
    if effort.epochs is not None:
        steps = min(steps, effort.epochs * epoch)
    rounds = max(1, min(max(_ROUNDS_IN_TIME, steps // epoch), steps))
    patience = max(3, rounds // 3) if count > 1 else rounds
    plan = Plan(rounds, -(-steps // rounds), frozen, patience, effort.seed, deadline, threads)
    return plan, count


def _all_trainings(count: int) -> float:
    """What all trainings take, as a multiple of the longest: ASHA stops two of three at 1/9 of it, and two of three at 1/3."""
    return 1.0 + (count - 1) * (1 / 9 + (1 / 3 - 1 / 9) / 3)


def seconds_per_step(model: nn.Module, lesson: Lesson, threads: int | None = None) -> float:
    """Of one training alone, measured, with so many threads of PyTorch; None takes as many as it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return _timed(model, lesson)
    finally:
        torch.set_num_threads(before)


def _timed(model: nn.Module, lesson: Lesson) -> float:
    student = copy.deepcopy(model).requires_grad_(True)
    loss = Loss(student, lesson.teacher, Weights(), logits=lesson.logits)
    times = []
    for inputs, targets in islice(samples(lesson), _TIMED_STEPS):
        start = time.perf_counter()
        loss(inputs, targets).backward()
        times.append(time.perf_counter() - start)
    return max(1e-4, min(times))


def seconds_of_examination(model: nn.Module, lesson: Lesson) -> float:
    """What scoring a student takes, measured once the dense model's part is known."""
    lesson.judge.divergence(model)
    start = time.perf_counter()
    lesson.judge.examine(model)
    return 1.5 * (time.perf_counter() - start)  # batch-norm statistics are settled first


def _steps_of_epoch(lesson: Lesson, batch: int) -> int:
    """Batches of the training split, counted where it does not tell."""
    split = lesson.data.train if lesson.data.train is not None else lesson.data.calibration
    count = sample_count(split)
    if count is None:
        count = sum(1 for _ in split) * batch
    if count == 0:
        raise InputError("The training split is empty.", remedy="Give it inputs, or None to distil on calibration.")
    return math.ceil(count / max(1, batch))
