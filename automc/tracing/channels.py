"""Which channels must be pruned together: Torch-Pruning's dependency graph, refined to single channels.

Torch-Pruning couples layers. Residual streams that widen through a padded shortcut, or concatenations, couple only *some*
channels of a layer, so two channels are joined only when a dependency joins them, and the sets of channels that touch the
same layers make a ChannelGroup. In a CIFAR ResNet with padded shortcuts this gives one group for the channels born in each
stage, and one per block for its inner channels. The channels of one group of a grouped convolution, or of one group that
a GroupNorm normalises together, stay or go together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

from automc.graph import ChannelGroup, LeftAlone, Member
from automc.tracing.dependencies import Pad, Side, Slot, dependency_graph, joined

__all__ = ["Coupling", "couple"]

_CONVOLUTIONS = nn.modules.conv._ConvNd
_LAYERS = (_CONVOLUTIONS, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CARRIERS = (*_LAYERS, *_NORMS, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.PReLU)
_UNKNOWN = 1 << 40
"""More channels than anything has, where their number is not known."""
_LOST = "they cannot be followed"
_OUTPUT = "they are the model's output"
_WORDS = {
    "Reshape": "a reshape", "Transpose": "a transpose", "Permute": "a transpose", "Split": "a split", "Slice": "a slice",
    "Unbind": "an unbind", "Expand": "an expand", "Repeat": "a repeat", "Index": "an index", "Bmm": "a matrix product",
    "PixelShuffle": "a pixel shuffle", "Roll": "a roll",
}  # fmt: skip
"""Operations that move channels around, by the start of the name that autograd or Torch-Pruning gives them."""


@dataclass(frozen=True)
class Coupling:
    """The channel groups of a model, not yet verified, and which layer each foldable batch norm follows.

    `passes` says in words which operations move each group's channels around.
    """

    groups: tuple[ChannelGroup, ...] = ()
    batch_norm_of: dict[str, str] = field(default_factory=dict)
    left_alone: tuple[LeftAlone, ...] = ()
    passes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Class:
    """Channels that stay or go together: (module, side) -> positions, why not if they have to stay, and what moves them."""

    sides: dict[tuple[str, Side], tuple[int, ...]]
    reason: str
    passes: frozenset[str]

    @property
    def signature(self) -> tuple[tuple[str, Side, int], ...]:
        return tuple(sorted((module, side, len(index)) for (module, side), index in self.sides.items()))


def couple(model: nn.Module, example: tuple[Tensor, ...]) -> Coupling:
    """The channel groups of `model` on `example`. A model that cannot be traced has none, and the reason is given."""
    required = [parameter.requires_grad for parameter in model.parameters()]
    try:
        graph = dependency_graph(model, example)
        names = {module: name for name, module in model.named_modules()}
        classes = list(_classes(graph, names))
        groups, left_alone = _Groups(model, classes).found()
        passes = {group.name: passed for group, passed in groups}
        return Coupling(tuple(group for group, _ in groups), _batch_norms(graph, names), tuple(left_alone), passes)
    except Exception as error:  # Torch-Pruning raises anything on operators it does not know
        words = (str(error).splitlines() or [""])[0][:80]
        reason = f"its channels cannot be traced ({type(error).__name__}: {words})"
        return Coupling(left_alone=(LeftAlone("(all channels)", reason),))
    finally:
        for parameter, value in zip(model.parameters(), required, strict=True):
            parameter.requires_grad_(value)


@dataclass(frozen=True)
class _Place:
    """What there is to know about one side of a node of the dependency graph.

    Attributes:
        key: (module or parameter, side); None for operations and for what follows another side.
        obstacle: why channels that pass through cannot be removed, "" where they can.
        inside, outside: channel numbers that exist here, and what is wrong with others.
        moved: in words, what the operation does to channels.
    """

    key: tuple[str, Side] | None
    obstacle: str
    inside: range
    outside: str
    moved: str


def _classes(graph: Any, names: Mapping[nn.Module, str]) -> Iterator[_Class]:
    parameters = {id(p): name for name, p in graph.model.named_parameters()}
    places: dict[tuple[Any, Side], _Place] = {}
    for slots in joined(graph, _blocks(graph)):
        sides: dict[tuple[str, Side], list[int]] = defaultdict(list)
        reasons: dict[str, None] = {}
        passes = set()
        for node, side, index in slots:
            place = places.get((node, side))
            if place is None:
                place = places[node, side] = _place(graph, node, side, names.get(node.module), parameters)
            if place.key is not None:
                sides[place.key].append(index)
            reasons[place.obstacle or ("" if index in place.inside else place.outside)] = None
            passes.add(place.moved)
        reasons.pop("", None)
        reason = _OUTPUT if _OUTPUT in reasons else next(iter(reasons), "")
        if reason.startswith(_LOST) and passes - {""}:
            reason += f" through {_listed(passes)}"
        yield _Class({key: tuple(sorted(index)) for key, index in sides.items()}, reason, frozenset(passes - {""}))


def _place(graph: Any, node: Any, side: Side, name: str | None, parameters: Mapping[int, str]) -> _Place:
    module = node.module
    if isinstance(module, Pad):
        added = "they are added to a shortcut that a pad fills up with zeros, to a width that is fixed"
        born = range(module.before, module.before + module.channels_in) if side == "out" else range(module.channels_in)
        return _Place(None, "", born, added, "")
    size = graph.get_in_channels(node) if side == "in" else graph.get_out_channels(node)
    inside = range(_UNKNOWN if size is None else size)
    name = parameters.get(id(module)) if name is None else name
    follows = side == "in" and _grouped(module)
    key = None if name is None or follows else (name, side)
    return _Place(key, _obstacle(node, name or ""), inside, f"{_LOST} to {name}", _moved(module))


def _grouped(module: Any) -> bool:
    return isinstance(module, _CONVOLUTIONS) and module.groups > 1


def _blocks(graph: Any) -> Iterator[list[Slot]]:
    """Slots of each group of the grouped convolutions and group norms."""
    for module, node in graph.module2node.items():
        if _grouped(module):
            reads, writes = module.in_channels // module.groups, module.out_channels // module.groups
            for group in range(module.groups):
                inputs = [Slot(node, "in", group * reads + i) for i in range(reads)]
                yield [*inputs, *(Slot(node, "out", group * writes + i) for i in range(writes))]
        elif isinstance(module, nn.GroupNorm):
            size = module.num_channels // module.num_groups
            for group in range(module.num_groups):
                yield [Slot(node, "out", group * size + i) for i in range(size)]


def _obstacle(node: Any, name: str) -> str:
    """Why channels that pass through a node cannot be removed, "" where they can."""
    module = node.module
    if isinstance(module, tp.ops._OutputOp):
        return _OUTPUT
    if isinstance(module, nn.Parameter):
        return f"they meet {name}, a parameter of several dimensions" if module.squeeze().dim() > 1 else ""
    if not name:
        return ""
    if isinstance(module, nn.LayerNorm):
        return f"{name} ({type(module).__name__}) normalises them together, so none can go without changing the others"
    if not isinstance(module, _CARRIERS):
        return f"they pass through {name} ({type(module).__name__}), whose width is fixed"
    return f"{name} reads one group of the model's inputs for each" if _grouped(module) and not node.inputs else ""


def _moved(module: Any) -> str:
    """In words, what an operation that moves channels around does; "" for modules and other operations."""
    if isinstance(module, nn.Parameter) or not type(module).__module__.startswith("torch_pruning"):
        return ""
    name = str(module._grad_fn) if isinstance(module, tp.ops._ElementWiseOp) else type(module).__name__.strip("_")
    return next((words for start, words in _WORDS.items() if name.startswith(start)), "")


class _Groups:
    """Puts classes that touch the same sides of the same modules, equally often, together."""

    def __init__(self, model: nn.Module, classes: Iterable[_Class]) -> None:
        self.modules = dict(model.named_modules())
        self.rank = {name: position for position, name in enumerate(self.modules)}
        self.classes = classes

    def found(self) -> tuple[list[tuple[ChannelGroup, str]], list[LeftAlone]]:
        """The groups in the order of the model, each with the words for what moves its channels, and what has to stay."""
        free: dict[tuple[tuple[str, Side, int], ...], list[_Class]] = defaultdict(list)
        stuck: dict[tuple[str, str], None] = {}
        for one in self.classes:
            producers = self._producers(one)
            if one.reason in ("", _OUTPUT) and producers:
                if not one.reason and {side for _, side in one.sides} == {"in", "out"}:
                    free[one.signature].append(one)
            elif producers:
                stuck[producers[0], one.reason] = None
        groups = []
        for signature, units in free.items():
            if len(units) > 1:
                groups.append((self._group(signature, units), _listed(units[0].passes)))
            else:
                stuck[self._producers(units[0])[0], "there is only one of them, or all of them hang together"] = None
        groups.sort(key=lambda pair: self._position(pair[0].name))
        left_alone = [LeftAlone(name, f"its channels stay: {reason}") for name, reason in stuck]
        return list(_uniquely_named(groups)), sorted(left_alone, key=lambda entry: self._position(entry.name))

    def _position(self, name: str) -> int:
        return self.rank.get(name, len(self.rank))

    def _producers(self, one: _Class) -> list[str]:
        """The layers that write the channels, in the order of the model."""
        writers = {name for name, side in one.sides if side == "out" and isinstance(self.modules.get(name), _LAYERS)}
        return sorted(writers, key=self._position)

    def _group(self, signature: tuple[tuple[str, Side, int], ...], units: list[_Class]) -> ChannelGroup:
        units.sort(key=lambda unit: min(unit.sides.values()))
        touched = tuple(
            Member(module, side, tuple(unit.sides[module, side] for unit in units))
            for module, side, _ in sorted(signature, key=lambda s: (self._position(s[0]), s[1]))
        )
        whole = any(self._in_groups(member.module) for member in touched)
        return ChannelGroup(self._producers(units[0])[0], len(units), touched, "groups" if whole else "channels")

    def _in_groups(self, name: str) -> bool:
        module = self.modules.get(name)
        if isinstance(module, nn.GroupNorm):
            return module.num_groups < module.num_channels
        if not isinstance(module, _CONVOLUTIONS) or module.groups == 1:
            return False
        return not module.groups == module.in_channels == module.out_channels


def _listed(words: Iterable[str]) -> str:
    *others, last = sorted(filter(None, words)) or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _uniquely_named(groups: Sequence[tuple[ChannelGroup, str]]) -> Iterator[tuple[ChannelGroup, str]]:
    """Two groups may start in one layer; the later ones are told apart by a number."""
    seen: dict[str, int] = defaultdict(int)
    for group, passes in groups:
        seen[group.name] += 1
        count = seen[group.name]
        name = group.name if count == 1 else f"{group.name}#{count}"
        yield ChannelGroup(name, group.width, group.members, group.unit), passes


def _batch_norms(graph: Any, names: Mapping[nn.Module, str]) -> dict[str, str]:
    """Layer -> the batch norm that alone reads it, and reads nothing else."""
    found = {}
    for module, node in graph.module2node.items():
        if not isinstance(module, _NORMS) or module.running_mean is None or len(node.inputs) != 1:
            continue
        source = node.inputs[0]
        if isinstance(source.module, _LAYERS) and len(source.outputs) == 1 and not _folds_badly(source.module):
            found[names[source.module]] = names[module]
    return found


def _folds_badly(module: Any) -> bool:
    """Transposed convolutions in groups keep their output channels in two dimensions of the weight."""
    return _grouped(module) and module.transposed
