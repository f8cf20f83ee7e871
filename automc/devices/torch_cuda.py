"""The first CUDA GPU, running models with PyTorch, eagerly or compiled, in fp32, fp16 or bf16; timed by events on the device.

Event times are those of the GPU's own clock, so that what the processor does meanwhile counts only where the GPU waits for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from automc.devices.cpu import cached_blocks, facts, key_of, quickest, warmed
from automc.devices.device import Array, Capabilities, Model, NodeTime, cache_dir
from automc.devices.exclusive import alone
from automc.devices.measure import Measurement, Protocol, interleave
from automc.devices.probe import probe_blocks
from automc.devices.torch import TorchSession, in_shape
from automc.errors import MissingError

__all__ = [
    "DeviceClock", "TorchCuda", "compiled", "compiled_bf16", "compiled_fp16", "eager", "eager_bf16", "eager_fp16",
]  # fmt: skip

_SHORT = {torch.float32: "", torch.float16: "-fp16", torch.bfloat16: "-bf16"}


class DeviceClock:
    """Seconds by the GPU's clock. Each call waits for what was begun; spans are summed in double precision, as events tell them in single."""

    def __init__(self) -> None:
        self._last, self._total_s = _event(), 0.0

    def __call__(self) -> float:
        now = _event()
        now.synchronize()
        self._total_s += 1e-3 * self._last.elapsed_time(now)
        self._last = now
        return self._total_s


@dataclass(frozen=True)
class TorchCuda:
    """PyTorch on the first GPU; `threads` are the processor's, which begins the kernels."""

    threads: int = 1
    compiles: bool = False
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not torch.cuda.is_available():
            raise MissingError(
                "PyTorch finds no CUDA GPU here.",
                remedy="Install a CUDA build of torch and its driver, or use --device torch.",
            )

    @property
    def name(self) -> str:
        return f"{'torch-compile' if self.compiles else 'torch'}-cuda{_SHORT[self.dtype]}"

    @property
    def key(self) -> str:
        return f"{key_of(self.name, torch.__version__, self.threads)}-{torch.cuda.get_device_name(0).replace(' ', '-')}"

    def environment(self) -> dict[str, str]:
        """GPU, runtime and driver, type: what a measurement depends on."""
        told = facts(self.name, "torch.compile" if self.compiles else "torch", torch.__version__, self.threads)
        kind = str(self.dtype).removeprefix("torch.")
        return {**told, "processor": torch.cuda.get_device_name(0), "cuda": str(torch.version.cuda), "type": kind}

    def capabilities(self) -> Capabilities:
        """Channel blocks as they show in the running times of operators; no integer kernels."""
        return Capabilities(*cached_blocks(self.key, lambda: probe_blocks(self)), int8=False)

    def session(self, model: Model) -> TorchSession:
        """Load a model.

        Raises:
            InputError: not a model that can be translated to PyTorch.
        """
        return TorchSession(model, compiles=self.compiles, where="cuda", dtype=self.dtype)

    def measure(
        self, models: Mapping[str, Model], inputs: Sequence[Array], rounds: int = 12, *, seed: int = 0, **options: Any
    ) -> Measurement:
        """Whole models, interleaved, on a batch that is on the GPU already; `options` are those of `measure.Protocol`."""
        runs = {name: self._runner(model, inputs) for name, model in models.items()}
        protocol, clock = Protocol(rounds=rounds, **options), DeviceClock()
        with torch.inference_mode():
            return interleave(
                runs,
                protocol,
                seed=seed,
                lock_dir=cache_dir(),
                pin=False,
                clock=clock,
                sentinel=partial(_fixed_work, clock),
            )

    @contextmanager
    def running(self, model: Model, inputs: Sequence[Array]) -> Iterator[Callable[[], object]]:
        """What runs a model once, to its end, on a batch that is on the GPU already; warm and alone on the machine."""
        run = self._runner(model, inputs)

        def to_the_end() -> None:
            run()
            torch.cuda.synchronize()

        with torch.inference_mode(), warmed(to_the_end, pin=False):
            yield to_the_end

    def node_times(self, model: Model, inputs: Sequence[Array], repeats: int = 5) -> list[NodeTime]:
        """The operators of the program, run eagerly, an event after each; the mean of the quickest quarter of `repeats` runs."""
        session = TorchSession(model, compiles=False, where="cuda", dtype=self.dtype)
        given, times = session.tensors(inputs), []
        with torch.inference_mode(), alone(cache_dir(), pin=False):
            for _ in range(repeats + 1):
                events = [_event()]
                session.program.walk(given, lambda *_, events=events: events.append(_event()))
                torch.cuda.synchronize()
                times.append([1e-3 * a.elapsed_time(b) for a, b in itertools.pairwise(events)])
        return in_shape(session, given, [quickest(column) for column in zip(*times[1:], strict=True)])

    def _runner(self, model: Model, inputs: Sequence[Array]) -> Callable[[], object]:
        session = self.session(model)
        given = session.tensors(inputs)
        with torch.inference_mode():
            session.ready(*given)  # what is compiled is compiled before anything is timed
        return lambda: session.ready(*given)


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _fixed_work(clock: Callable[[], float], size: int = 1024, repeats: int = 3) -> float:
    """Seconds of the sentinel on the GPU, a matrix product; the median of `repeats`."""
    matrix = _ones(size)
    times = []
    for _ in range(repeats):
        begin = clock()
        matrix @ matrix
        times.append(clock() - begin)
    return sorted(times)[repeats // 2]


@cache
def _ones(size: int) -> torch.Tensor:
    return torch.ones(size, size, device="cuda")


def _maker(compiles: bool, dtype: torch.dtype) -> Callable[[int], TorchCuda]:
    return lambda threads=1: TorchCuda(threads, compiles, dtype)  # type: ignore[misc]


eager, eager_fp16, eager_bf16 = (_maker(False, dtype) for dtype in _SHORT)
compiled, compiled_fp16, compiled_bf16 = (_maker(True, dtype) for dtype in _SHORT)
