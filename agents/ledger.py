"""Ledger: what was asked and told, as rows of codes, so that no agent proposes the same policy twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from automc.policy import Policy
from automc.space import Codes, SearchSpace
from automc.trial import Trial

__all__ = ["Ledger", "is_scored"]


class Ledger:
    """The rows that were proposed or told.

    Attributes:
        rows: every row proposed or told, in that order.
        scored: (row, trial) of every trial that has a score, in the order told.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._seen: set[bytes] = set()
        self.rows: list[Codes] = []
        self.scored: list[tuple[Codes, Trial]] = []

    def is_new(self, row: Codes) -> bool:
        """Whether (domains,) `row` was neither proposed nor told."""
        return row.tobytes() not in self._seen

    def propose(self, row: Codes) -> Policy:
        """The policy of `row`, marked as proposed."""
        self._note(row)
        return self._space.decode(row[None])[0]

    def fill(self, count: int, draw: Callable[[], Codes | None]) -> list[Policy]:
        """`count` policies of the new rows that `draw` gives, marked as proposed; fewer where it gives None."""
        asked: list[Policy] = []
        while len(asked) < count and (row := draw()) is not None:
            asked.append(self.propose(row))
        return asked

    def first_new(self, rows: Iterable[Codes]) -> Codes | None:
        """The first of `rows` that was neither proposed nor told."""
        return next((row for row in rows if self.is_new(row)), None)

    def record(self, trials: Iterable[Trial]) -> list[tuple[Codes, Trial]]:
        """Note trials and return them with their rows; trials of policies that the space does not offer are passed over."""
        known = [trial for trial in trials if self._space.contains(trial.policy)]
        rows = self._space.encode(trial.policy for trial in known)
        noted = list(zip(rows, known, strict=True))
        for row in rows:
            self._note(row)
        self.scored.extend((row, trial) for row, trial in noted if is_scored(trial))
        return noted

    def _note(self, row: Codes) -> None:
        if self.is_new(row):
            self._seen.add(row.tobytes())
            self.rows.append(row)


def is_scored(trial: Trial) -> bool:
    """Whether the trial has a score that can be compared."""
    return trial.score is not None and bool(np.isfinite(trial.score))
