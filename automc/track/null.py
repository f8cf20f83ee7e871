"""The tracker that records nothing: for `--tracking-uri ""`, and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from automc.protocols import Status
from automc.result import Summary
from automc.trial import Cost, Trial

__all__ = ["NullTracker"]


class NullTracker:
    """Accepts everything and keeps nothing; the methods are those of a `Tracker`."""

    def start(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        pass

    def set_reference(self, cost: Cost, score: float, limits: Mapping[str, float]) -> None:
        pass

    def log(self, trial: Trial) -> None:
        pass

    def finish(self, summary: Summary | None, run_dir: Path, status: Status = "FINISHED") -> None:
        pass

    def close(self, timeout_s: float = 60.0) -> bool:
        return True
