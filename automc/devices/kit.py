"""One file for a machine on which automc is not: the code that measures, and models whose weights are a pattern."""

from __future__ import annotations

import importlib.resources
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

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
"""Elements of a weight that are kept and repeated."""


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
    """The model with the first elements of each large weight repeated throughout: it runs as long, and packs to little.

    What a kernel takes does not depend on what its weights are worth, and nobody else's machine needs to see them.
    """
    proto = onnx.load_from_string(model)
    for tensor in proto.graph.initializer:
        if np.prod(tensor.dims) > 2 * _PATTERN and len(tensor.dims) > 1:
            tensor.CopyFrom(_repeated(tensor))
    return bytes(proto.SerializeToString())


def _repeated(tensor: Any) -> Any:
    if tensor.data_type in (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT8,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.FLOAT16,
    ):
        values = numpy_helper.to_array(tensor)
        return numpy_helper.from_array(np.resize(values.ravel()[:_PATTERN], values.shape), tensor.name)
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    if tensor.raw_data:
        kept = tensor.raw_data[:_PATTERN]
        copy.raw_data = (kept * -(-len(tensor.raw_data) // len(kept)))[: len(tensor.raw_data)]
    return copy
