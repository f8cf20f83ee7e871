"""The tracker that records nothing: for `--tracking-uri ""`, for tests, and the interface that a tracker has beyond `log`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from automc.result import Summary
from automc.trial import Cost, Trial

__all__ = ["NullTracker", "Status"]

Status = Literal["FINISHED", "KILLED", "FAILED"]


class NullTracker:
    """Accepts everything and keeps nothing."""

    def start(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """The search begins: its settings, and what to find it by."""

    def set_reference(self, cost: Cost, score: float, limits: Mapping[str, float]) -> None:
        """The dense model's cost and score, and the resolved budget (metric -> limit, SI units)."""

    def log(self, trial: Trial) -> None:
        """A trial ended."""

    def finish(self, summary: Summary | None, run_dir: Path, status: Status = "FINISHED") -> None:
        """The search ended; what it wrote lies in `run_dir`. `summary` is None when it did not get that far."""

    def close(self, timeout_s: float = 60.0) -> bool:
        """Wait until everything is recorded, for at most `timeout_s`; whether it is."""
        return True
