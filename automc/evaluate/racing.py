"""Racing: the evaluation of a candidate ends when it can no longer beat those that cost no more.

Maron and Moore, "Hoeffding races" (NeurIPS 1993), with the bound of `automc.evaluate.betting` in place of Hoeffding's. What is
followed is the difference from the dense model's values on the same samples: it varies less than the values themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automc.errors import InputError
from automc.evaluate.betting import is_below
from automc.evaluate.data import inputs_of, targets_of
from automc.evaluate.runtime import Builder
from automc.policy import Policy
from automc.protocols import Estimate

__all__ = ["ERROR", "MIN_SAMPLES", "Racing", "Samples"]

ERROR = 0.01
"""Probability that a candidate which would have beaten its rival is stopped, over the order of the samples, all looks together."""
MIN_SAMPLES = 256
_MAX_BYTES = 2**30

PerSample = Callable[[Any, Any], Tensor]


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

    Args:
        per_sample: outputs and targets of a batch -> (batch,) values.
        error: probability that `race` stops a candidate that would have beaten its rival. It is that of each race, for a
            candidate that was not chosen by the order of the samples.
    """

    def __init__(self, builder: Builder, samples: Samples, per_sample: PerSample, error: float = ERROR) -> None:
        self.builder = builder
        self.samples = samples
        self.per_sample = per_sample
        self.error = error
        self.dense = self._values(builder.apply(Policy()), 0, len(samples))

    def evaluate(self, policy: Policy) -> float:
        """The mean over all samples.

        Raises:
            InputError: the values are not between 0 and 1, one per sample.
            Exception: whatever the policy or the model raises.
        """
        return float(self._values(self.builder.apply(policy), 0, len(self.samples)).mean())

    def race(self, policy: Policy, rival: float) -> float:
        """The mean over all samples, or an `Estimate` of it once it is known to be below `rival`.

        Raises:
            Exception: as `evaluate`.
        """
        model = self.builder.apply(policy)
        values = np.zeros(0)
        # (1 + value - dense) / 2 lies in 0..1, and its mean is below `reach` exactly when that of the values is below the rival.
        reach = max(0.0, (1.0 + rival - self.dense.mean()) / 2.0)
        while len(values) < len(self.samples):
            values = np.concatenate([values, self._values(model, len(values), self.samples.block)])
            difference = values - self.dense[: len(values)]
            seen = len(values)
            if seen < len(self.samples) and is_below((1.0 + difference) / 2.0, len(self.samples), reach, self.error):
                return Estimate(np.clip(self.dense.mean() + difference.mean(), 0.0, 1.0), seen)
        return float(values.mean())

    def _values(self, model: nn.Module, start: int, count: int) -> NDArray[np.float64]:
        """(count,) values of the samples from `start` on, fewer at the end."""
        values = []
        stop = min(start + count, len(self.samples))
        with torch.inference_mode():
            for first in range(start, stop, self.samples.block):
                rows = slice(first, min(first + self.samples.block, stop))
                outputs = model(*(tensor[rows] for tensor in self.samples.inputs))
                found = self.per_sample(outputs, self.samples.targets[rows]).detach().double()
                if found.shape != (rows.stop - rows.start,) or not bool(((found >= 0) & (found <= 1)).all()):
                    raise InputError(
                        f"per_sample gave values of shape {tuple(found.shape)} for {rows.stop - rows.start} samples.",
                        remedy="Let it return one value from 0 to 1 for each sample.",
                    )
                values.append(found.cpu().numpy())
        return np.concatenate(values)
