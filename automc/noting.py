"""An observer that notes in the run's folder where the search stands, and passes everything on."""

from __future__ import annotations

import time
from dataclasses import replace

from automc.errors import DiskError
from automc.progress import Progress, Reference
from automc.protocols import Observer, Watcher
from automc.rundir import RunDir
from automc.trial import Trial

__all__ = ["Noting"]

_EVERY_S = 1.0
_WARNINGS = 5


class Noting:
    """Writes progress.json at most once in `every_s` seconds, and as each stage begins."""

    def __init__(self, observer: Observer, run: RunDir, every_s: float = _EVERY_S) -> None:
        self._observer = observer
        self._run = run
        self._every_s = every_s
        self._progress = Progress()

    def stage(self, name: str, total: float | None) -> None:
        """A stage begins."""
        self._observer.stage(name, total)
        self._note(stage=name, total=total, done=0.0, note="", began=time.time())

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """`amount` units of the current stage are done."""
        self._observer.advance(amount, note)
        self._progress = replace(self._progress, done=self._progress.done + amount, note=note or self._progress.note)
        if time.time() - self._progress.updated >= self._every_s:
            self._note()

    def message(self, text: str, level: str = "info") -> None:
        """A sentence for the person; warnings stay in the record."""
        self._observer.message(text, level)
        if level == "warning":
            self._note(warnings=(*self._progress.warnings, text)[-_WARNINGS:])

    def reference(self, reference: Reference) -> None:
        """The dense model was measured and the budget resolved."""
        if isinstance(self._observer, Watcher):
            self._observer.reference(reference)
        self._note(reference=reference)

    def trial(self, trial: Trial) -> None:
        """A trial ended; trials.jsonl has it."""
        if isinstance(self._observer, Watcher):
            self._observer.trial(trial)

    def end(self) -> None:
        """The search is over."""
        self._note(ended=True)

    def _note(self, **changes: object) -> None:
        self._progress = replace(self._progress, updated=time.time(), **changes)  # type: ignore[arg-type]
        try:
            self._run.write_progress(self._progress)
        except DiskError as error:  # what must be kept is written elsewhere, and stops the search there
            self._observer.message(str(error), "warning")
            self._every_s = float("inf")
