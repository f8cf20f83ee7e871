"""A pool of workers: each evaluates one policy at a time; what is lost or raises is tried once more elsewhere.

Nothing here depends on where the workers are. No wait is endless: a worker that hangs is replaced, and where no worker is left
for too long the search ends with what it has.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from automc.errors import AutomcError, MissingError
from automc.policy import Policy
from automc.protocols import Outcome

__all__ = ["Crew", "Lost", "Pool"]

_LOOK_S = 5.0
"""Time between two looks at what hangs, and at whether the cluster has grown."""
_FRESH_S = 1.0
"""A worker that was idle for longer may have died unnoticed, and is asked before it is given work."""
_STARTS = 3
"""So many workers in a row that fail to start end the search."""


class Lost(Exception):
    """A worker is gone, or was given up; the message says why."""


class Crew(Protocol):
    """Workers and how to talk to them. A ticket stands for a call in progress."""

    def start(self) -> Any:
        """A new worker; it need not run yet."""
        ...

    def load(self, worker: Any) -> Hashable:
        """Let a worker load the evaluator."""
        ...

    def ping(self, worker: Any) -> Hashable:
        """Let a worker answer."""
        ...

    def evaluate(self, worker: Any, policy: Policy, rival: float) -> Hashable:
        """Let a worker evaluate a policy; the result is an Outcome."""
        ...

    def wait(self, tickets: Sequence[Hashable], timeout_s: float) -> Sequence[Hashable]:
        """The tickets of calls that have ended, at least one of them unless the time is over first."""
        ...

    def result(self, ticket: Hashable) -> Any:
        """What an ended call returned.

        Raises:
            Lost: the worker is gone.
        """
        ...

    def stop(self, worker: Any) -> None:
        """End a worker at once, whatever it does."""
        ...

    def capacity(self) -> int:
        """How many workers there is room for."""
        ...


@dataclass(eq=False)
class _Task:
    """A policy to be scored, and what went wrong with it so far."""

    policy: Policy
    rival: float
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0
    avoid: _Seat | None = None


@dataclass(eq=False)
class _Seat:
    """The place of a worker: `task` is what it evaluates, None while it loads or answers; `ticket` is None while it is idle."""

    worker: Any
    ticket: Hashable | None
    since: float
    task: _Task | None = None
    is_loaded: bool = False


class Pool:
    """The executor of several workers.

    Args:
        workers: how many; None as many as there is room for, more when more room comes.
        trial_timeout_s: a worker that takes longer for one evaluation is replaced.
        start_timeout_s: how long to wait for the first worker, or for another when all are gone.
    """

    def __init__(
        self,
        crew: Crew,
        workers: int | None,
        *,
        trial_timeout_s: float | None = None,
        start_timeout_s: float = 60.0,
        started: Sequence[Any] = (),
    ) -> None:
        self.crew = crew
        self.slots = workers or max(1, crew.capacity())
        self._grows = workers is None
        self._trial_timeout_s = trial_timeout_s
        self._start_timeout_s = start_timeout_s
        self._waiting: deque[_Task] = deque()
        self._failed_starts = 0
        self._looked = self._staffed = time.monotonic()
        ready = list(started[: self.slots])
        self._seats = [self._seat(worker) for worker in ready + [crew.start() for _ in range(self.slots - len(ready))]]

    def submit(self, policy: Policy, rival: float) -> None:
        """Evaluate as soon as a worker is free."""
        self._waiting.append(_Task(policy, rival))
        self._dispatch()

    def collect(self) -> Sequence[Outcome]:
        """What has ended, waiting for it.

        Raises:
            MissingError: no worker could be had for longer than the start timeout.
            AutomcError: workers fail to start again and again.
        """
        while True:
            self._grow()
            self._dispatch()
            if outcomes := self._progress():
                return outcomes

    def pause(self) -> None:
        """Wait for workers that load, unless they wait for room; then nothing runs that was not submitted meanwhile."""
        deadline = time.monotonic() + _LOOK_S
        while (loading := [s for s in self._seats if not s.is_loaded]) and time.monotonic() < deadline:
            for ticket in self.crew.wait([seat.ticket for seat in loading], deadline - time.monotonic()):
                self._settle(next(seat for seat in loading if seat.ticket == ticket))

    def close(self) -> None:
        """End all workers."""
        for seat in self._seats:
            self.crew.stop(seat.worker)
        self._seats.clear()

    def _seat(self, worker: Any) -> _Seat:
        return _Seat(worker, self.crew.load(worker), time.monotonic())

    def _dispatch(self) -> None:
        """Give waiting tasks to idle workers."""
        for seat in self._seats:
            if seat.ticket is not None or not self._waiting:
                continue
            if time.monotonic() - seat.since > _FRESH_S:
                seat.ticket = self.crew.ping(seat.worker)
            elif task := self._task_for(seat):
                seat.task, seat.since = task, time.monotonic()
                seat.ticket = self.crew.evaluate(seat.worker, task.policy, task.rival)

    def _task_for(self, seat: _Seat) -> _Task | None:
        """The first waiting task that may run there: not on the worker that it failed on, where there is another."""
        alone = not any(other.is_loaded for other in self._seats if other is not seat)
        task = next((task for task in self._waiting if alone or task.avoid is not seat), None)
        if task is not None:
            self._waiting.remove(task)
        return task

    def _progress(self) -> list[Outcome]:
        """Wait a while for something to happen, and deal with it."""
        busy = {seat.ticket: seat for seat in self._seats if seat.ticket is not None}
        ended = self.crew.wait(list(busy), self._patience_s())
        outcomes = [outcome for ticket in ended for outcome in self._settle(busy[ticket])]
        outcomes += [outcome for seat in list(self._seats) for outcome in self._overdue(seat)]
        if any(seat.is_loaded for seat in self._seats):
            self._staffed = time.monotonic()
        elif time.monotonic() - self._staffed > self._start_timeout_s:
            raise MissingError(
                f"No worker could be started within {self._start_timeout_s:g} s: the CPUs of the cluster are taken.",
                remedy="Ask for fewer or smaller workers, or free some; the same command goes on where this one stopped.",
            )
        return outcomes

    def _patience_s(self) -> float:
        """Until the next evaluation is overdue, at most until the next look."""
        if self._trial_timeout_s is None:
            return _LOOK_S
        started = [seat.since for seat in self._seats if seat.task is not None]
        left = min(started, default=time.monotonic()) + self._trial_timeout_s - time.monotonic()
        return min(_LOOK_S, max(0.0, left))

    def _settle(self, seat: _Seat) -> list[Outcome]:
        """Take the result of an ended call."""
        task, ticket, seat.task, seat.ticket = seat.task, seat.ticket, None, None
        assert ticket is not None
        try:
            result = self.crew.result(ticket)
        except Lost as lost:
            return self._lost(seat, task, str(lost))
        took, seat.since = time.monotonic() - seat.since, time.monotonic()
        seat.is_loaded, self._failed_starts = True, 0
        if task is None:
            return []
        if result.score is None:
            return self._again(task, result.reason, took, seat)
        return [result]

    def _overdue(self, seat: _Seat) -> list[Outcome]:
        limit = self._trial_timeout_s
        if seat.task is None or limit is None or time.monotonic() - seat.since < limit:
            return []
        return self._lost(seat, seat.task, f"it took longer than {limit:g} s")

    def _lost(self, seat: _Seat, task: _Task | None, reason: str) -> list[Outcome]:
        """Put another worker in the seat of one that is gone."""
        if not seat.is_loaded:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise AutomcError(f"Workers fail to start: {reason}.", remedy="Try --workers 1.")
        self.crew.stop(seat.worker)
        self._seats[self._seats.index(seat)] = self._seat(self.crew.start())
        return [] if task is None else self._again(task, reason, time.monotonic() - seat.since, seat)

    def _again(self, task: _Task, reason: str, seconds: float, seat: _Seat) -> list[Outcome]:
        """Try a task once more, or report that it failed."""
        task.reasons.append(reason)
        task.seconds += seconds
        if len(task.reasons) == 1:
            task.avoid = seat
            self._waiting.appendleft(task)
            return []
        first, last = task.reasons
        told = last if first == last else f"{last} (the first time: {first})"
        return [Outcome(task.policy, reason=told, seconds=task.seconds)]

    def _grow(self) -> None:
        """Start more workers where there is more room now."""
        if not self._grows or time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        more = self.crew.capacity() - len(self._seats)
        self._seats.extend(self._seat(self.crew.start()) for _ in range(more))
        self.slots = max(self.slots, len(self._seats))
