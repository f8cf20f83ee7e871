"""What runs in a worker process: one evaluator, loaded once, and one evaluation at a time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from automc.execute.serial import evaluated
from automc.policy import Policy
from automc.protocols import Evaluator, Outcome

__all__ = ["Worker"]


class Worker:
    """An evaluator in a process of its own.

    Args:
        paths: where the searching process looks for modules; those that exist here are looked into after this process's own.
        threads: of one evaluation.
    """

    def __init__(self, paths: Sequence[str], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        sys.path.extend(path for path in paths if path not in sys.path and Path(path).exists())
        self._evaluator: Evaluator | None = None

    def load(self, evaluator: Evaluator) -> None:
        """Take the evaluator; one that was loaded before is dropped."""
        self._evaluator = evaluator

    def ping(self) -> None:
        """Answer, which a worker that has died does not."""

    def evaluate(self, policy: Policy, rival: float) -> Outcome:
        """The outcome of one policy; what the evaluation raises is its reason."""
        assert self._evaluator is not None
        return evaluated(self._evaluator, policy, rival)
