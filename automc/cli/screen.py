"""Observers for the terminal: a live view with the front, plain lines where nobody watches, or nothing at all."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveView
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from automc.cli.plot import Board
from automc.cli.report import stderr
from automc.progress import Reference
from automc.protocols import Observer
from automc.trial import Trial
from automc.wording import duration

__all__ = ["Live", "Plain", "Quiet", "Screen", "screen"]

LINES_FOR_PLOT = 20
"""A terminal needs this many lines for the plot to leave room for anything else."""


class Screen(Observer, Protocol):
    """An observer that is shown for the length of a `with` block."""

    def __enter__(self) -> Screen: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def screen(*, quiet: bool) -> Screen:
    """The observer that suits the terminal."""
    if quiet:
        return Quiet()
    console = stderr()
    return Live(console) if console.is_terminal else Plain(console)


class Quiet:
    """Shows warnings only."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def stage(self, name: str, total: float | None) -> None:
        """Nothing."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Nothing."""

    def message(self, text: str, level: str = "info") -> None:
        """Print `text` if it is a warning."""
        if level == "warning":
            stderr().print(f"Warning: {text}")


class Plain:
    """One line as a stage begins, one every `every_s` seconds while it lasts, one as it ends."""

    def __init__(self, console: Console, every_s: float = 10.0) -> None:
        self._console = console
        self._every_s = every_s
        self._name = ""
        self._total: float | None = None
        self._done = 0.0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Plain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end()

    def stage(self, name: str, total: float | None) -> None:
        """End the stage before and begin this one."""
        self._end()
        self._name, self._total, self._done = name, total, 0.0
        self._began = self._said = time.monotonic()
        self._console.print(f"{name} ...")

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Count, and say so every now and then."""
        self._done += amount
        now = time.monotonic()
        if now - self._said >= self._every_s:
            self._said = now
            parts = [_share(self._done, self._total), _left(self._done, self._total, now - self._began), note]
            self._console.print(f"  {', '.join(part for part in parts if part)}")

    def message(self, text: str, level: str = "info") -> None:
        """Print `text`."""
        self._console.print(f"Warning: {text}" if level == "warning" else text)

    def _end(self) -> None:
        if self._name:
            self._console.print(f"{self._name}: {duration(time.monotonic() - self._began)}")
        self._name = ""


class Live:
    """The stage with its share done and time left, the best so far, the front, and the latest warning.

    Ended stages and messages stay as lines above. On a low terminal the plot is left out.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._board: Board | None = None
        self._warning = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Share(),
            _TimeLeft(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
        )
        self._view = LiveView(
            get_renderable=self._render, console=console, transient=True, refresh_per_second=4, redirect_stdout=False
        )
        self._task: TaskID | None = None
        self._name = ""
        self._began = time.monotonic()

    def __enter__(self) -> Live:
        self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end()
        self._view.stop()

    def stage(self, name: str, total: float | None) -> None:
        """End the stage before and show a bar for this one, moving to and fro where `total` is unknown."""
        self._end()
        self._name, self._began = name, time.monotonic()
        self._task = self._progress.add_task(name, total=total, note="")

    def reference(self, reference: Reference) -> None:
        """Begin to draw the front."""
        self._board = Board(reference)

    def trial(self, trial: Trial) -> None:
        """Draw one more trial."""
        if self._board is not None:
            self._board.trials.append(trial)

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Move the bar."""
        if self._task is None:
            return
        self._progress.update(self._task, advance=amount)
        if note:
            self._progress.update(self._task, note=note)

    def message(self, text: str, level: str = "info") -> None:
        """Print `text` above the view; the latest warning stays in view."""
        if level == "warning":
            self._warning = text
            self._console.print(f"Warning: {text}", style="yellow")
        else:
            self._console.print(text)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [self._progress]
        if self._warning:
            parts.append(Text(f"⚠ {self._warning}", style="yellow"))
        board = self._board
        if board is not None:
            parts.append(Text(board.best_line(), style="bold"))
            if self._console.height >= LINES_FOR_PLOT and len(board.trials) > 1:
                parts.append(board.plot(width=min(56, max(20, self._console.width - 16))))
        return Group(*parts)

    def _end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._console.print(Text.assemble(("✓ ", "green"), f"{self._name} ", (_took(self._began), "dim")))
        self._task = None


class _Share(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_share(task.completed, task.total))


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(
            _left(task.completed, task.total, task.elapsed or 0.0) or duration(task.elapsed or 0.0), style="cyan"
        )


def _took(began: float) -> str:
    return duration(time.monotonic() - began)


def _share(done: float, total: float | None) -> str:
    return f"{min(100.0, 100 * done / total):.0f} %" if total else ""


def _left(done: float, total: float | None, elapsed_s: float) -> str:
    if not total or done <= 0:
        return ""
    return f"{duration(max(0.0, elapsed_s * (total - done) / done))} left"
