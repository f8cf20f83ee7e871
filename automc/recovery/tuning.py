"""Trainings side by side on Ray Tune: the promising ones go on, the others stop (ASHA; Li et al. 2020, arXiv 1810.05934).

Tune decides which choices are tried and which trainings go on. What is kept are the trainings' own checkpoints: they hold tensors and
text alone, outlive a kill at any moment, and bring ASHA to where it was by telling it their histories again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read when ray.tune is imported
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import ray
import torch
from ray import cloudpickle
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator
from torch import nn

from automc.compression.carriers import set_between
from automc.errors import AutomcError, InputError
from automc.execute.parallel import Parallel, check_room, local_cpus
from automc.execute.ray import by_value, connect
from automc.protocols import Observer
from automc.recovery.student import Lesson
from automc.recovery.training import Choices, Plan, Training, best_state
from automc.weights import adopt

__all__ = ["Bounds", "tune"]

_SPREAD = 5.0
"""Learning rates between a fifth and five times of what is usual are tried."""
_REDUCTION = 3
_GRACE_S = 30.0
"""After the deadline trainings end by themselves; so much later they are ended."""


class _Brake(ray_tune.Stopper):
    """Ends all trainings in good order, and their processes with them, once something was raised here.

    Ray Tune leaves the processes running where an exception passes through it.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether to stop."""
        return self.error is not None

    @contextmanager
    def pulled(self) -> Iterator[None]:
        """Pull the brake at Ctrl-C and, after the block, raise what pulled it; the second Ctrl-C is not waited for."""
        here = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, self._interrupt) if here else None
        try:
            yield
        finally:
            if here:
                signal.signal(signal.SIGINT, before)
        if self.error is not None:
            raise self.error

    def _interrupt(self, *_: object) -> None:
        if self.error is not None:
            raise KeyboardInterrupt
        self.error = KeyboardInterrupt()


class _Watching(ray_tune.Callback):
    """Tells the observer of every round; what that raises pulls the brake."""

    def __init__(self, observer: Observer, brake: _Brake) -> None:
        self._observer, self._brake = observer, brake
        self._worth = self._best = float("-inf")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks down in order to go on with them, which is never done here."""
        return {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """One round has ended; a training also tells where it starts."""
        if result["worth"] > self._worth:
            self._worth, self._best = result["worth"], result["score"]
        going = sum(one.status == "RUNNING" for one in trials)
        try:
            if result["round"]:
                self._observer.advance(1.0, f"best {self._best:.4f}, {going} of {len(trials)} trainings run")
        except BaseException as error:
            self._brake.error = error


@dataclass(frozen=True)
class Bounds:
    """What the trainings may choose from.

    Attributes:
        rate: the usual learning rate, tried first.
        trainings: how many in all.
        labels: there are labels, so that they may have a share of the loss.
        hints, attention: features and attention maps of the dense model may have one too.
    """

    rate: float
    trainings: int = 6
    labels: bool = False
    hints: bool = False
    attention: bool = False


def tune(
    model: nn.Module,
    lesson: Lesson,
    plan: Plan,
    bounds: Bounds,
    layers: Sequence[str],
    folder: Path,
    *,
    workers: int,
    address: str | None = None,
    observer: Observer,
) -> tuple[dict[str, float], nn.Module]:
    """The best form that any training found, and what it is worth: at least what `model` is.

    Args:
        layers: of the model in the order of use; some of them give hints.
        folder: of the checkpoints; what lies there is gone on with.
        address: of a Ray cluster whose nodes see the folder; None starts Ray here.

    Raises:
        InputError: more workers than CPUs, or a model or data that cannot be sent to workers.
        AutomcError: no training got to its first round, and why.
    """  # fmt: skip
    task = _sendable((model, lesson, plan, tuple(layers)))
    if address is None:
        check_room(Parallel(workers), local_cpus(), "this machine")
    with _cluster(workers, address):
        if address is not None:
            check_room(Parallel(workers), ray.cluster_resources().get("CPU", 0.0), "the Ray cluster")
        error = _fit(task, plan, bounds, folder.absolute(), workers, observer)
    found = best_state(folder)
    if found is None:
        raise AutomcError(f"Fine-tuning failed: {error or 'no training began'}.", remedy="Give it more time.")
    best = adopt(model, found[1])
    set_between(best, lesson.ranges)
    return found[0], best


def _fit(task: bytes, plan: Plan, bounds: Bounds, folder: Path, workers: int, observer: Observer) -> str:
    """Run the trainings; the first error that one of them ended with, "" where none did."""
    brake = _Brake()
    with tempfile.TemporaryDirectory(prefix="automc-tune-") as scratch:
        run = ray_tune.RunConfig(
            storage_path=scratch, verbose=0, stop=brake, callbacks=[_Watching(observer, brake)],
            failure_config=ray_tune.FailureConfig(max_failures=1),
        )  # fmt: skip
        paths = [os.path.abspath(path) for path in sys.path]
        trial = ray_tune.with_parameters(_trial, task=task, folder=str(folder), paths=paths)
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(trial, {"cpu": plan.threads}),
            param_space=_space(bounds), tune_config=_tune_config(plan, bounds, workers), run_config=run,
        )  # fmt: skip
        with brake.pulled():
            results = tuner.fit()
        return "; ".join(str(error).strip().splitlines()[-1] for error in results.errors[:1])


def _tune_config(plan: Plan, bounds: Bounds, workers: int) -> Any:
    """What is usual is tried first; trainings start as others stop."""
    first = {"rate": bounds.rate, "labels": 0.0, "hints": 0.0, "attention": 0.0}
    scheduler = ASHAScheduler(
        time_attr="round", max_t=plan.rounds, grace_period=max(1, plan.rounds // 9), reduction_factor=_REDUCTION
    )
    search = BasicVariantGenerator(
        points_to_evaluate=[first], random_state=plan.seed, max_concurrent=max(1, workers // plan.threads)
    )
    left_s = None if plan.deadline is None else max(1.0, plan.deadline - time.time() + _GRACE_S)
    return ray_tune.TuneConfig(
        metric="worth", mode="max", scheduler=scheduler, search_alg=search, num_samples=bounds.trainings,
        time_budget_s=left_s, reuse_actors=True,
    )  # fmt: skip


def _trial(config: dict[str, float], *, task: bytes, folder: str, paths: Sequence[str]) -> None:
    """One training, in a process of its own."""
    sys.path.extend(path for path in paths if path not in sys.path)
    model, lesson, plan, layers = cloudpickle.loads(task)
    torch.set_num_threads(plan.threads)
    choices = Choices(**config)
    path = Path(folder) / f"{_name(choices)}.safetensors"
    training = Training(model, lesson, choices, plan, layers)
    training.load(path)
    if not training.history:
        training.save(path)
    for row in training.history or [{"round": 0.0, **training.best}]:
        ray_tune.report(row)
    while not training.ended:
        row = training.round()
        training.save(path)
        ray_tune.report(row)


def _name(choices: Choices) -> str:
    return f"rate{choices.rate:.3g}-labels{choices.labels:g}-hints{choices.hints:g}-attention{choices.attention:g}"


def _space(bounds: Bounds) -> dict[str, Any]:
    return {
        "rate": ray_tune.loguniform(bounds.rate / _SPREAD, bounds.rate * _SPREAD),
        "labels": ray_tune.choice([0.0, 0.1, 0.5]) if bounds.labels else 0.0,
        "hints": ray_tune.choice([0.0, 0.3]) if bounds.hints else 0.0,
        "attention": ray_tune.choice([0.0, 10.0]) if bounds.attention else 0.0,
    }


def _sendable(task: object) -> bytes:
    try:
        with by_value():
            data: bytes = cloudpickle.dumps(task)
            return data
    except Exception as error:  # the user's model, data and score may hold anything
        raise InputError(
            f"The model, the data or the score cannot be sent to workers ({type(error).__name__}: {error}).",
            remedy="Let them hold neither open files nor threads.",
        ) from error


@contextmanager
def _cluster(workers: int, address: str | None) -> Iterator[None]:
    """Ray for the length of the block: at the address, or on this machine; what is connected already where there is one."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is told as one sentence
    owns = not ray.is_initialized()
    if owns:
        connect(address, workers)
    try:
        yield
    finally:
        if owns:
            ray.shutdown()
