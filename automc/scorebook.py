"""Scores on disk: every policy is evaluated once, whoever asks and however often the comparison is repeated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from automc.disk import explained
from automc.errors import InputError
from automc.policy import Policy
from automc.protocols import Evaluator, Scored

__all__ = ["Scorebook", "append_line", "read_lines", "read_scores"]


class Scorebook:
    """An evaluator that appends each new score to a file of JSON lines and never asks for it again.

    Args:
        key: policies of the same key are the same model.
        known: scores from elsewhere, by key.
    """

    def __init__(
        self, inner: Evaluator, path: Path, key: Callable[[Policy], str], known: Mapping[str, float] | None = None
    ) -> None:
        self.inner = inner
        self.path = path
        self.key = key
        self.scores: dict[str, float] = {**(known or {}), **read_scores(path)}
        self.evaluated = 0

    def evaluate(self, policy: Policy) -> float:
        """The score of a policy.

        Raises:
            Exception: whatever the evaluation raises; nothing is written then.
            DiskError: the score cannot be written.
        """
        key = self.key(policy)
        if key not in self.scores:
            score = Scored.of(self.inner.evaluate(policy))
            self.evaluated += 1
            self.scores[key] = score
            if math.isfinite(score):  # what is no number is no answer, and evaluated again next time
                append_line(self.path, {"digest": key, "score": float(score), "worth": score.worth})
        return self.scores[key]


def read_scores(path: Path) -> dict[str, Scored]:
    """Key -> score of a file that a `Scorebook` wrote; empty where there is none. A half-written last line is ignored.

    Raises:
        InputError: a line is not a score.
    """
    try:
        return {str(line["digest"]): Scored(float(line["score"]), line.get("worth")) for line in read_lines(path)}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold scores.", remedy="Give another --out, or delete it.") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; empty where there is none.

    Raises:
        ValueError: a line is not JSON.
    """
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line]


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON line; a half-written one before it is ended first.

    Raises:
        DiskError: it cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        if half:
            path.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")
