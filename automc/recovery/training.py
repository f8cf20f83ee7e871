"""One fine-tuning of a compressed model, round by round, with a checkpoint that any process can go on from.

Weights and learned step sizes train by momentum SGD under a cosine schedule over all rounds, or the time. After each round the student is put
back into the form that is exported and scored on the validation samples; the best of these forms is what the training is worth.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from automc.compression.carriers import set_between
from automc.compression.learned import fix_steps, learn_steps
from automc.disk import write_atomic
from automc.errors import AutomcError
from automc.evaluate.worth import GAIN
from automc.recovery.distil import Loss, Weights, hint_layers
from automc.recovery.student import (
    Lesson,
    descend,
    fold,
    mixed,
    quick_layout,
    rate_at,
    samples,
    settle,
    unfold,
    zeros_kept,
)

__all__ = ["Choices", "Plan", "Training", "best_state", "curves"]

_ENOUGH_TO_MIX = 500
"""Steps: shorter trainings get farther on the samples as they are."""


@dataclass(frozen=True)
class Plan:
    """How long and within which bounds to train.

    Attributes:
        rounds: of one training at most, each of `steps` batches and an examination; a round is an epoch unless time is short.
        frozen: keep batch-norm statistics as they are.
        patience: rounds without a better score after which a training ends.
        deadline: a time.time() after which no step begins; None trains all rounds.
        threads: of PyTorch, and CPUs.
    """

    rounds: int
    steps: int
    frozen: bool = False
    patience: int = 5
    seed: int = 0
    deadline: float | None = None
    threads: int = 1

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() >= self.deadline


@dataclass(frozen=True)
class Choices:
    """What a training is free to choose: the learning rate and the shares of the loss."""

    rate: float
    labels: float = 0.0
    hints: float = 0.0
    attention: float = 0.0


class Training:
    """One training of a copy of `model`.

    Attributes:
        history: one row a round: round, score, divergence, worth, loss.
        best: score, divergence, worth and tensors of the best form so far, at first of the model as it was.
        ended: nothing is left to do.
    """

    def __init__(self, model: nn.Module, lesson: Lesson, choices: Choices, plan: Plan, layers: tuple[str, ...]) -> None:
        torch.manual_seed(plan.seed)
        self.lesson, self.choices, self.plan = lesson, choices, plan
        self.history: list[dict[str, float]] = []
        self._judge = lesson.judge
        self.best, self.best_state = self._judge.examine(model), _state(model)
        self._least = self.best["worth"] + GAIN * abs(self.best["score"])
        self.student = copy.deepcopy(model)
        self._normed = [] if plan.frozen else unfold(self.student, lesson)
        for parameter in self.student.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self._steps = learn_steps(self.student)
        quick_layout(self.student)
        weights = Weights(choices.labels, choices.hints, choices.attention)
        self.loss = Loss(
            self.student,
            quick_layout(copy.deepcopy(lesson.teacher)),
            weights,
            logits=lesson.logits,
            layers=hint_layers(layers),
            example=lesson.ranges,
        )
        self._optimizer = self._sgd()
        self._batches = mixed(samples(lesson)) if self._mixes else samples(lesson)
        self._diverged = False
        self._began = time.time()

    @property
    def ended(self) -> bool:
        rounds = len(self.history)
        return self._diverged or rounds >= self.plan.rounds or self._stale >= self.plan.patience or self.plan.is_over

    def round(self) -> dict[str, float]:
        """Train one round and examine the student; the row of the history.

        A loss or a score that is not finite ends the training; the best form is kept.
        """
        done = len(self.history) * self.plan.steps
        torch.manual_seed(self.plan.seed + len(self.history))
        self.student.train(not self.plan.frozen)
        losses = []
        with zeros_kept(self.student):
            for step in range(done, done + self.plan.steps):
                losses.append(self._step(step))
                if self._diverged or self.plan.is_over:
                    break
        row = {"round": len(self.history) + 1.0, "loss": sum(losses) / len(losses), **self._examine()}
        self.history.append(row)
        return row

    def save(self, path: Path) -> None:
        """Write everything that going on needs, as safetensors."""
        tensors = {
            **{f"student/{k}": v for k, v in _state(self.student).items()},
            **{f"loss/{k}": v for k, v in _state(self.loss).items()},
            **{f"best/{k}": v for k, v in self.best_state.items()},
            **{f"momentum/{i}": buffer for i, buffer in self._momentum()},
        }
        facts = {
            "choices": asdict(self.choices),
            "history": self.history,
            "best": self.best,
            "diverged": self._diverged,
        }
        write_atomic(path, safetensors.torch.save(tensors, {"training": json.dumps(facts)}))

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote; stay at the start where there is nothing, or nothing whole."""
        found = _read(path)
        if found is None:
            return
        tensors, facts = found
        self.student.load_state_dict(_under("student/", tensors))
        self.loss.load_state_dict(_under("loss/", tensors))
        self.best_state = _under("best/", tensors)
        self.history, self.best, self._diverged = facts["history"], facts["best"], facts["diverged"]
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        for number, buffer in _under("momentum/", tensors).items():
            self._optimizer.state[parameters[int(number)]]["momentum_buffer"] = buffer

    @property
    def _mixes(self) -> bool:
        """Whether there is time to learn from mixtures too; labels would have to be mixed with them."""
        return not self.choices.labels and self.plan.rounds * self.plan.steps >= _ENOUGH_TO_MIX

    @property
    def _stale(self) -> int:
        """Rounds since the best one."""
        worths = [row["worth"] for row in self.history]
        return len(worths) - 1 - worths.index(max(worths)) if worths else 0

    def _sgd(self) -> torch.optim.SGD:
        """Step sizes get no weight decay: a smaller step is no simpler model."""
        steps = {id(step) for step in self._steps}
        weights = [p for p in self.student.parameters() if p.requires_grad and id(p) not in steps]
        groups = [{"params": [*weights, *self.loss.parameters()], "weight_decay": 1e-4}]
        if self._steps:
            groups.append({"params": self._steps, "weight_decay": 0.0})
        return torch.optim.SGD(groups, lr=self.choices.rate, momentum=0.9, nesterov=True)

    def _step(self, step: int) -> float:
        progress = max(step / (self.plan.rounds * self.plan.steps), self._time_spent())
        for group in self._optimizer.param_groups:
            group["lr"] = rate_at(step, progress, self.choices.rate)
        loss = self.loss(*next(self._batches))
        value = float(loss.detach())
        if not math.isfinite(value):
            self._diverged = True
            return value
        descend(self._optimizer, loss, self.student)
        return value

    def _time_spent(self) -> float:
        """The share of its time that the training has had, so that the rate has come down when time is over; 0 without a deadline."""
        if self.plan.deadline is None:
            return 0.0
        return min(1.0, (time.time() - self._began) / max(1e-3, self.plan.deadline - self._began))

    def _examine(self) -> dict[str, float]:
        """Score and divergence of the student in the form that is exported; those of the best where they are not finite."""
        if not self._diverged:
            form = self._form()
            try:
                found = self._judge.examine(form)
            except AutomcError:  # the score is not a finite number
                self._diverged = True
                return dict(self.best)
            if found["worth"] >= self._least and _worth(found) > _worth(self.best):
                self.best, self.best_state = found, _state(form)
            return found
        return dict(self.best)

    def _form(self) -> nn.Module:
        form = copy.deepcopy(self.student).eval()
        fix_steps(form)
        settle(form, self._normed, self.lesson)
        for name in self._normed:
            fold(form, name)
        set_between(form, self.lesson.ranges)
        return form.requires_grad_(False)

    def _momentum(self) -> list[tuple[int, Tensor]]:
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        buffers = [(i, self._optimizer.state[p].get("momentum_buffer")) for i, p in enumerate(parameters)]
        return [(i, buffer.clone(memory_format=torch.contiguous_format)) for i, buffer in buffers if buffer is not None]


def best_state(folder: Path) -> tuple[dict[str, float], dict[str, Tensor]] | None:
    """What the best of the trainings in a folder is worth, and its tensors; None where none has begun."""
    found = [one for path in sorted(folder.glob("*.safetensors")) if (one := _read(path)) is not None]
    if not found:
        return None
    tensors, facts = max(found, key=lambda one: _worth(one[1]["best"]))
    return facts["best"], _under("best/", tensors)


def curves(folder: Path) -> list[dict[str, Any]]:
    """What the trainings in a folder of folders chose, and how they went: {"policy", "choices", "history", "best"} of each.

    The inner folders are named by the policy's digest, a dash and anything.
    """
    found = [(path.parent.name.partition("-")[0], _read(path)) for path in sorted(folder.glob("*/*.safetensors"))]
    return [
        {"policy": policy, **{name: read[1][name] for name in ("choices", "history", "best")}}
        for policy, read in found
        if read is not None
    ]


def _worth(found: Mapping[str, float]) -> tuple[float, float]:
    """Of what is worth the same, the nearer to the dense model."""
    return found["worth"], -found["divergence"]


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["training"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None
