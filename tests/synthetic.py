"""A small residual network as plain ONNX, built from any policy, and a device whose times follow a closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from automc.devices.device import Array, Capabilities, Model, NodeTime, Session, Tensor
from automc.devices.measure import Measurement
from automc.graph import ChannelGroup, Channels, LayerGraph, LayerSpec
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.predict.kernels import layer_kernels
from automc.space import Domain, SearchSpace

BATCH, SIDE, BLOCK = 2, 8, 8
WIDTHS = {"stem": 32, "a": 48, "c": 48}


def graph() -> LayerGraph:
    """stem -> (a -> b) + skip -> (c -> d) + skip -> pool -> fc; the groups are the stream, a and c."""

    def conv(name: str, source: str | None, target: str, kernel: int = 3) -> LayerSpec:
        cin = 3 if source is None else WIDTHS[source]
        return LayerSpec(
            name, "conv", Channels(3) if source is None else Channels(0, ((source, 1),)), Channels(0, ((target, 1),)),
            cin, WIDTHS[target], (kernel, kernel), (1, 1), 1, (cin, SIDE, SIDE), (WIDTHS[target], SIDE, SIDE), True,
        )  # fmt: skip

    fc = LayerSpec(
        "fc", "linear", Channels(0, (("stem", 1),)), Channels(10), WIDTHS["stem"], 10, (1, 1), (1, 1), 1,
        (WIDTHS["stem"],), (10,), True,
    )  # fmt: skip
    layers = (
        conv("stem", None, "stem"),
        conv("a", "stem", "a"),
        conv("b", "a", "stem"),
        conv("c", "stem", "c"),
        conv("d", "c", "stem", kernel=1),
        fc,
    )
    groups = tuple(ChannelGroup(name, width, ()) for name, width in WIDTHS.items())
    return LayerGraph(layers, groups)


def space() -> SearchSpace:
    """Keeps on and off multiples of 8, both factorisations, int8."""
    domains = [
        Domain("stem", "prune", (None, *(Prune(k) for k in (28, 24, 20, 16, 8)))),
        Domain("a", "prune", (None, *(Prune(k) for k in (44, 40, 36, 32, 24, 16, 8)))),
        Domain("c", "prune", (None, *(Prune(k) for k in (40, 32, 28, 24, 16, 8)))),
        Domain("a", "low_rank", (None, LowRank(24), LowRank(12), LowRank(16, "tucker"))),
        Domain("b", "low_rank", (None, LowRank(16), LowRank(8, "tucker"))),
        *(Domain(name, "quantize", (None, Quantize(8, 8))) for name in ("stem", "a", "b", "c", "d", "fc")),
    ]
    return SearchSpace(tuple(domains))


def inputs() -> list[Array]:
    """One batch."""
    return [np.random.default_rng(0).standard_normal((BATCH, 3, SIDE, SIDE)).astype(np.float32)]


def build(policy: Policy) -> bytes:
    """The network under `policy`, with random weights named `<layer>...weight`.

    As in QDQ exports, an integer layer has int8 weights and stands between Q/DQ pairs, all that read a tensor read it quantised if
    an integer layer does, and a layer between integer tensors is an integer one.
    """
    writer = _Writer(policy)
    x = writer.read_by(writer.relu(writer.layer("stem", writer.read_by("x", "stem"))), "a")
    y = writer.layer("b", writer.read_by(writer.relu(writer.layer("a", x)), "b"))
    x = writer.read_by(writer.relu(writer.add(y, x)), "c")
    y = writer.layer("d", writer.read_by(writer.relu(writer.layer("c", x)), "d"))
    pooled = writer.carried("GlobalAveragePool", [writer.relu(writer.add(y, x))])
    return writer.model(writer.layer("fc", writer.read_by(writer.carried("Flatten", [pooled], axis=1), "fc")))


class _Writer:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.graph = graph()
        self.keep = {g.name: (p.keep if (p := policy.get(g.name, Prune)) else g.width) for g in self.graph.groups}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.integer: set[str] = set()

    def op(self, kind: str, sources: Sequence[str], name: str = "", **attributes: Any) -> str:
        label = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(sources), [f"{label}_out"], name=label, **attributes))
        return f"{label}_out"

    def quantized(self, source: str, label: str) -> str:
        scale, zero = self.constant(f"{label}.s", np.float32(0.05)), self.constant(f"{label}.z", np.uint8(128))
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [source, scale, zero]), scale, zero])

    def read_by(self, source: str, layer: str) -> str:
        if source in self.integer or not self.policy.get(layer, Quantize):
            return source
        self.integer.add(pair := self.quantized(source, f"{layer}.in"))
        return pair

    def carried(self, kind: str, sources: Sequence[str], **attributes: Any) -> str:
        """An operator that stays between Q/DQ pairs if all that it reads comes out of one."""
        made = self.op(kind, sources, **attributes)
        if not all(source in self.integer for source in sources):
            return made
        self.integer.add(pair := self.quantized(made, made))
        return pair

    def relu(self, source: str) -> str:
        return self.carried("Relu", [source])

    def add(self, left: str, right: str) -> str:
        return self.carried("Add", [left, right])

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def layer(self, name: str, source: str) -> str:
        spec = self.graph.layer[name]
        rank, bits = self.policy.get(name, LowRank), self.policy.get(name, Quantize)
        if source in self.integer and self.policy.get({"a": "b", "c": "d"}.get(name, ""), Quantize):
            bits = bits or Quantize(8, 8)
        kernels = layer_kernels(spec, spec.inputs.count(self.keep), spec.outputs.count(self.keep), rank, bits)
        for factor in range(len(kernels)):
            label = name if len(kernels) == 1 else f"{name}.{factor}"
            side = int(np.sqrt(kernels["window"][factor]))
            shape = (int(kernels["cout"][factor]), int(kernels["cin"][factor]), side, side)
            source = self.kernel(label, source, shape if spec.kind == "conv" else shape[:2], bits is not None)
        return source

    def kernel(self, label: str, source: str, shape: tuple[int, ...], int8: bool) -> str:
        weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        bias = self.constant(f"{label}.bias", np.zeros(shape[0], np.float32))
        kind, options = ("Conv", {"pads": [shape[2] // 2] * 4}) if len(shape) == 4 else ("Gemm", {"transB": 1})
        if not int8:
            return self.op(kind, [source, self.constant(f"{label}.weight", weight), bias], label, **options)
        scale, zero = self.constant(f"{label}.sw", np.float32(0.05)), self.constant(f"{label}.zw", np.int8(0))
        stored = self.constant(f"{label}.weight_quantized", np.clip(weight * 20, -127, 127).astype(np.int8))
        made = self.op(kind, [source, self.op("DequantizeLinear", [stored, scale, zero]), bias], label, **options)
        self.integer.add(pair := self.quantized(made, f"{label}.out"))
        return pair

    def model(self, output: str) -> bytes:
        ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, 3, SIDE, SIDE])]
        outs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [BATCH, 10])]
        made = helper.make_graph(self.nodes, "net", ends, outs, self.constants)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        return bytes(model.SerializeToString())


class ClosedFormDevice:
    """Time of a layer kernel: 2 us + padded work; of anything else: 1 us + 1 ns per element; a node costs 0.5 us of overhead.

    Channels are computed in blocks of 8. int8 kernels do their work at a third of the time. Kernels are timed while
    it is slower by up to `unsteady`, as a fraction, for a whole model at a time. A run takes `constant_s` besides.
    """

    name = "closed-form"
    key = "closed-form-1"

    def __init__(self, noise: float = 0.005, unsteady: float = 0.0, constant_s: float = 0.0) -> None:
        self.noise = noise
        self.unsteady = unsteady
        self.constant_s = constant_s
        self.calls = 0

    def environment(self) -> dict[str, str]:
        return {"device": self.name}

    def capabilities(self) -> Capabilities:
        return Capabilities(channel_block=BLOCK, channel_multiple=1)

    def session(self, model: Model) -> Session:
        raise NotImplementedError("it only knows times")

    def measure(
        self, models: Mapping[str, Model], inputs: Sequence[Array], rounds: int = 12, **options: Any
    ) -> Measurement:
        self.calls += 1
        rng = np.random.default_rng(0)
        return Measurement(
            {
                name: tuple((self.constant_s + true_latency_s(model)) * np.exp(rng.normal(0, self.noise, rounds)))
                for name, model in models.items()
            }
        )

    def node_times(self, model: Model, inputs: Sequence[Array], repeats: int = 5) -> list[NodeTime]:
        self.calls += 1
        slower = 1.0 + self.unsteady * np.random.default_rng(self.calls).random()
        return [replace(node, time_s=node.time_s * slower) for node in closed_form_nodes(model)]


def true_latency_s(model: Model) -> float:
    """What the closed-form device takes for a model, without noise."""
    nodes = closed_form_nodes(model)
    return 2e-5 + sum(node.time_s + 5e-7 for node in nodes)


def closed_form_nodes(model: Model) -> list[NodeTime]:
    """The kernels of a model on the closed-form device; quantising between integer kernels is free."""
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    weights = {t.name: tuple(t.dims) for t in proto.initializer}
    values = [*proto.input, *proto.value_info, *proto.output]
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    links = _Links(proto.node)
    nodes = []
    for node in proto.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
            continue
        out = shapes[node.output[0]]
        dtype = "uint8" if links.is_int8(node) else "float"
        if node.op_type in ("Conv", "Gemm"):
            time_s = _kernel_s(weights[node.input[1]], out, dtype == "uint8")
        elif links.is_free(node):
            continue
        else:
            time_s = 1e-6 + 1e-9 * float(np.prod(out))
        nodes.append(NodeTime(node.name, node.op_type, time_s, (Tensor(dtype, ()),), (Tensor(dtype, out),)))
    return nodes


class _Links:
    """Who reads and who writes what, looking through Relu."""

    def __init__(self, nodes: Sequence[Any]) -> None:
        self.nodes = nodes
        self.producer = {node.output[0]: node for node in nodes}

    def readers(self, tensor: str) -> list[Any]:
        found: list[Any] = []
        for node in self.nodes:
            if tensor in node.input:
                found += self.readers(node.output[0]) if node.op_type == "Relu" else [node]
        return found

    def source(self, tensor: str) -> Any:
        node = self.producer.get(tensor)
        return self.source(node.input[0]) if node is not None and node.op_type == "Relu" else node

    def is_int8(self, node: Any) -> bool:
        """What reads dequantised values only, and has int8 weights or is only read quantised."""
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return False
        made = [self.producer[name].op_type for name in node.input if name in self.producer]
        decoded = bool(made) and set(made) == {"DequantizeLinear"}
        readers = [reader.op_type == "QuantizeLinear" for reader in self.readers(node.output[0])]
        has_int8_weights = node.op_type in ("Conv", "Gemm") and node.input[1] in self.producer
        return decoded and (has_int8_weights or (bool(readers) and all(readers)))

    def is_free(self, node: Any) -> bool:
        """A Q behind an integer kernel or a DQ, a DQ that only integer kernels and Qs read."""
        if node.op_type == "QuantizeLinear":
            source = self.source(node.input[0])
            return source is not None and (source.op_type == "DequantizeLinear" or self.is_int8(source))
        if node.op_type == "DequantizeLinear":
            return all(r.op_type == "QuantizeLinear" or self.is_int8(r) for r in self.readers(node.output[0]))
        return False


def _kernel_s(weight: tuple[int, ...], out: tuple[int, ...], int8: bool) -> float:
    """Channels are computed in whole blocks; less than a block of input channels is not padded."""
    positions = out[0] * float(np.prod(out[2:]))
    cout, cin = _padded(weight[0]), _padded(weight[1]) if weight[1] >= BLOCK and not int8 else weight[1]
    work = positions * cout * cin * float(np.prod(weight[2:])) * 2e-11
    return 2e-6 + (work / 3 if int8 else work) + positions * weight[0] * 2e-10


def _padded(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK
