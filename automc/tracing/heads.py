"""Which attention heads a model has, found by hypothesis and test instead of a list of known classes.

Heads are a reshape in the model's own code, which no dependency graph of channels can follow. So every module that speaks of
heads and runs a few linear layers is taken apart from the model; readings of its layers (`automc.tracing.layouts`) and of the
numbers in its code that must follow are tried, the plain ones first; and the reading is kept with which removing heads
gives exactly what zeroing the weights that read them gives, on weights and inputs drawn at random.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from automc.compression.prune import remove_channels, zero_consumers
from automc.compression.sharing import sharing_copy
from automc.graph import Attribute, ChannelGroup, LeftAlone, Member
from automc.tracing.layouts import Hypothesis, hypotheses

__all__ = ["Heads", "find_heads"]

Integers = Mapping[tuple[str, str], int]

_MAX_LAYERS = 8
"""Linear layers in a module that is taken for an attention."""
_MAX_TRIES = 96
_TOLERANCE = 1e-4
_SPEAKS_OF_HEADS = re.compile(r"head|^(h|d_k|d_v|d_kv)$")
_STAYS = re.compile(r"dim$|head_size|group|rep|embed|hidden|^in_|input|layer|index|idx|d_k|d_v")
"""Names of numbers that more often stay than follow."""


@dataclass(frozen=True)
class Heads:
    """The head groups of a model, and the attentions whose heads stay, with the reason."""

    groups: tuple[ChannelGroup, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()


@dataclass
class _Block:
    """A module that may be an attention: the linear layers that it ran, in order, and one call of it."""

    name: str
    module: nn.Module
    calls: int = 0
    layers: list[tuple[str, nn.Linear]] = field(default_factory=list)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What blocks that are built alike have in common."""
        shapes = tuple((name, tuple(layer.weight.shape)) for name, layer in self.layers)
        return type(self.module), shapes, tuple(_integers(self.module).items())


def find_heads(model: nn.Module, example: Sequence[Tensor]) -> Heads:
    """The head groups of `model`, each verified inside its own module.

    Args:
        example: inputs of the model; one sample of them is used.
    """
    order = [name for name, _ in model.named_modules()]
    found, failed = dict[str, ChannelGroup](), list[_Block]()
    recipes: dict[tuple[Any, ...], ChannelGroup | None] = {}
    taken: set[str] = set()
    for block in reversed(_blocks(model, example)):  # inner modules before those around them
        names = {_join(block.name, name) for name, _ in block.layers}
        if names & taken:
            continue
        group = _solve(block, recipes)
        if group is None:
            failed.append(block)
        else:
            found[block.name] = _placed(group, block.name)
            taken |= names
    groups = sorted(found.values(), key=lambda group: order.index(group.name))
    return Heads(tuple(groups), tuple(_failures(failed, taken)))


def _failures(failed: Sequence[_Block], taken: set[str]) -> Iterator[LeftAlone]:
    """The innermost modules that look like an attention and hold no layer of one that was found."""
    told = set(taken)
    for block in failed:
        names = {_join(block.name, name) for name, _ in block.layers}
        if not names & told and _speaks_of_heads(block.module) and list(_readings(block)):
            told |= names
            reason = "its heads cannot be followed through its code (a number of heads written into it, or weights that mix heads)"
            yield LeftAlone(block.name or "(attention heads)", reason)


def _blocks(model: nn.Module, example: Sequence[Tensor]) -> list[_Block]:
    """Every module that speaks of heads and runs a few linear layers, each once, in the model's order."""
    blocks = {name: _Block(name, module) for name, module in model.named_modules() if _may_be_attention(module)}
    hooks = [block.module.register_forward_pre_hook(_remember(block), with_kwargs=True) for block in blocks.values()]
    for name, module in model.named_modules():
        around = [block for block in blocks.values() if name.startswith(f"{block.name}." if block.name else "")]
        if isinstance(module, nn.Linear) and around:
            hooks.append(module.register_forward_hook(_note(name, around)))
    try:
        with torch.no_grad():
            model(*(tensor[:1] for tensor in example))
    finally:
        for hook in hooks:
            hook.remove()
    return [block for block in blocks.values() if _is_candidate(block)]


def _may_be_attention(module: nn.Module) -> bool:
    layers = [child for child in module.modules() if isinstance(child, nn.Linear)]
    return 2 <= len(layers) <= _MAX_LAYERS and _speaks_of_heads(module)


def _speaks_of_heads(module: nn.Module) -> bool:
    return any(_SPEAKS_OF_HEADS.search(_leaf(name)) for _, name in _integers(module))


def _is_candidate(block: _Block) -> bool:
    names = [name for name, _ in block.layers]
    return block.calls == 1 and len(names) >= 2 and len(set(names)) == len(names)


def _remember(block: _Block) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        block.calls += 1
        block.args, block.kwargs = copy.deepcopy((args, kwargs))

    return hook


def _note(name: str, around: Sequence[_Block]) -> Any:
    def hook(layer: nn.Linear, args: tuple[Any, ...], output: Tensor) -> None:
        for block in around:
            block.layers.append((name[len(block.name) + 1 :] if block.name else name, layer))

    return hook


def _solve(block: _Block, recipes: dict[tuple[Any, ...], ChannelGroup | None]) -> ChannelGroup | None:
    """The block's heads, by names inside it. Blocks that are built alike are read alike; `recipes` remembers how."""
    try:
        trial = _Trial(block)
    except Exception:  # a module that cannot be copied or run alone
        return None
    if block.kind in recipes:
        known = recipes[block.kind]
        return known if known is not None and trial.holds(known) else None
    tries = itertools.islice(_readings(block), _MAX_TRIES)
    found = next((group for group in tries if trial.holds(group) and trial.holds(group, first=1)), None)
    if found is not None and trial.holds(_halves(found)):
        found = None  # features that may go one by one, as in an MLP
    recipes[block.kind] = found
    return found


def _halves(group: ChannelGroup) -> ChannelGroup:
    """The group with half heads for units, which no attention has."""
    members = tuple(
        replace(m, index=tuple(half for unit in m.index for half in (unit[: len(unit) // 2], unit[len(unit) // 2 :])))
        for m in group.members
    )
    return replace(group, width=2 * group.width, members=members, attributes=())


class _Trial:
    """One block on random weights and inputs, on which groups are tested."""

    def __init__(self, block: _Block) -> None:
        self.block = block
        self.module = copy.deepcopy(block.module)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in self.module.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * layer.in_features**-0.5)
                    if layer.bias is not None:
                        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
        widths = {layer.in_features for _, layer in block.layers}
        self.inputs = _randomised((block.args, block.kwargs), widths, generator)
        self.dense = self._run(self.module)

    def holds(self, group: ChannelGroup, first: int = 0) -> bool:
        """Whether removing every other head, or (`first`) the first ones, equals zeroing the weights that read them."""
        kept = tuple(range(first, group.width)) if first else tuple(range(0, group.width, 2))
        try:
            zeroed, pruned = sharing_copy(self.module), sharing_copy(self.module)
            zero_consumers(zeroed, [group], {group.name: kept})
            remove_channels(pruned, [group], {group.name: kept})
            expected, found = self._run(zeroed), self._run(pruned)
        except Exception:  # the module's code may do anything with fewer heads; that it fails is the answer
            return False
        return _close(expected, found) and not _close(expected, self.dense)

    def _run(self, module: nn.Module) -> Tensor:
        args, kwargs = copy.deepcopy(self.inputs)
        with torch.no_grad():
            output = _first_tensor(module(*args, **kwargs))
        assert output is not None
        return output


def _randomised(value: Any, widths: set[int], generator: torch.Generator) -> Any:
    """`value` with its tokens, tensors of floats whose last dimension a layer reads, drawn anew: real ones may be all alike."""
    if isinstance(value, Tensor):
        if value.dim() < 2 or value.shape[-1] not in widths or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator).to(value)
    if type(value) in (tuple, list):
        return type(value)(_randomised(part, widths, generator) for part in value)
    if type(value) is dict:
        return {key: _randomised(part, widths, generator) for key, part in value.items()}
    return value


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((tensor for tensor in map(_first_tensor, parts) if tensor is not None), None)


def _close(expected: Tensor, found: Tensor) -> bool:
    scale = float(expected.abs().max())
    return expected.shape == found.shape and bool((expected - found).abs().max() <= _TOLERANCE * scale)


def _readings(block: _Block) -> Iterator[ChannelGroup]:
    """Groups of heads that the block may have, by names inside it, roughly the plainest first."""
    ranked: list[tuple[int, ChannelGroup]] = []
    integers = _integers(block.module)
    for position, (name, layer) in enumerate(block.layers[1:], start=1):
        producers = [(before, other.out_features) for before, other in block.layers[:position]]
        counts = _head_counts(integers, layer.in_features)
        for hypothesis in hypotheses(producers, (name, layer.in_features), counts)[:_MAX_TRIES]:
            for rank, attributes in enumerate(_attribute_sets(integers, hypothesis)):
                for extra_rank, extra in enumerate(_per_head_parameters(block.module, hypothesis.units)):
                    group = ChannelGroup(
                        producers[0][0], hypothesis.units, (*hypothesis.members, *extra), "heads", attributes
                    )
                    group = replace(group, name=group.producers[0])
                    ranked.append((hypothesis.rank + rank + extra_rank, group))
    ranked.sort(key=lambda entry: entry[0])
    return (group for _, group in ranked)


def _head_counts(integers: Integers, width: int) -> list[int]:
    """Numbers that may count heads: those whose name speaks of heads, and what they leave where they are a head's features."""
    spoken = [value for (_, name), value in integers.items() if _SPEAKS_OF_HEADS.search(_leaf(name))]
    return [count for value in spoken for count in (value, *((width // value,) if width % value == 0 else ()))]


def _integers(module: nn.Module) -> dict[tuple[str, str], int]:
    """(submodule, attribute) -> value, of the positive integers in the module's own code, and in objects that it holds."""
    found = {}
    for path, child in module.named_modules():
        if type(child).__module__.startswith("torch.nn."):
            continue
        for name, value in vars(child).items():
            if _counts(value):
                found[path, name] = value
            elif not name.startswith("_") and type(value).__module__ != "builtins" and hasattr(value, "__dict__"):
                found.update({(path, f"{name}.{key}"): held for key, held in vars(value).items() if _counts(held)})
    return found


def _counts(value: Any) -> bool:
    return type(value) is int and value > 0


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _attribute_sets(integers: Integers, hypothesis: Hypothesis) -> Iterator[tuple[Attribute, ...]]:
    """Which numbers may follow the heads: all of the module's own that fit, then fewer, then those in a configuration too."""
    fitting = [key for key, value in integers.items() if value in hypothesis.numbers and value % hypothesis.units == 0]
    own = [key for key in fitting if "." not in key[1]]
    likely = [key for key in own if not _STAYS.search(key[1])]
    configured = [key for key in fitting if key not in own and _SPEAKS_OF_HEADS.search(_leaf(key[1]))]
    subsets = [s for size in range(len(own) + 1) for s in itertools.combinations(own, size)] if len(own) <= 6 else []
    subsets.sort(key=lambda s: len(set(s) ^ set(likely)))
    tried = [tuple(likely), tuple(own), *subsets[:16], *((*likely, *configured),) * bool(configured)]
    for keys in dict.fromkeys(tried):
        yield tuple(Attribute(*key, per_unit=integers[key] // hypothesis.units) for key in keys)


def _per_head_parameters(module: nn.Module, units: int) -> Iterator[tuple[Member, ...]]:
    """Parameters with an entry per head, such as tables of relative positions; then none."""
    index = tuple((unit,) for unit in range(units))
    found = [
        Member(_join(path, name), "out", index)
        for path, child in module.named_modules()
        if not isinstance(child, (nn.Linear, nn.LayerNorm))
        for name, parameter in child.named_parameters(recurse=False)
        if next((size for size in reversed(parameter.shape) if size > 1), 1) == units
    ]
    if found:
        yield tuple(found)
    yield ()


def _placed(group: ChannelGroup, block: str) -> ChannelGroup:
    """A group of names inside a block, by names in the model."""
    return replace(
        group,
        name=_join(block, group.name),
        members=tuple(replace(member, module=_join(block, member.module)) for member in group.members),
        attributes=tuple(replace(a, module=_join(block, a.module)) for a in group.attributes),
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
