"""Which channels must be pruned together: Torch-Pruning's dependency graph, refined to single channels.

Torch-Pruning couples layers. Residual streams that widen through a padded shortcut, or concatenations, couple only *some*
channels of a layer, so its groups are taken apart: two channels are joined when any of its groups joins them, and the
classes that touch the same layers make a ChannelGroup. In a CIFAR ResNet with padded shortcuts this gives one group for
the channels born in each stage, and one per block for its inner channels.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch_pruning as tp
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from automc.graph import ChannelGroup, LeftAlone, Member
from automc.outputs import tensors_of

__all__ = ["Coupling", "couple"]

Side = Literal["in", "out"]
Slot = tuple[str, Side, int]
"""One channel of one side of one module."""

_OUTPUT = "<output>"
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_CARRIERS = (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.PReLU, *_NORMS)


@dataclass(frozen=True)
class Coupling:
    """The channel groups of a model, not yet verified, and which layer each foldable batch norm follows."""

    groups: tuple[ChannelGroup, ...] = ()
    batch_norm_of: dict[str, str] = field(default_factory=dict)
    left_alone: tuple[LeftAlone, ...] = ()


def couple(model: nn.Module, example: tuple[Tensor, ...]) -> Coupling:
    """The channel groups of `model` on `example`. A model that cannot be traced has none, and the reason is given."""
    required = [parameter.requires_grad for parameter in model.parameters()]
    try:
        graph = _dependency_graph(model, example)
        names = {module: name for name, module in model.named_modules()}
        classes, foreign = _classes(graph, names)
        groups = _groups(classes, foreign, [name for name, _ in model.named_modules()])
        return Coupling(groups, _batch_norms(graph, names))
    except Exception as error:  # Torch-Pruning raises anything on operators it does not know
        reason = f"its channels cannot be traced ({type(error).__name__}: {str(error).splitlines()[0][:80]})"
        return Coupling(left_alone=(LeftAlone("(all channels)", reason),))
    finally:
        for parameter, value in zip(model.parameters(), required, strict=True):
            parameter.requires_grad_(value)


def _dependency_graph(model: nn.Module, example: tuple[Tensor, ...]) -> Any:
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


class _Pad(nn.Module):
    """Stands in the dependency graph for a pad that adds channels."""

    def __init__(self, before: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.before, self.channels_in, self.channels_out = before, channels_in, channels_out


class _PadPruner(tp.ops.DummyPruner):
    """A pad has no weights: nothing to prune, but it knows how many channels go in and come out."""

    def get_out_channels(self, layer: _Pad) -> int:
        return layer.channels_out

    def get_in_channels(self, layer: _Pad) -> int:
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
        self.CUSTOMIZED_PRUNERS[_Pad] = _PadPruner()

    def _trace(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        nodes: dict[Any, Any] = super()._trace(*args, **kwargs)
        for node in list(nodes.values()):
            if node.grad_fn in self.recorder.pads:
                del nodes[node.module]
                node.module = _Pad(*self.recorder.pads[node.grad_fn])
                nodes[node.module] = node
        return nodes

    def _build_dependency(self, module2node: dict[Any, Any]) -> None:
        super()._build_dependency(module2node)
        for pad, node in module2node.items():
            if isinstance(pad, _Pad):
                self._shift(node, pad)

    def _shift(self, node: Any, pad: _Pad) -> None:
        for source in node.inputs:
            for dep in source.dependencies:
                if dep.target is node:
                    dep.index_mapping[0] = _Shift(pad.before, pad.channels_out)
            for dep in node.dependencies:
                if dep.target is source:
                    dep.index_mapping[0] = _Shift(-pad.before, pad.channels_in)


def _classes(graph: Any, names: dict[nn.Module, str]) -> tuple[DisjointSet, dict[Slot, str]]:
    """Disjoint sets of channel slots, and the slots that make their class unusable with the reason."""
    classes, foreign = DisjointSet(), dict[Slot, str]()
    done: set[Slot] = set()
    for module in list(graph.module2node):
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or module not in names:
            continue
        pruner = graph.get_pruner_of_module(module)
        fresh = [c for c in range(pruner.get_out_channels(module)) if (names[module], "out", c) not in done]
        if not fresh:
            continue
        group = graph.get_pruning_group(module, pruner.prune_out_channels, fresh)
        for slot, root, reason in _slots(graph, group, names):
            classes.add(slot)
            classes.add((names[module], "out", root))
            classes.merge(slot, (names[module], "out", root))
            done.add(slot)
            if reason:
                foreign[slot] = reason
    return classes, foreign


def _slots(graph: Any, group: Any, names: dict[nn.Module, str]) -> Iterator[tuple[Slot, int, str]]:
    """(slot, root channel, reason why it forbids pruning or "") of everything a Torch-Pruning group touches."""
    parameters = {id(p): name for name, p in graph.model.named_parameters()}
    for item in group.items:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            name, reason = (
                parameters[id(module)],
                "" if module.squeeze().dim() <= 1 else "a parameter of several dimensions",
            )
        elif module in names:
            name = names[module]
            reason = "" if isinstance(module, _CARRIERS) else type(module).__name__
        elif isinstance(module, tp.ops._OutputOp):
            name, reason = _OUTPUT, "the model's output"
        else:
            continue
        reads = graph.is_in_channel_pruning_fn(item.dep.handler) and not graph.is_out_channel_pruning_fn(
            item.dep.handler
        )
        side: Side = "in" if reads else "out"
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            if root is not None:
                yield (name, side, int(index)), int(root), reason


def _groups(classes: DisjointSet, foreign: dict[Slot, str], order: Sequence[str]) -> tuple[ChannelGroup, ...]:
    """Classes that touch the same sides of the same modules, equally often, make a group."""
    rank = {name: position for position, name in enumerate(order)}
    by_signature: dict[tuple[tuple[str, Side, int], ...], list[dict[tuple[str, Side], tuple[int, ...]]]] = defaultdict(
        list
    )
    for members in classes.subsets():
        if any(slot in foreign for slot in members):
            continue
        sides: dict[tuple[str, Side], list[int]] = defaultdict(list)
        for module, side, index in members:
            sides[module, side].append(index)
        signature = tuple(sorted((module, side, len(index)) for (module, side), index in sides.items()))
        by_signature[signature].append({key: tuple(sorted(index)) for key, index in sides.items()})
    groups = []
    for signature, units in by_signature.items():
        sides_present = {side for _, side, _ in signature}
        if sides_present != {"in", "out"} or len(units) < 2:
            continue
        first = min((name for name, side, _ in signature if side == "out"), key=lambda name: rank.get(name, len(rank)))
        units.sort(key=lambda unit: min(unit.values()))
        touched = tuple(
            Member(module, side, tuple(unit[module, side] for unit in units))
            for module, side, _ in sorted(signature, key=lambda s: (rank.get(s[0], len(rank)), s[1]))
        )
        groups.append(ChannelGroup(first, len(units), touched))
    groups.sort(key=lambda group: rank.get(group.name, len(rank)))
    return tuple(_uniquely_named(groups))


def _uniquely_named(groups: Sequence[ChannelGroup]) -> Iterator[ChannelGroup]:
    """Two groups may start in one layer; the later ones are told apart by a number."""
    seen: dict[str, int] = defaultdict(int)
    for group in groups:
        seen[group.name] += 1
        count = seen[group.name]
        yield group if count == 1 else ChannelGroup(f"{group.name}#{count}", group.width, group.members)


def _batch_norms(graph: Any, names: dict[nn.Module, str]) -> dict[str, str]:
    """Layer -> the batch norm that alone reads it, and reads nothing else."""
    found = {}
    for module, node in graph.module2node.items():
        if not isinstance(module, _NORMS) or module.running_mean is None or len(node.inputs) != 1:
            continue
        source = node.inputs[0]
        if isinstance(source.module, (nn.Conv2d, nn.Linear)) and len(source.outputs) == 1:
            found[names[source.module]] = names[module]
    return found
