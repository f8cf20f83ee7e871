"""What goes to the terminal besides progress: tables, JSON and errors. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

__all__ = ["error_record", "print_error", "print_json", "stderr", "stdout"]


def stdout() -> Console:
    """A console for results; wide enough for a table when it is not a terminal."""
    return _console(stderr=False)


def stderr() -> Console:
    """A console for progress, messages and errors."""
    return _console(stderr=True)


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on stdout; figures that JSON cannot hold (NaN, infinity) become null."""
    print(json.dumps(_strict(data), indent=1, ensure_ascii=False))


def print_error(message: str, remedy: str = "") -> None:
    """The sentence and the remedy, on stderr."""
    print(f"{message} {remedy}".strip(), file=sys.stderr)


def error_record(kind: str, message: str, remedy: str, exit_code: int) -> dict[str, Any]:
    """What `--json` prints in place of a result."""
    return {"error": {"kind": kind, "message": message, "remedy": remedy, "exit_code": exit_code}}


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value
