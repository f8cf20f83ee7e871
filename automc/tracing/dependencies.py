"""Torch-Pruning's dependency graph, taught about padded channels and searched channel by channel.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning" (arXiv 2301.12900). Torch-Pruning lists, for one layer, everything
that a set of its channels drags along. Here each dependency is crossed once per channel instead, and the connected
components of what it joins are the channels that go together: the same answer for all layers of a model at once.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch_pruning as tp
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from automc.outputs import tensors_of

__all__ = ["Pad", "Side", "Slot", "dependency_graph", "joined"]

Side = Literal["in", "out"]


class Slot(NamedTuple):
    """One channel of one side of a node of the graph: of a module, a parameter or an operation."""

    node: Any
    side: Side
    channel: int


def dependency_graph(model: nn.Module, example: tuple[Tensor, ...]) -> Any:
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    pads = _PadRecorder()
    with torch.enable_grad(), warnings.catch_warnings(), pads:
        warnings.simplefilter("ignore")
        return _Graph(pads).build_dependency(
            model, tuple(t[:2] for t in example), output_transform=_differentiable, verbose=False
        )


def _differentiable(outputs: Any) -> list[Tensor]:
    """The outputs that the graph can be followed back from."""
    return [tensor for tensor in tensors_of(outputs) if tensor.grad_fn is not None]


class _PadRecorder(TorchFunctionMode):
    """Notes each pad that adds channels: its output's grad_fn -> (channels put before, channels in, channels out)."""

    def __init__(self) -> None:
        super().__init__()
        self.pads: dict[Any, tuple[int, int, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is nn.functional.pad:
            padding = args[1] if len(args) > 1 else (kwargs or {})["pad"]
            from_channels = 2 * (args[0].dim() - 2)  # the last dimension comes first
            if len(padding) >= from_channels + 2:
                self.pads[output.grad_fn] = (int(padding[from_channels]), args[0].shape[1], output.shape[1])
        return output


class Pad(nn.Module):
    """Stands in the dependency graph for a pad that adds channels."""

    def __init__(self, before: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.before, self.channels_in, self.channels_out = before, channels_in, channels_out


class _PadPruner(tp.ops.DummyPruner):
    """A pad has no weights: nothing to prune, but it knows how many channels go in and come out."""

    def get_out_channels(self, layer: Pad) -> int:
        return layer.channels_out

    def get_in_channels(self, layer: Pad) -> int:
        return layer.channels_in


class _Shift:
    """Index mapping of Torch-Pruning for channels that move by `offset` and exist up to `size` on the other side."""

    def __init__(self, offset: int, size: int) -> None:
        self.offset, self.size = offset, size

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        moved = [type(i)(idx=i.idx + self.offset, root_idx=i.root_idx) for i in indices]
        return [i for i in moved if 0 <= i.idx < self.size]


class _Graph(tp.DependencyGraph):
    """Torch-Pruning's graph, taught that a pad of the channel dimension shifts channel numbers.

    Torch-Pruning takes pads for elementwise operations, which couples the wrong channels.
    """

    def __init__(self, recorder: _PadRecorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.CUSTOMIZED_PRUNERS[Pad] = _PadPruner()

    def _trace(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        nodes: dict[Any, Any] = super()._trace(*args, **kwargs)
        for node in list(nodes.values()):
            if node.grad_fn in self.recorder.pads:
                del nodes[node.module]
                node.module = Pad(*self.recorder.pads[node.grad_fn])
                nodes[node.module] = node
        return nodes

    def _build_dependency(self, module2node: dict[Any, Any]) -> None:
        super()._build_dependency(module2node)
        self._give_up_reshapes(module2node)
        for pad, node in module2node.items():
            if isinstance(pad, Pad):
                self._shift(node, pad)

    def _give_up_reshapes(self, module2node: dict[Any, Any]) -> None:
        """Torch-Pruning divides by zero at reshapes whose widths it infers wrongly, as in channel shuffles."""
        tp.dependency.shape_infer.init_shape_information(self)
        for node in module2node.values():
            if node.type == tp.ops.OPTYPE.RESHAPE:
                try:
                    tp.dependency.index_mapping.update_reshape_index_mapping(self, node)
                except ZeroDivisionError:
                    node.type = tp.ops.OPTYPE.ELEMENTWISE

    def _shift(self, node: Any, pad: Pad) -> None:
        for source in node.inputs:
            for dep in source.dependencies:
                if dep.target is node:
                    dep.index_mapping[0] = _Shift(pad.before, pad.channels_out)
            for dep in node.dependencies:
                if dep.target is source:
                    dep.index_mapping[0] = _Shift(-pad.before, pad.channels_in)


def joined(graph: Any, blocks: Iterable[Sequence[Slot]]) -> Iterator[list[Slot]]:
    """Sets of slots that must be pruned together, over all convolutions and linear layers of the graph.

    Args:
        blocks: slots that belong together for reasons of their own, such as the channels of one group of a convolution.
    """
    numbers, pairs = _spread(graph)
    for block in blocks:
        known = [numbers[slot] for slot in block if slot in numbers]
        pairs.extend((known[0], other) for other in known[1:])
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    links = coo_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(numbers), len(numbers)))
    _, labels = connected_components(links, directed=False)
    members = defaultdict(list)
    for slot, label in zip(numbers, labels.tolist(), strict=True):
        members[label].append(slot)
    yield from members.values()


def _spread(graph: Any) -> tuple[dict[Slot, int], list[tuple[int, int]]]:
    """Every slot that an output channel of a convolution or linear layer drags along, numbered, and the pairs that touch."""
    numbers: dict[Slot, int] = {}
    pairs: list[tuple[int, int]] = []
    sizes = _sizes(graph)
    widest = max(sizes.values(), default=0)
    work = []
    for module, node in graph.module2node.items():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            pruner = graph.get_pruner_of_module(module)
            channels = list(range(pruner.get_out_channels(module)))
            for channel in channels:
                numbers[Slot(node, "out", channel)] = len(numbers)
            work.append((node, pruner.prune_out_channels, channels))
    while work:
        node, function, channels = work.pop()
        here = _side(graph, function)
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(function):
                continue
            there, fresh = _side(graph, dependency.handler), []
            for source, target in _crossed(dependency, channels):
                slot = Slot(dependency.target, there, target)
                if slot not in numbers:
                    numbers[slot] = len(numbers)
                    if 0 <= target < sizes.get((slot.node, there), widest):
                        fresh.append(target)
                pairs.append((numbers[Slot(node, here, source)], numbers[slot]))
            if fresh:
                work.append((dependency.target, dependency.handler, fresh))
    return numbers, pairs


def _crossed(dependency: Any, channels: Sequence[int]) -> Iterable[tuple[int, int]]:
    """(channel here, channel there) of each channel that a dependency hands on."""
    mappings = [mapping for mapping in dependency.index_mapping if mapping is not None]
    if not mappings:
        return zip(channels, channels, strict=True)
    indices = [tp._helpers._HybridIndex(idx=channel, root_idx=channel) for channel in channels]
    try:
        for mapping in mappings:
            indices = mapping(indices)
    except IndexError:  # a split with more readers than parts, whose places Torch-Pruning does not know
        return []  # too few channels are joined; verification then refuses the group
    return [(index.root_idx, index.idx) for index in indices if index.root_idx is not None]


def _side(graph: Any, function: Any) -> Side:
    reads = graph.is_in_channel_pruning_fn(function) and not graph.is_out_channel_pruning_fn(function)
    return "in" if reads else "out"


def _sizes(graph: Any) -> dict[tuple[Any, Side], int]:
    """Channels of each side of each node, where Torch-Pruning knows them."""
    sizes: dict[tuple[Any, Side], int] = {}
    for node in graph.module2node.values():
        reads, writes = graph.get_in_channels(node), graph.get_out_channels(node)
        if reads is not None:
            sizes[node, "in"] = int(reads)
        if writes is not None:
            sizes[node, "out"] = int(writes)
    return sizes
