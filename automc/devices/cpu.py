"""This machine's processor, running models with ONNX Runtime."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnxruntime

from automc.devices.device import (
    Array,
    Capabilities,
    Model,
    NodeTime,
    Session,
    Tensor,
    cache_dir,
    capabilities_path,
    digest,
)
from automc.devices.exclusive import alone
from automc.devices.measure import Measurement, Protocol, interleave
from automc.devices.probe import probe_blocks
from automc.devices.watching import unwatched
from automc.errors import InputError

__all__ = [
    "Cpu", "OrtSession", "alternate", "cached_blocks", "checked", "facts", "has_vnni", "key_of", "measured", "quickest", "runner",
    "warmed",
]  # fmt: skip

_PROVIDERS = ["CPUExecutionProvider"]
_CAPABILITIES_SCHEMA = 1
_SYSTEM = Path("/sys")
_WARMING = 2
"""Runs before a counter is read."""


class Cpu:
    """ONNX Runtime on the processor, with a stated number of threads.

    `conv` makes the convolutions that the probe of the channel blocks asks for, where the onnx package is not there to make them.
    """

    def __init__(self, threads: int = 1, conv: Callable[[int, int], bytes] | None = None) -> None:
        self.threads = checked(threads)
        self._conv = conv

    @property
    def name(self) -> str:
        return "cpu"

    @cached_property
    def key(self) -> str:
        return key_of(self.name, onnxruntime.__version__, self.threads)

    def environment(self) -> dict[str, str]:
        """Processor, cores, runtime, threads, operating system: what a measurement depends on."""
        return facts(self.name, "onnxruntime", onnxruntime.__version__, self.threads)

    def capabilities(self) -> Capabilities:
        """Channel blocks as the runtime lays them out, and integer kernels; probed once per `key`, then cached."""
        return self._capabilities

    @cached_property
    def _capabilities(self) -> Capabilities:
        block, multiple = cached_blocks(self.key, lambda: probe_blocks(self, self._conv))
        return Capabilities(block, multiple, int8=True, reduce_range=not has_vnni())

    def session(self, model: Model) -> OrtSession:
        """Load a model.

        Raises:
            InputError: not a model that ONNX Runtime can run.
        """
        return OrtSession(model, self._options())

    def measure(
        self, models: Mapping[str, Model], inputs: Sequence[Array], rounds: int = 12, *, seed: int = 0, **options: Any
    ) -> Measurement:
        """Whole models, interleaved, each on the same batch; `options` are those of `measure.Protocol`."""
        runs = {name: runner(self.session(model), inputs) for name, model in models.items()}
        return measured(runs, Protocol(rounds=rounds, **options), self.threads, seed)

    def running(self, model: Model, inputs: Sequence[Array]) -> AbstractContextManager[Callable[[], object]]:
        """What runs a model once, warm and alone on the machine."""
        return warmed(runner(self.session(model), inputs), pin=self.threads == 1)

    def node_times(self, model: Model, inputs: Sequence[Array], repeats: int = 5) -> list[NodeTime]:
        """The kernels of ONNX Runtime's optimised graph; what it costs to time them is taken out by as many runs without."""
        with tempfile.TemporaryDirectory(prefix="automc-") as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(folder, "nodes")
            watched, plain = OrtSession(model, options), self.session(model)
            with alone(cache_dir(), pin=self.threads == 1):
                whole_s = alternate(runner(watched, inputs), runner(plain, inputs), repeats)
            events = json.loads(Path(watched.end_profiling()).read_text())
        return _nodes(events, whole_s)

    def _options(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return options


class OrtSession:
    """A model loaded by ONNX Runtime."""

    def __init__(self, model: Model, options: Any) -> None:
        source = str(model) if isinstance(model, Path) else model
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=_PROVIDERS)
        except Exception as error:  # ONNX Runtime raises a family of its own, rooted in Exception
            raise InputError(f"ONNX Runtime cannot load the model: {error}") from error
        self.input_names = tuple(node.name for node in self._session.get_inputs())

    def run(self, *inputs: Array) -> list[Array]:
        """The outputs for one batch, inputs in the order of the model."""
        outputs: list[Array] = self._session.run(None, dict(zip(self.input_names, inputs, strict=True)))
        return outputs

    def end_profiling(self) -> str:
        """Where the profile of the runs so far lies."""
        return str(self._session.end_profiling())


def measured(runs: Mapping[str, Callable[[], object]], protocol: Protocol, threads: int, seed: int) -> Measurement:
    """The protocol on this processor. One thread runs in the calling thread: it can be pinned, and its processor time tells interruptions."""
    single: dict[str, Any] = {"pin": True, "cpu_clock": time.thread_time} if threads == 1 else {"pin": False}
    return interleave(runs, protocol, seed=seed, lock_dir=cache_dir(), threads=threads, **single)


def checked(threads: int) -> int:
    """A number of threads that can run something.

    Raises:
        InputError: it cannot.
    """
    if threads < 1:
        raise InputError(f"{threads} threads cannot run anything.", remedy="Use 1 or more.")
    return threads


def facts(device: str, runtime: str, version: str, threads: int) -> dict[str, str]:
    """Processor, cores, runtime, threads, operating system: what a measurement on this processor depends on."""
    return {
        "device": device,
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "vnni": str(has_vnni()).lower(),
        "runtime": runtime,
        "runtime_version": version,
        "threads": str(threads),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def key_of(device: str, version: str, threads: int) -> str:
    """Identifies a runtime on this processor."""
    return f"{device}-{digest(processor(), platform.machine(), str(has_vnni()), version, str(threads))}"


def processor() -> str:
    """The processor's own name for itself; on others than x86 with the board, the kinds of cores and the highest clock that the system tells."""
    named = _told("model name", "hardware")[:1] or _brand()
    if not _is_x86():
        named = list(dict.fromkeys(filter(None, [*_board(), *named, *_cores(), *_highest_clock()])))
    return ", ".join(named) if named else platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether 8-bit products accumulate without saturating: VNNI on x86, always elsewhere (ARM widens or has dot products)."""
    if not _is_x86():
        return True
    flags = next((line for line in _cpuinfo() if line.startswith("flags")), "")
    return any(flag in flags.split() for flag in ("avx512_vnni", "avx_vnni"))


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")


def _brand() -> list[str]:
    """What a Mac calls its processor, "Apple M2"; there is no /proc to ask."""
    if platform.system() != "Darwin":
        return []
    try:
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True, timeout=5.0
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [asked.stdout.strip()]


def _board() -> list[str]:
    """What the machine is called, such as "Raspberry Pi 5 Model B Rev 1.0"; many ARM processors have no name of their own."""
    return _told("model")[:1] or [text.strip("\0\n ") for text in _text(_SYSTEM / "firmware/devicetree/base/model")]


def _cores() -> list[str]:
    """The kinds of cores by the numbers that ARM and its licensees gave them."""
    columns = [_told(f"cpu {field}") for field in ("implementer", "part", "variant", "revision")]
    kinds = dict.fromkeys("/".join(kind) for kind in zip(*columns, strict=False))
    return [f"cores {' '.join(kinds)}"] if kinds else []


def _highest_clock() -> list[str]:
    paths = _SYSTEM.glob("devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    clocks = [int(text) for path in paths for text in _text(path) if text.strip().isdecimal()]
    return [f"{max(clocks) / 1000:.0f} MHz"] if clocks else []


def _told(*names: str) -> list[str]:
    """The values of the lines of /proc/cpuinfo that begin with one of the names, in order."""
    pairs = [line.partition(":") for line in _cpuinfo()]
    return [value.strip() for name, _, value in pairs if name.strip().lower() in names]


def _text(path: Path) -> list[str]:
    """What a file says, nothing where there is none to read."""
    try:
        return [path.read_text(errors="replace")]
    except OSError:
        return []


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def runner(session: Session, inputs: Sequence[Array]) -> Callable[[], object]:
    """What runs a session once."""
    return lambda: session.run(*inputs)


@contextmanager
def warmed(run: Callable[[], object], *, pin: bool) -> Iterator[Callable[[], object]]:
    """What runs a model once, after some runs that warm it up, alone on the machine."""
    with alone(cache_dir(), pin=pin):
        for _ in range(_WARMING):
            run()
        yield run


def _until_quiet(run: Callable[[], object], repeats: int) -> None:
    """Run until `repeats` runs were not interrupted by other work, at most three times as often."""
    quiet = runs = 0
    while quiet < repeats and runs < 3 * repeats:
        runs += 1
        begin, cpu_begin = time.perf_counter(), time.process_time()
        run()
        cpu, wall = time.process_time() - cpu_begin, time.perf_counter() - begin
        quiet += wall <= 1.02 * cpu + 5e-5


def alternate(watched: Callable[[], object], plain: Callable[[], object], repeats: int) -> list[float]:
    """Run both in turns until `repeats` turns were not interrupted, after one to warm up; the seconds of `plain` in each turn."""
    whole_s = []

    def run() -> None:
        begin = time.perf_counter()
        plain()
        whole_s.append(time.perf_counter() - begin)
        watched()

    run()
    _until_quiet(run, repeats)
    return whole_s[1:]


def _nodes(events: Sequence[Mapping[str, Any]], whole_s: Sequence[float]) -> list[NodeTime]:
    """One NodeTime per node of the graph, by the last runs, as many as there are in `whole_s` (durations are in microseconds)."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found.setdefault((event["args"]["node_index"], event["name"]), []).append(event)
    counted = [runs[-len(whole_s) :] for runs in found.values()]
    nodes = [_node(runs[-1]) for runs in counted]
    tensors = [len(node.inputs) + len(node.outputs) for node in nodes]
    times_s = unwatched([[1e-6 * event["dur"] for event in runs] for runs in counted], whole_s, tensors)
    return [replace(node, time_s=time_s) for node, time_s in zip(nodes, times_s, strict=True)]


def quickest(times: Sequence[float]) -> float:
    """Mean of the least quarter: as undisturbed as the minimum, and finer than the whole microseconds that the profiler notes."""
    least = sorted(times)[: max(1, len(times) // 4)]
    return sum(least) / len(least)


def _node(event: Mapping[str, Any]) -> NodeTime:
    sides = (_tensors(event["args"].get(f"{side}_type_shape", ())) for side in ("input", "output"))
    return NodeTime(event["name"].removesuffix("_kernel_time"), event["args"]["op_name"], 1e-6 * event["dur"], *sides)


def _tensors(entries: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(dtype, tuple(shape)) for entry in entries for dtype, shape in entry.items())


def cached_blocks(key: str, probe: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """(block, multiple) of the device `key`, read or probed; a cache that cannot be written costs a probe each time."""
    path = capabilities_path(key)
    try:
        data = json.loads(path.read_text())
        if data["schema"] == _CAPABILITIES_SCHEMA:
            return int(data["channel_block"]), int(data["channel_multiple"])
    except (OSError, ValueError, KeyError):
        pass  # absent or damaged: probe again
    block, multiple = probe()
    record = {"schema": _CAPABILITIES_SCHEMA, "channel_block": block, "channel_multiple": multiple}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(record))
        temporary.replace(path)
    except OSError:
        pass  # a read-only cache only costs the next process a probe
    return block, multiple
