"""This machine's processor, running models with PyTorch: eagerly, or compiled by torch.compile.

The exported ONNX file is run as a program of PyTorch operators (`onnx_to_torch`), in fp32. Operators are timed one by one in eager mode; a compiled
model fuses them, so that there the sum of the operators is a prior, and the predictor's calibration learns from whole compiled models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor as TorchTensor

from automc.devices.cpu import cached_blocks, checked, facts, key_of, measured, quickest, runner, warmed
from automc.devices.device import Array, Capabilities, Model, NodeTime, Tensor, cache_dir
from automc.devices.exclusive import alone
from automc.devices.measure import Measurement, Protocol
from automc.devices.onnx_to_torch import Program, Step
from automc.devices.probe import probe_blocks

__all__ = ["Torch", "TorchSession", "compiled", "eager", "in_shape"]


class TorchSession:
    """A model as a PyTorch program on one device and in one type; compiled when it is first run, if at all."""

    def __init__(self, model: Model, *, compiles: bool, where: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.program = Program(model).eval().to(where, dtype)
        self._compiles, self._where, self._dtype = compiles, where, dtype

    def run(self, *inputs: Array) -> list[Array]:
        """The outputs for one batch, in fp32 where the program's type is another."""
        with torch.inference_mode():
            return [output.to("cpu", torch.float32).numpy() for output in self.ready(*self.tensors(inputs))]

    def tensors(self, inputs: Sequence[Array]) -> list[TorchTensor]:
        """The inputs where the program is."""
        given = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
        return [t.to(self._where, self._dtype if t.is_floating_point() else t.dtype) for t in given]

    @cached_property
    def ready(self) -> Callable[..., Sequence[TorchTensor]]:
        """What runs. Each compiled program is exported first: programs would share their code, and PyTorch compiles one code only so often."""
        if not self._compiles:
            return self.program
        example = [torch.zeros(shape, dtype=self._dtype, device=self._where) for shape in self.program.shapes]
        with torch.no_grad():
            graph = torch.export.export(self.program, tuple(example)).module()
        ready: Callable[..., Sequence[TorchTensor]] = torch.compile(graph)
        return ready


@dataclass(frozen=True)
class Torch:
    """PyTorch on the processor, with a stated number of threads."""

    threads: int = 1
    compiles: bool = False

    def __post_init__(self) -> None:
        checked(self.threads)

    @property
    def name(self) -> str:
        return "torch-compile" if self.compiles else "torch"

    @property
    def key(self) -> str:
        return key_of(self.name, torch.__version__, self.threads)

    def environment(self) -> dict[str, str]:
        """Processor, cores, runtime, threads, operating system: what a measurement depends on."""
        runtime = "torch.compile" if self.compiles else "torch"
        return facts(self.name, runtime, torch.__version__, self.threads)

    def capabilities(self) -> Capabilities:
        """Channel blocks as they show in the running times of operators; no integer kernels."""
        return Capabilities(*cached_blocks(self.key, lambda: probe_blocks(self)), int8=False)

    def session(self, model: Model) -> TorchSession:
        """Load a model.

        Raises:
            InputError: not a model that can be translated to PyTorch.
        """
        return TorchSession(model, compiles=self.compiles)

    def measure(
        self, models: Mapping[str, Model], inputs: Sequence[Array], rounds: int = 12, *, seed: int = 0, **options: Any
    ) -> Measurement:
        """Whole models, interleaved, each on the same batch; `options` are those of `measure.Protocol`."""
        with self._runs(models, inputs) as runs:
            return measured(runs, Protocol(rounds=rounds, **options), self.threads, seed)

    @contextmanager
    def running(self, model: Model, inputs: Sequence[Array]) -> Iterator[Callable[[], object]]:
        """What runs a model once, warm, with the device's threads and alone on the machine."""
        with self._runs({"model": model}, inputs) as runs, warmed(runs["model"], pin=self.threads == 1) as run:
            yield run

    def node_times(self, model: Model, inputs: Sequence[Array], repeats: int = 5) -> list[NodeTime]:
        """The operators of the program, run eagerly, each with the mean of its quickest quarter of `repeats` runs after one to warm up."""
        session = TorchSession(model, compiles=False)
        given, times = session.tensors(inputs), []
        with _threads(self.threads), torch.inference_mode(), alone(cache_dir(), pin=self.threads == 1):
            for _ in range(repeats + 1):
                ends = [time.perf_counter()]
                session.program.walk(given, lambda *_, ends=ends: ends.append(time.perf_counter()))
                times.append(np.diff(ends))
        seconds = [quickest(list(column)) for column in np.array(times[1:]).T]
        return in_shape(session, given, seconds)

    @contextmanager
    def _runs(self, models: Mapping[str, Model], inputs: Sequence[Array]) -> Iterator[dict[str, Callable[[], object]]]:
        """Model -> what runs it once; the device's threads are PyTorch's meanwhile."""
        with _threads(self.threads):
            sessions = {name: self.session(model) for name, model in models.items()}
            for session in sessions.values():
                session.run(*inputs)  # what is compiled is compiled before anything is timed
            yield {name: runner(session, inputs) for name, session in sessions.items()}


def in_shape(session: TorchSession, given: Sequence[TorchTensor], seconds: Sequence[float]) -> list[NodeTime]:
    """The operators with their times and with the tensors that they read and wrote."""
    found: list[NodeTime] = []

    def note(step: Step, values: dict[str, Any]) -> None:
        reads, writes = (_tensors(names, values) for names in (step.reads, step.writes))
        found.append(NodeTime(step.name, step.op, seconds[len(found)], reads, writes))

    with torch.inference_mode():
        session.program.walk(given, note)
    return found


def _tensors(names: Sequence[str], values: Mapping[str, Any]) -> tuple[Tensor, ...]:
    tensors = [values[name] for name in names if name and isinstance(values[name], TorchTensor)]
    return tuple(
        Tensor(str(t.dtype).removeprefix("torch.").replace("float32", "float"), tuple(t.shape)) for t in tensors
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads for PyTorch's operators, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def eager(threads: int = 1) -> Torch:
    """Operator by operator."""
    return Torch(threads)


def compiled(threads: int = 1) -> Torch:
    """Fused by torch.compile, which takes some seconds a model."""
    return Torch(threads, compiles=True)
