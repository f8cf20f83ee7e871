"""Wait for a moment in which the machine has cores to spare: timings beside other work are worth little."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["idle_shares", "wait_until_quiet"]

_WINDOW_S = 0.25
_IDLE = 0.8
"""A core that idles for at least this share of the time is free to measure on."""


def wait_until_quiet(
    timeout_s: float,
    threads: int = 1,
    *,
    look: Callable[[], Mapping[int, float]] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Return "" once `threads` of the cores that this process may use are idle, or after `timeout_s` a sentence that says how busy they were."""
    look = look or idle_shares
    begin = clock()
    while True:
        shares = {core: share for core, share in look().items() if _may_use(core)}
        if not shares or sum(share >= _IDLE for share in shares.values()) >= min(threads, len(shares)):
            return ""
        if clock() - begin >= timeout_s:
            busy = 1.0 - sum(shares.values()) / len(shares)
            return f"the machine was busy with other work ({busy:.0%}) for the {timeout_s:g} s that were waited"


def _may_use(core: int) -> bool:
    return not hasattr(os, "sched_getaffinity") or core in os.sched_getaffinity(0)


def idle_shares() -> dict[int, float]:
    """Core -> share of the last moment that it idled; empty where the system does not tell."""
    first = _ticks()
    time.sleep(_WINDOW_S)
    second = _ticks()
    shares = {}
    for core in first.keys() & second.keys():
        idle, total = (after - before for before, after in zip(first[core], second[core], strict=True))
        shares[core] = idle / total if total > 0 else 1.0
    return shares


def _ticks() -> dict[int, tuple[int, int]]:
    """Core -> (idle, all) ticks since the start."""
    path = Path("/proc/stat")
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]
    return {int(row[0][3:]): (int(row[4]), sum(map(int, row[1:9]))) for row in rows}
