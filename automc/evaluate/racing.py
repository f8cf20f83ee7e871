"""Racing: the evaluation of a candidate ends when it can no longer beat those that cost no more.

Maron and Moore, "Hoeffding races" (NeurIPS 1993), with the bound of `automc.evaluate.betting` in place of Hoeffding's. What is
followed is the difference from the dense model's values on the same samples: it varies less than the values themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automc.errors import InputError
from automc.evaluate.betting import is_below
from automc.evaluate.data import inputs_of, targets_of
from automc.evaluate.divergence import divergence
from automc.evaluate.runtime import Builder
from automc.evaluate.worth import worth
from automc.outputs import logits_of
from automc.policy import Policy
from automc.protocols import Scored

__all__ = ["ERROR", "MIN_SAMPLES", "Racing", "Samples"]

ERROR = 0.01
"""Probability that a candidate which would have beaten its rival is stopped, over the order of the samples, all looks together."""
MIN_SAMPLES = 256
_MAX_BYTES = 2**30
_MOST_LOGITS = 2**24
"""Beyond so many of the dense model's logits, over all samples, nothing is told of what a score is worth."""
_LOGITS_AT_ONCE = 2**20

PerSample = Callable[[Any, Any], Tensor]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """A split in memory in a fixed random order.

    Attributes:
        inputs: the model's positional arguments, each (samples, ...).
        block: how many samples run at a time.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    block: int

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def read(cls, split: Iterable[Any], seed: int = 0) -> Samples | None:
        """Read a split; None where it is larger than 1 GiB, or its batches do not fit together."""
        batches: list[tuple[tuple[Tensor, ...], Tensor]] = []
        size = 0
        for batch in split:
            inputs, targets = inputs_of(batch), targets_of(batch)
            size += sum(t.numel() * t.element_size() for t in inputs)
            if size > _MAX_BYTES or not isinstance(targets, Tensor):
                return None
            batches.append((inputs, targets))
        shapes = {tuple(t.shape[1:] for t in (*inputs, targets)) for inputs, targets in batches}
        if len(shapes) != 1:
            return None
        inputs = tuple(torch.cat(column) for column in zip(*(b[0] for b in batches), strict=True))
        targets = torch.cat([b[1] for b in batches])
        order = torch.from_numpy(np.random.RandomState(seed).permutation(len(targets)))
        return cls(tuple(t[order] for t in inputs), targets[order], max(len(b[1]) for b in batches))


class Racing:
    """Evaluator of a score that is a mean over samples of values from 0 to 1.

    Attributes:
        tells_worth: whether scores come with what they are worth: `nat` is given, and the dense model's logits are not too many.

    Args:
        per_sample: outputs and targets of a batch -> (batch,) values.
        nat: the outputs are logits of classes, and a nat of divergence from the dense model's costs so much of a score's worth; None
            where the score is all that counts.
        error: probability that `race` stops a candidate that would have beaten its rival. It is that of each race, for a
            candidate that was not chosen by the order of the samples.
    """

    def __init__(
        self, builder: Builder, samples: Samples, per_sample: PerSample, nat: float | None = None, error: float = ERROR
    ) -> None:
        self.builder = builder
        self.samples = samples
        self.per_sample = per_sample
        self.nat = nat
        self.error = error
        self._reference: list[Tensor] = []
        blocks = list(self._blocks(builder.apply(Policy()), learn=True))
        self.dense = np.concatenate([values for values, _ in blocks])

    @property
    def tells_worth(self) -> bool:
        return bool(self._reference)

    def evaluate(self, policy: Policy) -> float:
        """The mean over all samples, and what it is worth.

        Raises:
            InputError: the values are not between 0 and 1, one per sample.
            Exception: whatever the policy or the model raises.
        """
        return self._scored(list(self._blocks(self.builder.apply(policy))))

    def race(self, policy: Policy, rival: float) -> float:
        """The mean over all samples, or over the first of them once it is known to be below `rival`.

        Raises:
            Exception: as `evaluate`.
        """
        # (1 + value - dense) / 2 lies in 0..1, and its mean is below `reach` exactly when that of the values is below the rival.
        reach = max(0.0, (1.0 + rival - self.dense.mean()) / 2.0)
        blocks: list[tuple[Values, float]] = []
        values = np.zeros(0)
        for block in self._blocks(self.builder.apply(policy)):
            blocks.append(block)
            values = np.concatenate([values, block[0]])
            raised = (1.0 + values - self.dense[: len(values)]) / 2.0
            if len(values) < len(self.samples) and is_below(raised, len(self.samples), reach, self.error):
                break
        return self._scored(blocks)

    def _scored(self, blocks: Sequence[tuple[Values, float]]) -> Scored:
        """What the first samples say: their mean and, where they are not all, that of the difference from the dense model."""
        values = np.concatenate([values for values, _ in blocks])
        count = len(values)
        score, samples = float(values.mean()), None
        if count < len(self.samples):
            score = float(np.clip(self.dense.mean() + (values - self.dense[:count]).mean(), 0.0, 1.0))
            samples = count
        away = sum(len(values) * divergence for values, divergence in blocks) / count
        return Scored(score, worth(score, away, self.nat) if self.tells_worth else None, samples)

    def _blocks(self, model: nn.Module, *, learn: bool = False) -> Iterator[tuple[Values, float]]:
        """Block after block, the (samples,) values and the divergence from the dense model, 0 where none is taken.

        Args:
            learn: the model is the dense one, whose logits are kept.
        """
        size = self.samples.block
        for index, first in enumerate(range(0, len(self.samples), size)):
            rows = slice(first, min(first + size, len(self.samples)))
            with torch.inference_mode():
                outputs = model(*(tensor[rows] for tensor in self.samples.inputs))
                if learn:
                    self._keep(outputs, rows.stop - rows.start)
                    away = 0.0
                else:
                    away = self._away(outputs, index)
                yield self._values(outputs, rows), away

    def _keep(self, outputs: Any, count: int) -> None:
        """Keep a block of the dense model's logits, unless all of them would be too many."""
        logits = None if self.nat is None else logits_of(outputs)
        if logits is not None and logits.numel() / count * len(self.samples) <= _MOST_LOGITS:
            self._reference.append(logits.clone())

    def _away(self, outputs: Any, index: int) -> float:
        """Divergence of a block from the dense model, in nats per prediction; infinite where it is no number."""
        if not self._reference:
            return 0.0
        reference, logits = self._reference[index], logits_of(outputs)
        assert logits is not None
        rows = max(1, _LOGITS_AT_ONCE * len(reference) // reference.numel())
        parts = zip(reference.split(rows), logits.split(rows), strict=True)
        found = sum(len(wanted) * divergence(wanted, part, logits=True) for wanted, part in parts) / len(reference)
        return found if math.isfinite(found) else math.inf

    def _values(self, outputs: Any, rows: slice) -> Values:
        """(rows,) values of a block of samples."""
        found = self.per_sample(outputs, self.samples.targets[rows]).detach().double()
        count = rows.stop - rows.start
        if found.shape != (count,) or not bool(((found >= 0) & (found <= 1)).all()):
            raise InputError(
                f"per_sample gave values of shape {tuple(found.shape)} for {count} samples.",
                remedy="Let it return one value from 0 to 1 for each sample.",
            )
        values: Values = found.cpu().numpy()
        return values
