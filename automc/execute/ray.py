"""Workers as Ray actors, on this machine or on a cluster; model, data and database lie once in each node's object store."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1")  # read when ray is imported; nothing stitches in place
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.exceptions as faults

from automc.errors import AutomcError, DiskError, InputError, MissingError
from automc.execute.pool import Lost
from automc.execute.worker import Worker
from automc.policy import Policy
from automc.protocols import Evaluator

__all__ = ["RayCrew", "by_value", "connect"]

_KNOCK_S = 10.0
_SHIP = (
    "Build the wheel (pip wheel --no-deps -w dist .) and give --ray-env a file with the line "
    "`py_modules: [dist/automc-VERSION-py3-none-any.whl]`, or install automc on every node."
)


class RayCrew:
    """Ray, connected to or started here, and the actors of one search.

    Args:
        address: of an existing cluster; None starts one on this machine, which ends with `close`.
        cpus: that each worker holds, 0.5 for two workers a core; it evaluates with as many threads, at least one.
        environment: Ray's runtime_env of the workers.

    Raises:
        MissingError: no cluster there, or one of another version of Ray or Python.
        DiskError: Ray cannot write its files.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: float = 1.0,
        environment: Mapping[str, Any] | None = None,
        local_cpus: int | None = None,
    ) -> None:
        self._cpus = cpus
        self._owns = not ray.is_initialized()
        if self._owns:
            connect(address, local_cpus)
        self._actor = ray.remote(Worker).options(
            num_cpus=cpus, max_restarts=0, max_task_retries=0, runtime_env=dict(environment or {})
        )
        self._evaluator: Any = None
        self._workers: list[Any] = []

    def capacity(self) -> int:
        """How many workers the CPUs of the cluster suffice for."""
        return int(ray.cluster_resources().get("CPU", 0.0) / self._cpus + 1e-6)

    def put(self, evaluator: Evaluator) -> None:
        """Hand the evaluator to the object store; workers load it from there.

        Raises:
            InputError: it holds what cannot be sent to another process.
        """
        try:
            with by_value(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the store is read-only, and so is what lies in it
                self._evaluator = ray.put(evaluator)
        except Exception as error:  # the user's model, data and score may hold anything
            raise InputError(
                f"The model, the data or the score cannot be sent to workers ({type(error).__name__}: {error}).",
                remedy="Use --workers 1, or let them hold neither open files nor threads.",
            ) from error

    def start(self) -> Any:
        """A new actor."""
        self._workers.append(self._actor.remote([p for p in sys.path if p], max(1, int(self._cpus))))
        return self._workers[-1]

    def load(self, worker: Any) -> Hashable:
        """Let an actor load what was put."""
        return _ticket(worker.load.remote(self._evaluator))

    def ping(self, worker: Any) -> Hashable:
        """Let an actor answer."""
        return _ticket(worker.ping.remote())

    def evaluate(self, worker: Any, policy: Policy, rival: float) -> Hashable:
        """Let an actor evaluate a policy."""
        return _ticket(worker.evaluate.remote(policy, rival))

    def wait(self, tickets: Sequence[Hashable], timeout_s: float) -> Sequence[Hashable]:
        """The calls that have ended."""
        ended, _ = ray.wait(list(tickets), num_returns=1, timeout=timeout_s)
        if ended and len(tickets) > 1:
            ended, _ = ray.wait(list(tickets), num_returns=len(tickets), timeout=0)
        return list(ended)

    def result(self, ticket: Hashable) -> Any:
        """What a call returned.

        Raises:
            Lost: the actor is gone, or could not load.
            MissingError: automc is not installed where the actor runs.
        """
        try:
            return ray.get(ticket)
        except (faults.RayError, ImportError) as error:
            raise _explained(error) from error

    def stop(self, worker: Any) -> None:
        """Kill an actor."""
        self._workers.remove(worker)
        ray.kill(worker, no_restart=True)

    def close(self) -> None:
        """End what was started here."""
        for worker in list(self._workers):
            self.stop(worker)
        if self._owns:
            ray.shutdown()


def _ticket(reference: Any) -> Hashable:
    ticket: Hashable = reference
    return ticket


def connect(address: str | None, local_cpus: int | None) -> None:
    """Connect to the Ray cluster at `address`; None starts one on this machine.

    Raises:
        MissingError: no cluster there, or one of another version of Ray or Python.
        DiskError: Ray cannot write its files.
    """
    if address is not None:
        _knock(address)
    local = {"num_cpus": local_cpus, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address or "local", logging_level="ERROR", log_to_driver=False, **local)
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise _unreachable(address, error) from error
        raise DiskError(f"Ray cannot write its files: {error}.", remedy="Point RAY_TMPDIR at a folder that you may write to.") from error  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise _mismatch(str(error)) or _unreachable(address, error) from error


def _knock(address: str) -> None:
    """Find out whether anything listens there: Ray ends the whole process where nothing answers for a minute."""
    if address == "auto":
        return
    place = urlsplit(address if "//" in address else f"//{address}")
    try:
        port = place.port or 0
    except ValueError:
        port = 0
    if not place.hostname or not port:
        raise InputError(
            f"{address!r} is not the address of a Ray cluster.", remedy="Write HOST:6379, ray://HOST:10001 or auto."
        )
    try:
        socket.create_connection((place.hostname, port), timeout=_KNOCK_S).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str | None, error: Exception) -> MissingError:
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    first = re.split(r"\.\s|\n", said)[0].rstrip(".")
    if address is None:
        return MissingError(f"Ray does not start on this machine: {first}.", remedy="Use --workers 1.")
    return MissingError(
        f"No Ray cluster can be reached at {address!r}: {first}.",
        remedy="Give --ray-address as `ray status` or `ray start --head` prints it, or leave it out to use this machine.",
    )


def _mismatch(message: str) -> MissingError | None:
    """The error of a cluster of another version; None where the message is of something else."""
    if "ersion mismatch" not in message:
        return None
    versions = re.findall(r"(Ray|Python): (\d[\w.]*)", message)
    ray_there = next((version for name, version in versions if name == "Ray"), "?")
    python_there = next((version for name, version in versions if name == "Python"), "?")
    here = f"Ray {ray.__version__} and Python {sys.version.split()[0]}"
    return MissingError(
        f"The cluster runs Ray {ray_there} and Python {python_there}, this process {here}.",
        remedy=f"Install the same here (pip install ray=={ray_there}), or start the cluster with what runs here.",
    )


def _explained(error: Exception) -> AutomcError | Lost:
    """What a failed call means: the package is missing there, or the worker is gone."""
    text = str(error)
    if re.search(r"No module named '?automc", text):
        return MissingError("The nodes of the Ray cluster have no automc.", remedy=_SHIP)
    if isinstance(error, faults.RuntimeEnvSetupError):
        return MissingError(f"The environment of the workers cannot be made: {_last(text)}.", remedy="Correct the file of --ray-env.")  # fmt: skip
    if isinstance(error, faults.OutOfMemoryError) or "low on memory" in text:
        return Lost("the worker ran out of memory")
    if isinstance(error, faults.NodeDiedError) or "node has died" in text:
        return Lost("the worker died with its node")
    if isinstance(error, faults.RayTaskError):
        return Lost(f"the worker raised {_last(text)}")
    return Lost("the worker died: it crashed, or was killed, as the system does when memory runs out")


def _last(text: str) -> str:
    """The last line of a traceback."""
    lines = text.strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else "nothing"


@contextlib.contextmanager
def by_value() -> Iterator[None]:
    """Send the classes and functions of a user's own files with the objects: workers on other machines lack those files."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("automc_user_")]
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)
