"""One file for a machine on which automc is not: the code that measures, and models whose weights are a pattern."""

from __future__ import annotations

import importlib.resources
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from automc import __version__
from automc.devices.probe import asked_convs, conv_model
from automc.devices.probes import Probe

__all__ = ["agent_archive", "patterned", "probe_files"]

_CODE = (
    "errors.py", "devices/__init__.py", "devices/agent.py", "devices/cpu.py", "devices/device.py", "devices/exclusive.py",
    "devices/lines.py", "devices/measure.py", "devices/places.py", "devices/probe.py", "devices/probes.py", "devices/quiet.py",
    "devices/watching.py",
)  # fmt: skip
_MAIN = """import sys

if sys.version_info < (3, 10):
    sys.exit("This needs Python 3.10 or later; this one is %d.%d. Another may be called python3.10 or python3.12." % sys.version_info[:2])

from pathlib import Path

try:
    from automc.devices.agent import main
except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("numpy", "onnxruntime"):
        raise
    sys.exit("%s is not installed here: pip install numpy onnxruntime" % error.name)
sys.exit(main(sys.argv[1:], Path(sys.argv[0])))
"""
"""What any Python can parse, so that one that is too old says so."""
_PATTERN = 1024
"""Elements of the pattern that is repeated."""
_FLOATS = {TensorProto.FLOAT: 20, TensorProto.DOUBLE: 20, TensorProto.FLOAT16: 10, TensorProto.BFLOAT16: 20}
"""Types of weights, and the powers of two, up and down, within which the pattern keeps clear of what they cannot hold and of denormals."""
_CODES = (
    TensorProto.INT2, TensorProto.UINT2, TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8, TensorProto.UINT8,
)  # fmt: skip
_KEPT = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3), "MatMulInteger": (2, 3), "Resize": (1, 2), "Upsample": (1,), "Unpack": (0,),
}  # fmt: skip
"""Inputs that are no weights: scales and zero points, sizes, and where the zeros of a packed weight are."""
_PASSING = ("Cast", "Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_LAYERS = (
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "GRU",
    "Gemm",
    "LSTM",
    "LayerNormalization",
    "MatMul",
    "PRelu",
    "RNN",
)
_INTEGER_BIASES = {"DequantizeLinear": 0, "QLinearConv": 8}


def agent_archive(files: Mapping[str, bytes]) -> bytes:
    """A zip archive that Python runs, with `files` besides the code."""
    package = importlib.resources.files("automc")
    sources = {f"automc/{name}": package.joinpath(name).read_bytes() for name in _CODE}
    stub = f'"""The part of automc that measures."""\n\n__version__ = {__version__!r}\n'.encode()
    convs = {f"convs/{cin}x{cout}.onnx": patterned(conv_model(cin, cout)) for cin, cout in asked_convs()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {
            "__main__.py": _MAIN.encode(),
            "automc/__init__.py": stub,
            **sources,
            **convs,
            **files,
        }.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def probe_files(probes: list[Probe]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Entries of a manifest, and the files that they name."""
    files = {f"probes/{index}.onnx": probe.model for index, probe in enumerate(probes)}
    entries = [{**asdict(probe), "model": name} for name, probe in zip(files, probes, strict=True)]
    return json.loads(json.dumps(entries)), files


def patterned(model: bytes) -> bytes:
    """The model with a seeded pattern in place of every weight and code: it runs as long, and packs to little.

    What a kernel takes does not depend on what its weights are worth, and nobody else's machine needs to see them. Of each tensor the type, the
    shape, the nearest power of two of its size, and whether all of it is positive are kept, so that nothing overflows. Scales and zero points
    stay, and so do single numbers such as the 0.5 of a GELU, by which the runtime knows what it can fuse.
    """
    proto = onnx.load_from_string(model)
    graphs = [proto.graph]
    for graph in graphs:
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    nodes = [node for graph in graphs for node in graph.node]
    kept = _kept(nodes)
    weights = {name for node in nodes if node.op_type in _LAYERS for name in node.input[1:]}
    biases = {name for node in nodes for name in node.input[_INTEGER_BIASES.get(node.op_type, len(node.input)) :][:1]}
    tensors = [(tensor.name, tensor) for graph in graphs for tensor in graph.initializer]
    tensors += [
        (node.output[0], node.attribute[0].t) for node in nodes if node.op_type == "Constant" and node.attribute[0].HasField("t")
    ]  # fmt: skip
    for name, tensor in tensors:
        if name not in kept and (np.prod(tensor.dims) > 1 or name in weights):
            _fill(tensor, is_bias=name in biases)
    return bytes(proto.SerializeToString())


def _kept(nodes: Sequence[Any]) -> set[str]:
    """Names of what stands in a place of _KEPT, also behind operators that only pass it on."""
    kept = {node.input[i] for node in nodes for i in _KEPT.get(node.op_type, ()) if i < len(node.input)}
    for node in reversed(nodes):
        if node.op_type in _PASSING and node.output[0] in kept:
            kept.update(node.input)
    return kept


def _fill(tensor: Any, *, is_bias: bool) -> None:
    """Put the pattern in the place of what a tensor holds, where that is a weight by its type."""
    rng = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    if tensor.data_type in _FLOATS:
        values = numpy_helper.to_array(tensor)
        finite = values[np.isfinite(values)].astype(np.float64)
        if not finite.any():
            return
        most = _FLOATS[tensor.data_type]
        size = 2.0 ** np.clip(np.rint(np.log2(np.sqrt(np.mean(finite**2)))), -most, most)
        sign = np.ones(_PATTERN) if finite.min() >= 0 else rng.choice([-1, 1], _PATTERN)
        pattern = size * sign * rng.uniform(0.5, 1.5, _PATTERN)
    elif tensor.data_type in _CODES:
        values = numpy_helper.to_array(tensor)
        codes = values.astype(np.int16)
        pattern = rng.integers(codes.min(), codes.max(), _PATTERN, endpoint=True)
    elif tensor.data_type == TensorProto.INT32 and is_bias:
        values = numpy_helper.to_array(tensor)
        pattern = rng.integers(-1000, 1000, _PATTERN)
    else:
        return
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.resize(pattern, values.shape).astype(values.dtype), name))
