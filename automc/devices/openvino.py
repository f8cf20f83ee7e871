"""This machine's processor, running models with OpenVINO, whose profile names every kernel of its own optimised graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from automc.devices.cpu import (
    alternate,
    cached_blocks,
    checked,
    facts,
    has_vnni,
    key_of,
    measured,
    runner,
    warmed,
)  # fmt: skip
from automc.devices.device import Array, Capabilities, Model, NodeTime, Tensor, cache_dir
from automc.devices.exclusive import alone
from automc.devices.measure import Measurement, Protocol
from automc.devices.probe import probe_blocks
from automc.devices.watching import unwatched
from automc.errors import InputError, MissingError

__all__ = ["OpenVino", "OpenVinoSession"]

_PROPERTIES = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
"""A batch at a time, in the precision of the file: bf16, where the processor has it, would be another model."""
_TYPES = {"f32": "float", "u8": "uint8", "i8": "int8", "f16": "float16"}
_SUFFIX = "/WithoutBiases"
"""Of the name of a layer whose bias was taken into the kernel."""
_UNTOLD = 0.5e-6
"""Seconds, of a kernel that ran in less than the microsecond that OpenVINO can tell."""
_OPS = {"FullyConnected": "Gemm", "Convolution": "Conv", "Deconvolution": "ConvTranspose"}


class OpenVino:
    """OpenVINO on the processor, with a stated number of threads."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = checked(threads)
        self._core = _core()

    @property
    def name(self) -> str:
        return "openvino"

    @cached_property
    def key(self) -> str:
        return key_of(self.name, _version(), self.threads)

    def environment(self) -> dict[str, str]:
        """Processor, cores, runtime, threads, operating system: what a measurement depends on."""
        return facts(self.name, "openvino", _version(), self.threads)

    def capabilities(self) -> Capabilities:
        """Channel blocks as they show in the running times, probed once per `key`; integer kernels where a convolution runs on them."""
        return self._capabilities

    @cached_property
    def _capabilities(self) -> Capabilities:
        block, multiple = cached_blocks(self.key, lambda: probe_blocks(self))
        return Capabilities(block, multiple, int8=self._has_int8(), reduce_range=not has_vnni())

    def _has_int8(self) -> bool:
        from automc.devices.probe_models import probe_set

        probe = next(probe for probe in probe_set() if (probe.group, probe.name) == ("layer", "3x3, int8"))
        kernels = self.node_times(probe.model, probe.arrays(), 1)
        return any(node.op == "Conv" and node.inputs[0].dtype in ("int8", "uint8") for node in kernels)

    def session(self, model: Model) -> OpenVinoSession:
        """Load a model.

        Raises:
            InputError: not a model that OpenVINO can run.
        """
        return OpenVinoSession(self._core, model, {**_PROPERTIES, "INFERENCE_NUM_THREADS": self.threads})

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
        """The kernels of OpenVINO's optimised graph, each with its mean over at least `repeats` runs after one to warm up.

        OpenVINO tells, in whole microseconds, the mean of all runs so far and not the last one: what the first run took is
        taken out again. What took less than a microsecond in all runs but the first counts as half of one, and what did so in all
        is not told apart from what does not run. What it costs to time kernels is taken out
        by as many runs without.
        """
        properties = {**_PROPERTIES, "INFERENCE_NUM_THREADS": self.threads, "PERF_COUNT": True}
        session = OpenVinoSession(self._core, model, properties)
        plain = self.session(model)
        with alone(cache_dir(), pin=self.threads == 1):
            session.run(*inputs)
            first = session.mean_times()
            whole_s = alternate(runner(session, inputs), runner(plain, inputs), repeats)
            mean = session.mean_times()
        times = {key: mean_of_later(mean[key], first[key], len(whole_s) + 1) for key in mean if mean[key] or first[key]}
        nodes = [
            NodeTime(name, op, times[key], *tensors) for key, name, op, *tensors in session.graph() if key in times
        ]
        tensors = [len(node.inputs) + len(node.outputs) for node in nodes]
        times_s = unwatched([[node.time_s] for node in nodes], [float(np.mean(whole_s))], tensors)
        return [replace(node, time_s=time_s) for node, time_s in zip(nodes, times_s, strict=True)]


class OpenVinoSession:
    """A model compiled by OpenVINO."""

    def __init__(self, core: Any, model: Model, properties: Mapping[str, Any]) -> None:
        source = model.read_bytes() if isinstance(model, Path) else model
        try:
            self._compiled = core.compile_model(core.read_model(source), "CPU", dict(properties))
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot load the model: {_last(error)}") from error
        self._request = self._compiled.create_infer_request()

    def run(self, *inputs: Array) -> list[Array]:
        """The outputs for one batch, inputs in the order of the model."""
        results = self._request.infer(list(inputs), share_inputs=True)
        return [np.array(results[output]) for output in self._compiled.outputs]

    def mean_times(self) -> dict[str, float]:
        """Kernel -> seconds, the mean of all runs so far; 0 for what did not run or took less than a microsecond."""
        return {info.node_name: info.real_time.total_seconds() for info in self._request.profiling_info}

    def graph(self) -> Iterator[tuple[str, str, str, tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """(kernel, name in the file of what it computes, operator, tensors read, tensors written), in order of execution."""
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            told = _told(node)
            name = told.get("originalLayersNames", "").partition(",")[0].removesuffix(_SUFFIX)
            reads = tuple(_tensor(value.get_source_output()) for value in node.inputs())
            writes = tuple(_tensor(value) for value in node.outputs())
            kind = told.get("layerType", node.get_type_name())
            yield node.get_friendly_name(), name or node.get_friendly_name(), _OPS.get(kind, kind), reads, writes


def mean_of_later(mean: float, first: float, later: int) -> float:
    """Mean seconds of the `later` runs after the first, from the mean of all and the first: at least what OpenVINO can tell."""
    return max(mean + (mean - first) / later, _UNTOLD)


def _tensor(value: Any) -> Tensor:
    """The tensor behind a port of the executed graph."""
    precisions = _told(value.get_node()).get("outputPrecisions", "").split(",")
    precision = precisions[min(value.get_index(), len(precisions) - 1)]
    shape = value.get_partial_shape()
    return Tensor(_TYPES.get(precision, precision), tuple(shape.to_shape()) if shape.is_static else ())


def _told(node: Any) -> dict[str, str]:
    """What the runtime says of a kernel."""
    return {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}


def _core() -> Any:
    try:
        import openvino
    except ImportError:
        raise MissingError("OpenVINO is not installed.", remedy="pip install 'automc[openvino]'") from None
    return openvino.Core()


def _version() -> str:
    import openvino

    return str(openvino.__version__).partition("-releases")[0]


def _last(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
