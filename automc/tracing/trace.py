"""From a model and an example input to a LayerGraph, and to the folded model that every compression starts from.

Channels that must be pruned together are found with Torch-Pruning's dependency graph (Fang et al. 2023, "DepGraph",
arXiv 2301.12900), refined to single channels (`automc.tracing.channels`), and then verified (`automc.tracing.verification`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from automc.calling import bind_names
from automc.compression.stacks import split
from automc.graph import ONLY_PRUNED, ChannelGroup, LayerGraph, LayerSpec, LeftAlone
from automc.outputs import Outputs, tensors_of
from automc.tracing.attention import replace_attention
from automc.tracing.calls import LAYERS, Call, run_and_record, unchanging
from automc.tracing.channels import couple
from automc.tracing.folding import FoldedNorm, fold_batch_norms
from automc.tracing.heads import find_heads
from automc.tracing.layer_specs import layer_spec, unusual, with_channels
from automc.tracing.replaceable import read_directly
from automc.tracing.unwrap import copy_of
from automc.tracing.verification import agree, verified

__all__ = ["Traced", "trace"]


@dataclass(frozen=True)
class Traced:
    """A model prepared for compression.

    Attributes:
        model: a copy in eval mode with batch norms folded into the layer before them.
        graph: what the model offers.
        example: the example input, one sample or batch per tensor.
        folded: layers whose batch norm was folded; recovery gives them one back for training.
        outputs: the structure of what the model returns.
        norms: what those batch norms were.
    """

    model: nn.Module
    graph: LayerGraph
    example: tuple[Tensor, ...]
    folded: frozenset[str]
    outputs: Outputs
    norms: Mapping[str, FoldedNorm] = field(default_factory=dict)


def trace(model: nn.Module, example: Sequence[Tensor], names: Sequence[str] = ()) -> Traced:
    """Prepare `model` for compression; the model itself is not changed.

    Args:
        example: the inputs of the model, each (batch, ...).
        names: the keywords that the model takes them by, none where it takes them in order.

    Raises:
        InputError: the model cannot be copied, does not run on the example, or returns something other than tensors.
    """
    copied = copy_of(model)
    bind_names(copied, names)
    example = tuple(tensor.detach() for tensor in example)
    copied, packed = replace_attention(copied, example)
    _split_stacks(copied, example)
    shared = _shared_parameters(copied)
    calls, outputs = run_and_record(copied, example)
    fixed = unchanging(copied, example, calls)
    coupling = couple(copied, example)
    reasons = {
        n: _unusable(call, n in shared, n in fixed) or unusual(copied.get_submodule(n)) for n, call in calls.items()
    }
    unusable = {name: reason for name, reason in reasons.items() if reason}
    norms = fold_batch_norms(copied, coupling.batch_norm_of, shared)
    layers, left_alone = _layers(copied, calls, unusable)
    layers, whole = _replaceable(copied, example, layers)
    heads = find_heads(copied, example)
    headed = {member.module for group in heads.groups for member in group.members if member.side == "out"}
    coupled = [entry for entry in coupling.left_alone if entry.name not in headed]
    candidates = replace(coupling, groups=tuple(_candidates(heads.groups, coupling.groups)))
    groups, refused = verified(copied, example, candidates, unusable)
    others = _others(copied, calls, [layer.name for layer in layers])
    graph = LayerGraph(
        layers=tuple(with_channels(layer, groups) for layer in layers),
        groups=tuple(groups),
        left_alone=(*packed, *left_alone, *whole, *coupled, *heads.left_alone, *refused),
        others=tuple(with_channels(layer, groups) for layer in others),
    )
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return Traced(copied, graph, example, frozenset(norms), outputs, norms)


def _shared_parameters(model: nn.Module) -> set[str]:
    """Names of modules that share a parameter with another module."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _layers(
    model: nn.Module, calls: Mapping[str, Call], unusable: Mapping[str, str]
) -> tuple[list[LayerSpec], list[LeftAlone]]:
    layers, left_alone = [], []
    for name, module in model.named_modules():
        if name in unusable:
            left_alone.append(LeftAlone(name, unusable[name]))
        elif isinstance(module, LAYERS):
            layers.append(layer_spec(name, module, calls[name]))
        elif name in calls:
            reason = f"{type(module).__name__} layers are neither factorised nor quantised, {ONLY_PRUNED}"
            left_alone.append(LeftAlone(name, reason))
        elif not list(module.children()) and _has_matrix(module):
            left_alone.append(
                LeftAlone(name, f"{type(module).__name__} is not a convolution, linear or recurrent layer")
            )
    return layers, left_alone


def _others(model: nn.Module, calls: Mapping[str, Call], chosen: Sequence[str]) -> list[LayerSpec]:
    """The layers besides those of the `chosen` modules, one per call."""
    found, owned = list[LayerSpec](), set[int]()
    for name, call in calls.items():
        module = model.get_submodule(name)
        weights = [id(p) for p in module.parameters() if p.dim() > 1]
        for number, _ in enumerate(call.shapes if name not in chosen else ()):
            layer = layer_spec(name, module, call, number)
            stored = number == 0 and not owned.intersection(weights)
            found.append(replace(layer, low_rank=False, quantize=False, stored=stored))
        owned.update(weights)
    return found


def _unusable(call: Call, shared: bool, fixed: bool) -> str:
    if call.count == 0:
        return "it does not run in a forward pass"
    if fixed:
        return "what it reads is the same for all inputs of the model"
    if call.count > 1:
        return f"it runs {call.count} times in a forward pass"
    if not call.is_followed:
        return "it reads something else than one batch of tensors, given in order"
    return "it shares its weights with another layer" if shared else ""


def _split_stacks(model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Split recurrent layers of several levels into single ones, in place, each only where the model then computes the same."""
    stacks = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.RNNBase) and m.num_layers > 1 and not m.proj_size
    }
    for name, stack in stacks.items():
        try:
            with torch.no_grad():
                expected = tensors_of(model(*(tensor.clone() for tensor in example)))
                model.set_submodule(name, split(stack))
                found = tensors_of(model(*(tensor.clone() for tensor in example)))
            same = all(agree(a, b) for a, b in zip(expected, found, strict=True))
        except Exception:  # the model's code may need the layer itself; that it fails is the answer
            same = False
        if not same:
            model.set_submodule(name, stack)


def _replaceable(
    model: nn.Module, example: tuple[Tensor, ...], layers: Sequence[LayerSpec]
) -> tuple[list[LayerSpec], list[LeftAlone]]:
    """The layers, those without a choice of rank and bits whose place no other module can take."""
    read = read_directly(model, example, [layer.name for layer in layers])
    marked = [replace(one, low_rank=False, quantize=False) if one.name in read else one for one in layers]
    reason = "no rank and bits: the model's code reads the layer itself, not only its output"
    return marked, [LeftAlone(layer.name, reason) for layer in layers if layer.name in read]


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _candidates(heads: Sequence[ChannelGroup], channels: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups of heads, and those of channels that share no side of a layer with them."""
    taken = {(member.module, member.side) for group in heads for member in group.members}
    return [*heads, *(g for g in channels if not any((m.module, m.side) in taken for m in g.members))]
