"""What tests of servers need: a port, and patience."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(value: Callable[[], Any], good: Callable[[Any], bool], seconds: float = 90.0) -> Any:
    end = time.monotonic() + seconds
    while not good(current := value()):
        assert time.monotonic() < end, f"still {current!r} after {seconds} s"
        time.sleep(0.1)
    return current
