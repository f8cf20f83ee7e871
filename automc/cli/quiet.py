"""Keeps other libraries' chatter off the screen. Called at the edge only: the library itself never touches logging."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TextIO

__all__ = ["silence_libraries"]

_ENVIRONMENT = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "ORT_LOGGING_LEVEL": "3",
    "PYTHONWARNINGS": "ignore",  # for worker processes
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "TQDM_DISABLE": "1",
}


def silence_libraries() -> None:
    """Hide log records below ERROR and warnings that are not automc's own, in this process and its workers."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"automc\.")
    warnings.showwarning = _show


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"Warning: {message}", file=file or sys.stderr)
