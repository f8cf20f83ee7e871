"""A helper process that is fed JSON lines and never holds up the one that feeds it.

A thread would share the interpreter's lock: importing MLflow in one tripled the mean time of a 32 µs kernel that was being
measured meanwhile (33 µs -> 100 µs), and added up to 5 ms to single runs. A process leaves the measurements alone, keeps
other libraries' output off the terminal, and notices when its parent is killed.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

__all__ = ["Message", "Parent", "Worker"]

Message = Mapping[str, Any]
_NICENESS = 5


class Worker:
    """Runs `python -m module` with its standard input and output as JSON lines.

    Args:
        module: its main() talks to a `Parent`.
        on_event: called with each answer, and with {"event": "lost", "text": why} if the process ends early; from
            another thread than the caller's.
        environment: variables to set where the user has not set them.
    """

    def __init__(self, module: str, on_event: Callable[[Message], None], environment: Mapping[str, str]) -> None:
        self._on_event = on_event
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**environment, **os.environ, "PYTHONPATH": _import_path(), "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # ctrl-C is for the search, which then says what to record
        )
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Queue a message; returns at once."""
        self._queue.put(message)

    def close(self, timeout_s: float) -> bool:
        """End the input and wait for the process to finish its work; after `timeout_s` it is killed. Whether it finished."""
        self._queue.put(None)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for thread in self._threads:
            thread.join(timeout=5.0)
        self._errors.close()
        return code == 0

    def _write(self) -> None:
        assert self._process.stdin is not None
        # A process that died early breaks the pipe; the reading thread tells of it.
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            while (message := self._queue.get()) is not None:
                pipe.write((json.dumps(message) + "\n").encode())
                pipe.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                self._on_event(json.loads(line))
        if self._process.wait() != 0:
            self._on_event({"event": "lost", "text": self._last_words()})

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"


class Parent:
    """The helper process's side. From here on, whatever other code prints goes to standard error."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._arrived: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        if hasattr(os, "nice"):
            os.nice(_NICENESS)

    def emit(self, event: Message) -> None:
        """Answer the parent."""
        self._answers.write(json.dumps(event) + "\n")
        self._answers.flush()

    def incoming(self) -> Iterator[list[dict[str, Any]]]:
        """The messages that have come in, several at once when they come faster than they are dealt with.

        Waits for the next one; ends when the parent closes its end, or dies.
        """
        threading.Thread(target=self._receive, daemon=True).start()
        while (first := self._arrived.get()) is not None:
            batch: list[dict[str, Any] | None] = [first]
            while batch[-1] is not None and not self._arrived.empty():
                batch.append(self._arrived.get())
            yield [message for message in batch if message is not None]
            if batch[-1] is None:
                return

    def _receive(self) -> None:
        for line in sys.stdin:
            self._arrived.put(json.loads(line))
        self._arrived.put(None)


def _import_path() -> str:
    """Where this process imports from, for the helper to import from the same places and no other."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)
