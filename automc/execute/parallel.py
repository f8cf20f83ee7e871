"""How many evaluations run at a time, and where; workers start aside while the device is being profiled."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from automc.errors import InputError
from automc.execute.pool import Pool
from automc.execute.serial import Serial
from automc.protocols import Evaluator, Executor

if TYPE_CHECKING:
    from automc.execute.ray import RayCrew

__all__ = ["Executors", "Parallel", "check_room", "local_cpus", "read_environment"]

_START_S = 60.0
_START_WITH_ENVIRONMENT_S = 600.0
"""Packages may have to be installed first."""


@dataclass(frozen=True)
class Parallel:
    """The workers of a search.

    Attributes:
        workers: how many; None as many as there is room for.
        address: of a Ray cluster; None starts Ray on this machine.
        cpus: that each worker holds.
        trial_timeout_s: for one evaluation; None waits as long as it takes.
        environment: Ray's runtime_env of the workers.
    """

    workers: int | None
    address: str | None = None
    cpus: float = 1.0
    trial_timeout_s: float | None = None
    environment: Mapping[str, Any] | None = None


class Executors:
    """Makes the executor of a search. Workers start when this is made, and end with `close`.

    Args:
        parallel: None evaluates in this process.

    Raises:
        InputError: there is no room for so many workers.
        MissingError: no cluster can be reached there, or none that fits.
    """

    def __init__(self, parallel: Parallel | None) -> None:
        self.parallel = parallel
        self._crew: RayCrew | None = None
        self._workers: list[Any] = []
        self._error: Exception | None = None
        self._pool: Pool | None = None
        self._settled, self._over = threading.Event(), threading.Event()
        self._keeper: threading.Thread | None = None
        if parallel is None:
            return
        if parallel.address is None:
            self._keeper = threading.Thread(target=self._keep, args=(parallel,), name="ray", daemon=True)
            self._keeper.start()
        else:
            self._start(parallel)

    def wait(self) -> None:
        """Return once the workers have started.

        Raises:
            AutomcError: they have not, and why.
        """
        if self._keeper is not None:
            self._settled.wait()
        if self._error is not None:
            raise self._error

    def make(self, evaluator: Evaluator) -> Executor:
        """The executor of an evaluator.

        Raises:
            AutomcError: as `wait`; the evaluator cannot be sent to workers.
        """
        if self.parallel is None:
            return Serial(evaluator)
        self.wait()
        assert self._crew is not None
        self._crew.put(evaluator)
        self._pool = Pool(
            self._crew,
            self.parallel.workers,
            trial_timeout_s=self.parallel.trial_timeout_s,
            start_timeout_s=_START_WITH_ENVIRONMENT_S if self.parallel.environment else _START_S,
            started=self._workers,
        )
        self._pool.pause()
        return self._pool

    def close(self) -> None:
        """End the workers, and Ray where it was started here."""
        if self._keeper is not None:
            self._over.set()
            self._keeper.join()
        elif self._crew is not None:
            self._crew.close()

    def _keep(self, parallel: Parallel) -> None:
        """Start Ray, and end it in the same thread: Linux ends a thread's children with the thread (PR_SET_PDEATHSIG)."""
        try:
            self._start(parallel)
        except Exception as error:  # told by `wait`
            self._error = error
        self._settled.set()
        self._over.wait()
        if self._crew is not None:
            self._crew.close()

    def _start(self, parallel: Parallel) -> None:
        from automc.execute.ray import RayCrew  # takes a second to import

        cpus = local_cpus() if parallel.address is None else None
        self._crew = RayCrew(parallel.address, cpus=parallel.cpus, environment=parallel.environment, local_cpus=cpus)
        room = self._crew.capacity()
        check_room(parallel, room * parallel.cpus, "the Ray cluster" if parallel.address else "this machine")
        self._workers = [self._crew.start() for _ in range(parallel.workers or room)]
        self._crew.wait([self._crew.ping(worker) for worker in self._workers], _START_S)


def local_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_room(parallel: Parallel, cpus: float, place: str) -> None:
    """Refuse workers that would wait for CPUs for ever.

    Raises:
        InputError: `place` has fewer CPUs.
    """
    wanted = (parallel.workers or 1) * parallel.cpus
    if wanted > cpus + 1e-6:
        raise InputError(
            f"{parallel.workers or 1} workers of {parallel.cpus:g} CPUs need {wanted:g}, and {place} has {cpus:g}.",
            remedy="Give --workers auto or fewer, smaller ones with --worker-cpus, or a larger cluster with --ray-address.",
        )


def read_environment(path: str | None) -> Mapping[str, Any] | None:
    """Ray's runtime_env from a YAML file.

    Raises:
        InputError: it cannot be read, or is no mapping.
    """
    if path is None:
        return None
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}.", remedy="Give --ray-env a YAML file.") from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds no runtime_env.", remedy="Write lines such as `py_modules: [dist/automc.whl]`.")
    return {str(key): value for key, value in found.items()}
