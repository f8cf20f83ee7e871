"""Writing files so that a reader never sees half of one: a temporary name first, then renamed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automc.errors import DiskError

__all__ = ["explained", "write_atomic"]


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> Path:
    """Write `data` to `path`, creating its folder: afterwards the whole file is there, or what was there before.

    Raises:
        DiskError: the folder is read-only, is a file, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any OSError of the block into a DiskError that names `path` and says what to do.

    Raises:
        DiskError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DiskError(
            f"Cannot write {os.fspath(path)}: {reason}.",
            remedy="Free some space, or choose a folder that you may write to.",
        ) from error
