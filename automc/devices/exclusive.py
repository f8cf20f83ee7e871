"""Have the machine to oneself while timing: one measuring process at a time, on one core, without garbage collection."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LOCK_TIMEOUT_S", "Company", "alone", "locked", "overhear", "overheard", "pinned"]

LOCK_TIMEOUT_S = 60.0
"""How long a measurement waits for another one to end."""

_POLL_S = 0.1
_LOOK_S = 0.05
_BESIDE = "another measurement"
_HEARD: ContextVar[list[str] | None] = ContextVar("heard", default=None)


@dataclass(frozen=True)
class Company:
    """In what company something is measured.

    Attributes:
        notes: what could not be had.
        noisy: another measurement goes on at the same time.
    """

    notes: tuple[str, ...]
    noisy: bool


@contextmanager
def alone(directory: Path, *, pin: bool = True, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[Company]:
    """Lock, pin and stop the garbage collector; yields which of it was not possible."""
    with ExitStack() as stack:
        lock = stack.enter_context(locked(directory, timeout_s=lock_timeout_s))
        notes, beside = [lock], lock.startswith(_BESIDE)
        if beside:
            overhear([lock])
        if pin:
            notes.append(stack.enter_context(pinned()))
        if gc.isenabled():
            gc.disable()
            stack.callback(gc.enable)
        yield Company(tuple(note for note in notes if note), beside)


@contextmanager
def overheard() -> Iterator[list[str]]:
    """What was said meanwhile of measurements beside those of this thread, once each; for those that cannot note it (kernels, energy)."""
    heard: list[str] = []
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


def overhear(notes: Iterable[str]) -> None:
    """Tell `notes` to who listens with `overheard`."""
    heard = _HEARD.get()
    if heard is not None:
        heard += [note for note in notes if note not in heard]


@contextmanager
def locked(directory: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[str]:
    """Hold the measuring lock of `directory`; yields "" or why it could not be had.

    The caller goes on, marked noisy where another one holds it, see `Company`; that there can be no lock here is a note alone.
    """
    try:
        import fcntl

        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / "measure.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except (ImportError, OSError) as error:
        yield f"no lock: other measurements may run at the same time ({error})"
        return
    try:
        deadline = time.monotonic() + timeout_s
        while not (held := _try_lock(handle)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        yield "" if held else f"{_BESIDE} held the lock for {timeout_s:g} s"
        if held:
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


@contextmanager
def pinned() -> Iterator[str]:
    """Keep the calling thread on one of its cores, and give it back its cores afterwards; yields "" or why it could not."""
    if not hasattr(os, "sched_setaffinity"):
        yield "not pinned to a core: this system does not offer it"
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {_idlest(before)})
    except OSError as error:
        yield f"not pinned to a core ({error})"
        return
    try:
        yield ""
    finally:
        os.sched_setaffinity(0, before)


def _idlest(cores: set[int]) -> int:
    """The core that idled most during the last moment; the last one where the system does not tell."""
    first = _idle_ticks()
    time.sleep(_LOOK_S)
    second = _idle_ticks()
    return max(cores, key=lambda core: (second.get(core, 0) - first.get(core, 0), core))


def _idle_ticks() -> dict[int, int]:
    path = Path("/proc/stat")
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]
    return {int(row[0][3:]): int(row[4]) for row in rows}


def _try_lock(handle: int) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
