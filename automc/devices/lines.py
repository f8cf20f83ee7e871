"""JSON lines on disk: appended whole, read as far as they can be. Needs the standard library alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["SCHEMA", "append_lines", "read_lines"]

SCHEMA = 1


def append_lines(path: Path, lines: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Append (kind, record) lines in one write, on a new line even after a line that was cut off.

    Raises:
        OSError: the file cannot be written.
    """
    text = "".join(json.dumps({"schema": SCHEMA, "kind": kind, **data}) + "\n" for kind, data in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + text if _is_cut(path) else text)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The records, in order; None for each line that is damaged or of another schema. Nothing where there is no file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                yield None
                continue
            is_ours = isinstance(record, dict) and record.get("schema") == SCHEMA and "kind" in record
            yield record if is_ours else None


def _is_cut(path: Path) -> bool:
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
