"""The trials of a search as lines of JSON: one is on disk as soon as its trial ends, and a kill costs half a line at most."""

from __future__ import annotations

import json
import os
from pathlib import Path

from automc.disk import decoded, explained
from automc.trial import Trial

__all__ = ["Journal"]


class Journal:
    """The file `path`; neither read nor written before a method asks for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tail_checked = False

    def append(self, trial: Trial) -> None:
        """Add one trial; it is on disk when this returns.

        Raises:
            DiskError: it cannot be written; the file is as it was before.
        """
        line = (json.dumps(trial.to_json()) + "\n").encode()
        with explained(self.path):
            if not self._tail_checked:
                self._drop_half_line()
                self._tail_checked = True
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                _append(self.path, line)
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, size)
                raise

    def trials(self) -> list[Trial]:
        """The trials so far, in the order in which they ended. A half-written last line is ignored.

        Raises:
            InputError: a line is not a trial; names it.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes()[: self._whole_lines()].splitlines()
        return [self._trial(number, line) for number, line in enumerate(lines, start=1)]

    def _trial(self, number: int, line: bytes) -> Trial:
        return decoded(f"line {number} of {self.path}", line, lambda text: Trial.from_json(json.loads(text)))

    def _whole_lines(self) -> int:
        """Size in bytes of the part of the file that ends with a line end."""
        return self.path.read_bytes().rfind(b"\n") + 1

    def _drop_half_line(self) -> None:
        if self.path.exists() and self._whole_lines() != self.path.stat().st_size:
            os.truncate(self.path, self._whole_lines())


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
