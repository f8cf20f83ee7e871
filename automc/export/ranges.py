"""Which values the tensors of an ONNX model take on calibration inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from torch import Tensor

from automc.compression.quantize import best_range

__all__ = ["tensor_ranges", "tensor_values"]

_MAX_RUNS = 128
_SAMPLE = 16_384


def tensor_ranges(proto: onnx.ModelProto, tensors: Sequence[str], calibration: Sequence[Tensor]) -> TensorsData:
    """The MSE-optimal range of each tensor, from running the floating-point model on `calibration`."""
    values = tensor_values(proto, tensors, calibration)
    data = {}
    for name in tensors:
        low, high = best_range(values[name])
        data[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    return TensorsData(CalibrationMethod.MinMax, data)


def tensor_values(
    proto: onnx.ModelProto, tensors: Sequence[str], inputs: Sequence[Tensor]
) -> Mapping[str, NDArray[np.float32]]:
    """About 16,384 values of each intermediate tensor over all of `inputs`, and its extremes.

    The model runs at its own batch size, on at most 128 batches spread evenly over `inputs`.
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    given = [i.name for i in tapped.graph.input]
    present = {output.name for output in tapped.graph.output}.union(given)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    wanted = [name for name in tensors if name not in given]
    runs = min(_MAX_RUNS, -(-len(inputs[0]) // batch))
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in tensors}
    for run in range(runs):
        start = run * -(-len(inputs[0]) // batch) // runs * batch
        feeds = {name: _fit(tensor[start:], batch) for name, tensor in zip(given, inputs, strict=True)}
        values = dict(zip(wanted, session.run(wanted, feeds), strict=True)) if wanted else {}
        for name in tensors:
            found[name].append(_thinned(values.get(name, feeds.get(name)), run, runs))
    return {name: _with_extremes(parts) for name, parts in found.items()}


def _thinned(values: Any, run: int, runs: int) -> NDArray[np.float32]:
    """The extremes of one run's values, then this run's share of the sample, from other positions in each run."""
    flat = np.asarray(values, dtype=np.float32).ravel()
    step = max(1, flat.size * runs // _SAMPLE)
    return np.concatenate([[flat.min(), flat.max()], flat[run % step :: step]], dtype=np.float32)


def _with_extremes(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """All runs' samples with the extremes of all runs once: counting those of each run would give outliers weight."""
    ends = np.concatenate([part[:2] for part in parts])
    return np.concatenate([[ends.min(), ends.max()], *(part[2:] for part in parts)], dtype=np.float32)


def _fit(tensor: Tensor, batch: int) -> NDArray[Any]:
    """The first `batch` samples, repeated from the start where there are fewer."""
    repeats = -(-batch // len(tensor))
    return torch.cat([tensor] * repeats)[:batch].numpy()
