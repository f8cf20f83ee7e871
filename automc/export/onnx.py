"""ONNX files of compressed models, integer layers in ONNX Runtime's static QDQ format.

The TorchScript-based exporter is tried first: on a ResNet-20 it takes 0.16 s where the torch.export-based one takes 1.1 s, and
a search exports dozens of candidates. Models that it cannot export go through torch.export.
"""

from __future__ import annotations

import ast
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import quote, unquote

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from torch import Tensor, nn

from automc.calling import input_names
from automc.compression.quantize import Quantized, best_range, float_model
from automc.compression.recurrent import bake
from automc.compression.storage import runs_on_integers
from automc.errors import AutomcError
from automc.export import recurrent, stored
from automc.export.sparse import pack_zeros
from automc.outputs import Outputs, flat_outputs

__all__ = ["OPSET", "build_onnx", "export_float", "integer_closure", "layer_of"]

OPSET = 18
_INTEGER_OPS = ("Conv", "Gemm", "MatMul")
_CARRIER_OPS = (
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape", "Resize",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that run on integers when all that they read is integer already, and so spare two conversions."""
_MAX_RUNS = 128
_SAMPLE = 16_384
_REPEATED = re.compile(r"_\d+$")


def build_onnx(
    model: nn.Module,
    example: Sequence[Tensor],
    calibration: Sequence[Tensor],
    *,
    reduce_range: bool,
    integers: bool = True,
) -> bytes:
    """The serialised ONNX model of a compressed model, as deployed: fixed batch, 8-bit layers as QDQ, zeros packed.

    Layers that integer kernels compute exactly (see `runs_on_integers`; at most 7 bits under `reduce_range`) run on them, with the codes
    and scales that the layers hold. All others run in floating point, their inputs rounded as in PyTorch, which costs time and gains
    none. Weights are stored in as few bits as ONNX can pack.

    Args:
        model: what `Stitcher.apply` or recovery returned.
        example: inputs with the batch size of the deployment.
        calibration: inputs that set the ranges of the integer tensors that no layer rounds.
        integers: use integer kernels; without, every layer computes what PyTorch does, in floating point.

    Raises:
        AutomcError: neither exporter can express the model, or the file has no node for an integer layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}
    widest = 7 if reduce_range else 8
    integer = {
        n: x
        for n, x in layers.items()
        if integers and runs_on_integers(x.spec) and x.rounds_input and x.weight_bits <= widest
    }
    plain = float_model(model)
    recurrent_bits = bake(plain)
    for name in layers.keys() - integer.keys():
        if layers[name].rounds_input:
            plain.set_submodule(name, _Rounded(layers[name]).eval())
    proto = recurrent.store_codes(export_float(plain, example), recurrent_bits, layer_of)
    if integer:
        proto = quantize_proto(proto, integer, calibration, reduce_range=reduce_range)
    return pack_zeros(stored.store_codes(proto, layers, layer_of)).SerializeToString()


class _Rounded(nn.Module):
    """What a `Quantized` layer that rounds its input computes, in operators that ONNX has for any number of bits."""

    def __init__(self, layer: Quantized) -> None:
        super().__init__()
        self.inner = copy.deepcopy(layer.inner)
        self.scale, self.zero = float(layer.scale), int(layer.zero)
        self.last = 2**layer.activation_bits - 1

    def forward(self, inputs: Tensor) -> Tensor:
        codes = torch.clamp(torch.round(inputs / self.scale) + self.zero, 0, self.last)
        result: Tensor = self.inner((codes - self.zero) * self.scale)
        return result


def export_float(model: nn.Module, example: Sequence[Tensor], *, editable: bool = False) -> onnx.ModelProto:
    """`model` as ONNX in floating point, its nodes named after the modules they come from.

    Args:
        editable: leave the batch open and every parameter as it is, under its own name, so that others can take its place.

    Raises:
        AutomcError: neither exporter can express the model.
    """
    buffer = io.BytesIO()
    names = _tensor_names(model, example)
    options: dict[str, Any] = {**names, "opset_version": OPSET}
    script, program_options = _editable(names) if editable else ({}, {})
    with warnings.catch_warnings(), torch.no_grad(), _quiet(), flat_outputs(model):
        warnings.simplefilter("ignore")
        try:
            with _full_scopes(model):
                torch.onnx.export(model, tuple(example), cast(Any, buffer), dynamo=False, **options, **script)
            return onnx.load_from_string(buffer.getvalue())
        except Exception as first:  # whatever the tracer raises, the other exporter may still manage
            try:
                options.update(program_options)
                program = torch.onnx.export(model, tuple(example), dynamo=True, verbose=False, **options)
                assert program is not None
                return program.model_proto
            except Exception as second:
                raise AutomcError(
                    f"The model cannot be exported to ONNX: {str(second).splitlines()[0]} "
                    f"(the TorchScript exporter: {str(first).splitlines()[0]}).",
                    remedy="Replace the operator that ONNX does not know, or wrap the model without it.",
                ) from second


def _tensor_names(model: nn.Module, example: Sequence[Tensor]) -> dict[str, list[str]]:
    """Inputs are called after the model's keywords or "input", outputs after their keys or "output"."""
    inputs = [*input_names(model)] or [f"input{i}" if i else "input" for i in range(len(example))]
    with torch.no_grad():
        outputs = Outputs.of(model(*example)).names
    return {"input_names": inputs, "output_names": [f"output_{n}" if n in inputs else n for n in outputs]}


def _editable(names: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two exporters are told for an editable file."""
    inputs, outputs = names["input_names"], names["output_names"]
    axes = {name: {0: "batch"} for name in (*inputs, *outputs)}
    script = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE, "dynamic_axes": axes}
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    return script, {"dynamic_shapes": shapes, "optimize": False}


@contextmanager
def _full_scopes(model: nn.Module) -> Iterator[None]:
    """Let TorchScript name scopes by the whole path of a module.

    It shortens `left.conv` and `right.conv` both to "conv", whose nodes then cannot be told apart.
    """

    def rename(*_: object) -> None:
        scopes = torch.jit._trace._trace_module_map
        for name, module in model.named_modules():
            if scopes is not None and name:
                scopes[module] = f"{torch.typename(type(module))}::{_scope(name)}"

    hook = model.register_forward_pre_hook(rename)
    try:
        yield
    finally:
        hook.remove()


def _scope(name: str) -> str:
    """A module's name without slashes, and marked where its end looks like the number of a repeated call."""
    return quote(name, safe="") + ("!" if _REPEATED.search(name) else "")


def layer_of(node: onnx.NodeProto) -> str:
    """The module that a node of `export_float` comes from, "" where the exporter did not say.

    TorchScript names nodes "/stage/stage.0/stage.0.conv/Conv", with "stage.0.conv_1" for the second call of a module;
    torch.export keeps the scopes in the node's metadata.
    """
    if node.name.startswith("/"):
        scope = node.name.split("/")[-2]
        return unquote(_REPEATED.sub("", scope).removesuffix("!"))
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes: list[str] = ast.literal_eval(entry.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def quantize_proto(
    proto: onnx.ModelProto, layers: Mapping[str, Quantized], calibration: Sequence[Tensor], *, reduce_range: bool
) -> onnx.ModelProto:
    """`proto` with the nodes of `layers`, and the carriers between them, in QDQ form.

    Weights and the inputs of layers have the scales of `layers`; the other tensors those of their ranges on `calibration`.

    Raises:
        AutomcError: no node of the file belongs to one of `layers`.
    """
    proto = _with_inferred_shapes(proto)
    wanted = set(layers)
    missing = wanted - {layer_of(node) for node in proto.graph.node if node.op_type in _INTEGER_OPS}
    if missing:
        raise AutomcError(
            f"The exported model has no node for the integer layer {min(missing)!r}.",
            remedy="Exclude the layer from quantization, or call it as a module in the model's forward.",
        )
    nodes = _integer_nodes(proto.graph, wanted)
    tensors = {name for node in nodes for name in (*node.input, *node.output) if name}
    ranges = _ranges(proto, sorted(tensors - _constants(proto.graph)), calibration)
    quantizer = QDQQuantizer(
        proto,
        per_channel=True,
        reduce_range=reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in nodes}),
        extra_options={
            "WeightSymmetric": True,
            "ActivationSymmetric": False,
            "TensorQuantOverrides": _decided(proto.graph, layers),
        },
    )
    with _quiet():
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return _float_outputs(quantizer.model.model)


def _decided(graph: onnx.GraphProto, layers: Mapping[str, Quantized]) -> dict[str, list[dict[str, Any]]]:
    """The scales and zero points that layers hold, by tensor, as ONNX Runtime's quantiser takes them.

    Behind a pool or a reshape it does not take them: there a tensor has the scale of the one that the operator reads.
    """
    constants = {initializer.name: len(initializer.dims) for initializer in graph.initializer}
    found: dict[str, list[dict[str, Any]]] = {}
    for node in graph.node:
        layer = layers.get(layer_of(node)) if node.op_type in _INTEGER_OPS else None
        if layer is None:
            continue
        scale, zero = layer.scale.numpy().reshape(()), layer.zero.numpy().astype(np.uint8).reshape(())
        found.setdefault(node.input[0], [{"scale": scale, "zero_point": zero}])
        if node.input[1] in constants:
            axis = _output_axis(node)
            scales = layer.weight_scale.numpy()
            zero = np.zeros((), dtype=np.int8)
            found[node.input[1]] = [{"axis": axis, "scale": s.reshape(()), "zero_point": zero} for s in scales]
    return found


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts its outputs."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def _float_outputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let matrix products that end the model put out floats: rounding the scores themselves would only lose them."""
    graph = proto.graph
    maker = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        decode = maker[output.name]
        encode = maker.get(decode.input[0]) if decode.op_type == "DequantizeLinear" else None
        last = maker.get(encode.input[0]) if encode is not None and encode.op_type == "QuantizeLinear" else None
        if encode is not None and last is not None and last.op_type in ("Gemm", "MatMul"):
            last.output[0] = output.name
            graph.node.remove(encode)
            graph.node.remove(decode)
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)
    return proto


def _integer_nodes(graph: onnx.GraphProto, layers: set[str]) -> list[onnx.NodeProto]:
    """The nodes that run on integers: those of `layers`, and carriers that read nothing but integer tensors.

    A tensor is integer when an integer node writes it, or when one reads it: it is then converted for all its readers.
    """
    constants = _constants(graph)
    own = [node for node in graph.node if node.op_type in _INTEGER_OPS and layer_of(node) in layers]
    integer = {name for node in own for name in (*node.input, *node.output) if name not in constants}
    chosen = []
    for node in graph.node:
        activations = [name for name in node.input if name and name not in constants]
        carries = node.op_type in _CARRIER_OPS and bool(activations) and integer.issuperset(activations)
        if node in own or carries:
            chosen.append(node)
            integer.update(node.output)
    return chosen


def integer_closure(proto: onnx.ModelProto, layers: Iterable[str]) -> frozenset[str]:
    """`layers`, and those that ONNX Runtime then runs on integers too: the ones between integer tensors.

    Args:
        proto: the dense model in floating point.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    closed = frozenset(layers)
    while True:
        integer = {n for node in _integer_nodes(proto.graph, set(closed)) for n in (*node.input, *node.output)}
        between = {
            layer_of(node)
            for node in proto.graph.node
            if node.op_type in _INTEGER_OPS
            and node.input[0] in integer
            and _behind_activation(node, readers) in integer
        }
        if between <= closed:
            return closed
        closed |= between


def _behind_activation(node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> str:
    """The tensor that a layer writes, or that its only reader does where it is an activation which the runtime fuses."""
    following = readers.get(node.output[0], [])
    fused = len(following) == 1 and following[0].op_type in ("Relu", "Clip")
    return following[0].output[0] if fused else node.output[0]


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Names of initializers and of everything computed from constants alone."""
    constants = {initializer.name for initializer in graph.initializer}
    for node in graph.node:
        if constants.issuperset(name for name in node.input if name):
            constants.update(node.output)
    return constants


def _ranges(proto: onnx.ModelProto, tensors: Sequence[str], calibration: Sequence[Tensor]) -> TensorsData:
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


def _with_inferred_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return onnx.shape_inference.infer_shapes(proto)


class _quiet:
    """Silence the exporters' and the quantiser's own logging for a block."""

    _NAMES = ("torch.onnx", "onnxscript", "onnx_ir", "root", "")

    def __enter__(self) -> None:
        self._levels = {name: logging.getLogger(name).level for name in self._NAMES}
        for name in self._NAMES:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
