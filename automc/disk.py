"""Writing files so that a reader never sees half of one (a temporary name first, then renamed), and reading a run's back."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from automc.errors import DiskError, InputError

__all__ = ["decoded", "dump", "explained", "read_json", "read_text", "try_folder", "write_atomic"]

D = TypeVar("D")
T = TypeVar("T")


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


def try_folder(path: Path) -> None:
    """See whether a folder can be written to, or made, and leave everything as it was: asked before long work.

    Raises:
        DiskError: it cannot.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    with explained(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        finally:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()


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


def dump(data: Any) -> bytes:
    """JSON as people read it."""
    return (json.dumps(data, indent=1) + "\n").encode()


def read_text(path: Path) -> str:
    """A file of a run.

    Raises:
        InputError: it is not there.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"There is no {path}.", remedy="Its search has not got that far, or nothing held the budget."
        ) from None


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds.

    Raises:
        InputError: it is not there, or is no JSON.
    """
    return decoded(path, read_text(path), json.loads)


def decoded(where: object, data: D, decode: Callable[[D], T]) -> T:
    """decode(data), whatever is wrong with the record turned into a sentence that names the file.

    Raises:
        InputError: `decode` cannot read it.
    """
    try:
        return decode(data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{where} is damaged or of another version of automc ({type(error).__name__}: {error}).",
            remedy="Choose another run, or another name for a new one.",
        ) from error
