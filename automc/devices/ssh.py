"""A machine that ssh reaches: models are sent there and measured; they are scored here, by the runtime of this machine."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import IO, Any

import numpy as np

from automc.devices.agent import receive, send, until_greeted
from automc.devices.cpu import Cpu
from automc.devices.device import Array, Capabilities, Model, NodeTime, Session, digest
from automc.devices.exclusive import overhear
from automc.devices.kit import agent_archive, patterned
from automc.devices.measure import Measurement
from automc.errors import InputError, MissingError

__all__ = ["INSTALL", "Ssh"]

INSTALL = (
    'mkdir -p "$HOME/.cache/automc" && f="$HOME/.cache/automc/{name}" && whole() {{ test -s "$1" && test "$(wc -c < "$1")" -eq {size}; }}'
    ' && {{ whole "$f" || {{ cat > "$f.$$" && whole "$f.$$" && mv "$f.$$" "$f"; }}; }}'
)
"""What is sent is kept once all of it is there: a connection that breaks ends what is read as if it were the end."""
_SILENT = "it said nothing"
_ANSWER_S = 180.0
"""How long the other machine may take to load what measures; a slow one takes half a minute."""
_PATIENCE_S = 5.0
"""How long a connection that is of no use may take to end by itself."""


class Ssh:
    """ONNX Runtime on the processor of another machine, which has Python, numpy and onnxruntime.

    $AUTOMC_SSH is the ssh command, with options where it needs any; $AUTOMC_REMOTE_PYTHON is the other machine's Python.
    """

    def __init__(self, host: str, threads: int = 1) -> None:
        if not host or host.startswith("-"):
            raise InputError(f"'ssh:{host}' names no machine.", remedy="Write ssh:user@host.")
        self.host, self.threads = host, threads
        self._local = Cpu(threads)

    @property
    def name(self) -> str:
        return f"ssh:{self.host}"

    @property
    def key(self) -> str:
        return str(self._who["key"])

    def environment(self) -> dict[str, str]:
        """That of the other machine."""
        return {**self._who["environment"], "device": self.name}

    def capabilities(self) -> Capabilities:
        """What the other machine does well."""
        return self._capabilities

    def session(self, model: Model) -> Session:
        """The model loaded on this machine, to score it."""
        return self._local.session(model)

    def measure(
        self, models: Mapping[str, Model], inputs: Sequence[Array], rounds: int = 12, **options: Any
    ) -> Measurement:
        """Whole models, interleaved, on the other machine."""
        blobs = [*map(_packed, models.values()), *map(_array, inputs)]
        header = {"ask": "measure", "models": list(models), "rounds": rounds, "options": options}
        return Measurement.from_json(self._ask(header, blobs))

    def node_times(self, model: Model, inputs: Sequence[Array], repeats: int = 5) -> list[NodeTime]:
        """The kernels of the optimised graph on the other machine."""
        header = {"ask": "nodes", "models": ["model"], "repeats": repeats}
        answer = self._ask(header, [_packed(model), *map(_array, inputs)])
        overhear(answer["heard"])
        return [NodeTime.from_json(node) for node in answer["nodes"]]

    def close(self) -> None:
        """End the connection; the next question opens another."""
        pipe = self.__dict__.pop("_pipe", None)
        if pipe is not None:
            pipe.stdin.close()
            pipe.wait()
            pipe.stdout.close()

    @cached_property
    def _who(self) -> dict[str, Any]:
        return self._ask({"ask": "who"})

    @cached_property
    def _capabilities(self) -> Capabilities:
        return Capabilities.from_json(self._ask({"ask": "capabilities"}))

    def _ask(self, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> dict[str, Any]:
        pipe = self._pipe
        assert pipe.stdin is not None
        assert pipe.stdout is not None
        try:
            send(pipe.stdin, header, blobs)
            answer, why = receive(pipe.stdout), ""
        except OSError:
            answer, why = None, ""
        except ValueError as error:
            answer, why = None, str(error)
        if answer is None:
            raise MissingError(
                f"{self.host} broke off: {_last(self._end(pipe)) or why or _SILENT}",
                remedy=f"Try `ssh {shlex.quote(self.host)} true`, and again: a profile goes on where it ended.",
            )
        if "error" in answer[0]:
            raise InputError(f"{self.name} could not run the model: {answer[0]['error']}")
        return answer[0]

    @cached_property
    def _pipe(self) -> subprocess.Popen[bytes]:
        """The agent on the other machine, installed there where it is not yet."""
        archive = agent_archive({})
        name = f"agent-{digest(archive)}.zip"
        done = subprocess.run(
            [*self._command, INSTALL.format(name=name, size=len(archive))],
            input=archive,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise self._unreachable(done.stderr or done.stdout)
        python = os.environ.get("AUTOMC_REMOTE_PYTHON", "python3")
        remote = f'exec {python} "$HOME/.cache/automc/{name}" serve --threads {self.threads}'
        ends = subprocess.PIPE
        pipe = subprocess.Popen([*self._command, remote], stdin=ends, stdout=ends, stderr=self._said)
        assert pipe.stdout is not None
        patience = threading.Timer(_ANSWER_S, pipe.kill)
        patience.start()
        heard = until_greeted(pipe.stdout)
        patience.cancel()
        if heard is None:
            return pipe
        told = self._end(pipe) or heard
        if pipe.returncode == 255:
            raise self._unreachable(told)
        raise MissingError(
            f"{self.host} cannot measure: {_last(told) or _SILENT}",
            remedy="It needs Python 3.10 or later, numpy and onnxruntime; $AUTOMC_REMOTE_PYTHON names its Python.",
        )

    @cached_property
    def _said(self) -> IO[bytes]:
        """What the other side writes to its stderr: a pipe that nobody empties would block it."""
        return tempfile.TemporaryFile()

    @property
    def _command(self) -> list[str]:
        command = shlex.split(os.environ.get("AUTOMC_SSH", "ssh -o BatchMode=yes"))
        try:
            subprocess.run([command[0], "-V"], capture_output=True, check=False)
        except FileNotFoundError:
            raise MissingError(f"{command[0]!r} is not installed.", remedy="Install an ssh client.") from None
        return [*command, self.host]

    def _end(self, pipe: subprocess.Popen[bytes]) -> bytes:
        """End a connection that is of no use; what the other side wrote to its stderr."""
        self.__dict__.pop("_pipe", None)
        assert pipe.stdin is not None
        assert pipe.stdout is not None
        with contextlib.suppress(OSError):
            pipe.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            pipe.wait(_PATIENCE_S)
        pipe.kill()
        pipe.wait()
        pipe.stdout.close()
        self._said.seek(0)
        return self._said.read()

    def _unreachable(self, told: bytes) -> MissingError:
        return MissingError(
            f"{self.host} cannot be reached: {_last(told) or _SILENT}",
            remedy=f"Try `ssh {shlex.quote(self.host)} true`.",
        )


def _packed(model: Model) -> bytes:
    return zlib.compress(patterned(model if isinstance(model, bytes) else model.read_bytes()), 1)


def _array(values: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _last(told: bytes) -> str:
    lines = told.decode(errors="replace").strip().splitlines()
    return "".join(filter(str.isprintable, lines[-1][:300])) if lines else ""
