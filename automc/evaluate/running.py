"""What runs where policies are scored: the stitched model in PyTorch in a search, the exported one in its runtime for finalists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from automc.devices.device import Session
from automc.evaluate.runtime import Builder, StandIn
from automc.evaluate.score import Score
from automc.outputs import Outputs
from automc.policy import Policy

__all__ = ["Deployed", "Stitched"]


class Stitched:
    """Evaluator: build the policy's model and score it on a split."""

    def __init__(self, builder: Builder, split: Iterable[Any], score: Score) -> None:
        self.builder = builder
        self.split = split
        self.score = score

    def evaluate(self, policy: Policy) -> float:
        """The score of the stitched model on the split.

        Raises:
            Exception: whatever the policy, the model or the user's score function raises.
        """
        with torch.inference_mode():
            return float(self.score(self.builder.apply(policy), self.split))


class Deployed(StandIn):
    """An exported model of fixed batch size as a module, so that any score function can run what will be deployed.

    Args:
        outputs: the structure to return; None returns the first tensor alone.
        names: of the inputs, in the order of the file, where the model is called by keyword.
    """

    def __init__(
        self, session: Session, batch_size: int, outputs: Outputs | None = None, names: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.session = session
        self.batch_size = batch_size
        self.outputs = outputs
        self.names = tuple(names)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Outputs of any number of samples: cut into batches, the last one filled up with repeated samples."""
        inputs = (*inputs, *(named[name] for name in self.names[len(inputs) :]))
        count = len(inputs[0])
        parts = [self._batch([t[i : i + self.batch_size] for t in inputs]) for i in range(0, count, self.batch_size)]
        tensors = [torch.cat(batches)[:count] for batches in zip(*parts, strict=True)]
        return tensors[0] if self.outputs is None else self.outputs.rebuild(tensors)

    def _batch(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        filled = [t if len(t) == self.batch_size else t[torch.arange(self.batch_size) % len(t)] for t in inputs]
        arrays = self.session.run(*(t.cpu().numpy() for t in filled))
        return [torch.from_numpy(array).to(inputs[0].device) for array in arrays]
