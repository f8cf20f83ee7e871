"""ONNX models of candidates without an export each: the dense model's graph, with a candidate's tensors put in.

Exporting a ResNet-20 takes 0.16 s and evaluating it 0.3 s, so the dense model alone is exported. What a policy changes is the
tensors, pruned shapes included, and layers that become chains of factors or round their inputs; those get nodes of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn

from automc.compression.carriers import carriers_of
from automc.errors import AutomcError
from automc.export.floating import layer_of
from automc.export.marks import export_marked, round_tensors
from automc.export.nodes import Part, layer_part, to_proto

__all__ = ["Template"]


@dataclass(frozen=True)
class _Region:
    """The nodes of one layer, by number, and the one tensor that enters and the one that leaves them."""

    nodes: tuple[int, ...]
    source: str
    target: str


class Template:
    """The dense model's graph, its batch left open, for candidates made of the same modules.

    Args:
        model: the dense model.
        example: its inputs.

    Raises:
        AutomcError: the model cannot be exported, or the exporter computed something from its parameters beforehand.
    """

    def __init__(self, model: nn.Module, example: Sequence[Tensor]) -> None:
        plain = copy.deepcopy(model)
        _make_distinct(plain)
        two = tuple(torch.cat([tensor[:1], tensor[:1]]) for tensor in example)
        self._frame, self._written = export_marked(plain, two)
        graph = self._frame.graph
        self._known = set(_tensors(model))
        self._baked = [i for i in graph.initializer if i.name not in self._known]
        self._used = {i.name for i in graph.initializer} & self._known
        if any(i.data_type == onnx.TensorProto.FLOAT and len(i.dims) for i in self._baked):
            raise AutomcError("The exporter merged parameters of the model into others.")
        del graph.initializer[:]
        layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
        self._dense = {name: model.get_submodule(name) for name in layers}
        self._regions = _regions(graph, layers, self._known | {i.name for i in self._baked})

    def stitch(self, model: nn.Module) -> onnx.ModelProto:
        """The ONNX model of a candidate, which computes what `model` computes for any number of samples.

        Raises:
            AutomcError: the candidate has modules that the dense model has not, or a layer that cannot be put in.
        """
        parts = self._parts(model)
        given = {name: t for name, t in _tensors(model).items() if not _belongs(name, parts)}
        wanted = {name for name in self._used if not _belongs(name, parts)}
        strange = sorted((given.keys() - self._known) | (wanted - given.keys()))
        if strange:
            raise AutomcError(f"The candidate's tensor {strange[0]!r} has no place in the dense model's graph.")
        proto = onnx.ModelProto()
        proto.CopyFrom(self._frame)
        self._put_nodes(proto.graph, parts, model)
        self._round(proto.graph, model)
        proto.graph.initializer.extend(self._baked)
        proto.graph.initializer.extend(to_proto(name, given[name]) for name in wanted)
        proto.graph.initializer.extend(i for part in parts.values() for i in part.initializers)
        return proto

    def _round(self, graph: onnx.GraphProto, model: nn.Module) -> None:
        """Round what the model's carriers round between layers."""
        carriers = carriers_of(model)
        grids = carriers.fixed_grids(model) if carriers is not None else {}
        missing = sorted(grids.keys() - self._written.keys())
        if missing:
            raise AutomcError(f"What {missing[0]!r} puts out has no tensor in the dense model's graph.")
        round_tensors(graph, {name: grid for key, grid in grids.items() for name in self._written[key]})

    def _parts(self, model: nn.Module) -> dict[str, Part]:
        """The layers that need nodes of their own: all but those whose tensors have changed and nothing else."""
        parts = {}
        for name, dense in self._dense.items():
            layer = model.get_submodule(name)
            if type(layer) is type(dense) and (layer.bias is None) == (dense.bias is None):
                continue
            region = self._regions.get(name)
            if region is None:
                raise AutomcError(f"The layer {name!r} has no nodes of its own in the dense model's graph.")
            parts[name] = layer_part(name, layer, region.source, region.target)
        return parts

    def _put_nodes(self, graph: onnx.GraphProto, parts: Mapping[str, Part], model: nn.Module) -> None:
        gone = {number for name in parts for number in self._regions[name].nodes}
        entry = {max(self._regions[name].nodes): part for name, part in parts.items()}
        nodes = list(graph.node)
        del graph.node[:]
        for number, node in enumerate(nodes):
            if number in entry:
                graph.node.extend(entry[number].nodes)
            if number not in gone:
                graph.node.add().CopyFrom(_regrouped(node, model))


def _regrouped(node: onnx.NodeProto, model: nn.Module) -> onnx.NodeProto:
    """A convolution with as many groups as its layer has now: a depthwise one has as many as channels."""
    if node.op_type == "Conv":
        layer = model.get_submodule(layer_of(node))
        for attribute in node.attribute:
            if attribute.name == "group" and isinstance(layer, nn.Conv2d):
                attribute.i = layer.groups
    return node


def _regions(graph: onnx.GraphProto, layers: set[str], constants: set[str]) -> dict[str, _Region]:
    numbers: dict[str, list[int]] = {}
    for number, node in enumerate(graph.node):
        if node.op_type != "Constant" and (name := layer_of(node)) in layers:
            numbers.setdefault(name, []).append(number)
    found = {}
    for name, own in numbers.items():
        made = {tensor for number in own for tensor in graph.node[number].output}
        read = {tensor for number in own for tensor in graph.node[number].input if tensor}
        others = {t for n, node in enumerate(graph.node) if n not in own for t in node.input}
        sources = read - made - constants - {n.output[0] for n in graph.node if n.op_type == "Constant"}
        targets = made & (others | {output.name for output in graph.output})
        if len(sources) == len(targets) == 1:
            found[name] = _Region(tuple(own), sources.pop(), targets.pop())
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the name under which exporters know them, which is the first of a shared one."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _belongs(name: str, layers: Mapping[str, Part]) -> bool:
    """Whether a tensor is part of one of `layers`."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in layers for end in range(1, len(parts)))


def _make_distinct(model: nn.Module) -> None:
    """Fill every floating-point tensor with values of its own, in place: exporters merge parameters that are equal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in _tensors(model).values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
