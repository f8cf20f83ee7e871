"""From a model and an example input to a LayerGraph, and to the folded model that every compression starts from.

Channels that must be pruned together are found with Torch-Pruning's dependency graph (Fang et al. 2023, "DepGraph",
arXiv 2301.12900), refined to single channels (`automc.channels`), and then verified (`automc.verification`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from automc.attention import replace_attention
from automc.calling import bind_names, protect_inputs
from automc.channels import couple
from automc.compression.stacks import input_parts, split
from automc.errors import AutomcError, InputError
from automc.folding import FoldedNorm, fold_batch_norms
from automc.graph import ONLY_PRUNED, ChannelGroup, Channels, LayerGraph, LayerKind, LayerSpec, LeftAlone, again
from automc.heads import find_heads
from automc.outputs import Outputs, tensors_of
from automc.replaceable import read_directly
from automc.unwrap import copy_of
from automc.verification import agree, verified

__all__ = ["Traced", "trace"]


_LAYERS = (nn.Conv2d, nn.Linear, nn.RNNBase)


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


@dataclass
class _Call:
    """How one layer was called in the example forward pass.

    Attributes:
        samples: how many the example held; 1 of a layer that reads the same whatever the example is.
        shapes: of each call what it read and what it wrote, where that can be told, samples moved to the front.
        read: of each such call a number that tells apart what it read.
    """

    samples: int
    is_followed: bool = True
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    count: int = 0

    def per_sample(self, number: int, *, channels_last: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of a call for one sample; windows or frames that were merged into the batch are among its positions."""
        here, there = (self._of_sample(shape, channels_last) for shape in self.shapes[number])
        return here, there

    def _of_sample(self, shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
        times, *rest = shape
        times = max(1, round(times / self.samples))
        if times == 1:
            return tuple(rest)
        return (times, *rest) if channels_last else (*rest[:-1], times * rest[-1])


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
    calls, outputs = _run_and_record(copied, example)
    fixed = _unchanging(copied, example, calls)
    coupling = couple(copied, example)
    reasons = {
        n: _unusable(call, n in shared, n in fixed) or _unusual(copied.get_submodule(n)) for n, call in calls.items()
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
        layers=tuple(_with_channels(layer, groups) for layer in layers),
        groups=tuple(groups),
        left_alone=(*packed, *left_alone, *whole, *coupled, *heads.left_alone, *refused),
        others=tuple(_with_channels(layer, groups) for layer in others),
    )
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return Traced(copied, graph, example, frozenset(norms), outputs, norms)


def _run_and_record(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[dict[str, _Call], Outputs]:
    """How each layer is called, and what the model returns. A model that writes into its inputs gets copies from now on."""
    layers = [name for name, module in model.named_modules() if isinstance(module, (*_LAYERS, _ConvNd))]
    calls = {name: _Call(len(example[0])) for name in layers}

    def record(call: _Call, module: nn.Module, inputs: Sequence[Any], named: Sequence[Any], output: Any) -> None:
        call.count += 1
        recurrent = isinstance(module, nn.RNNBase)
        call.is_followed = bool(inputs) and isinstance(inputs[0], Tensor) and (not recurrent or inputs[0].dim() == 3)
        read = next((one for one in (*inputs, *named) if isinstance(one, Tensor)), None)
        written = output[0] if isinstance(output, tuple) else output
        if read is None or not isinstance(written, Tensor) or (recurrent and read.dim() != 3):
            return
        batch = 1 if recurrent and not module.batch_first else 0
        here, there = (tuple(tensor.movedim(batch, 0).shape) for tensor in (read, written))
        call.shapes.append((here, there))
        call.read.append(_fingerprint(read))

    given = tuple(tensor.clone() for tensor in example)
    try:
        with torch.no_grad(), _watched(model, calls, record):
            output = model(*given)
    except AutomcError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
        raise InputError(
            f"The model does not run on an input of shape {shapes}: {error}",
            remedy="Check that the model and its inputs belong together.",
        ) from error
    if not all(torch.equal(now, before) for now, before in zip(given, example, strict=True)):
        protect_inputs(model)
    return calls, Outputs.of(output)


@contextmanager
def _watched(model: nn.Module, calls: Mapping[str, _Call], record: Callable[..., None]) -> Iterator[None]:
    """Have `record` told of each call of the layers: what is noted of it, the module, its inputs, those by keyword, and its output."""
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda m, i, k, o, call=call: record(call, m, i, [*k.values()], o), with_kwargs=True
        )
        for name, call in calls.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _fingerprint(tensor: Tensor) -> float:
    flat = tensor.detach().double().flatten()
    return float(flat @ torch.linspace(1.0, 2.0, len(flat), dtype=flat.dtype))


def _unchanging(model: nn.Module, example: tuple[Tensor, ...], calls: Mapping[str, _Call]) -> set[str]:
    """Layers that read the same whatever the model is given, such as embeddings of positions: an exported file holds what they write."""
    read = {name: _Call(call.samples) for name, call in calls.items()}

    def record(call: _Call, module: nn.Module, inputs: Sequence[Any], named: Sequence[Any], output: Any) -> None:
        tensor = next((one for one in (*inputs, *named) if isinstance(one, Tensor)), None)
        call.read.append(math.nan if tensor is None else _fingerprint(tensor))

    other = tuple(_changed(tensor) for tensor in example)
    if all(torch.equal(a, b) for a, b in zip(example, other, strict=True)):
        return set()
    try:
        twin = copy.deepcopy(model)  # a model's buffers may note what it saw
        with torch.no_grad(), _watched(twin, read, record):
            twin(*other)
    except Exception:  # the model's code may refuse other inputs; then nothing is known of them
        return set()
    fixed = {name for name, call in calls.items() if call.read and read[name].read == call.read}
    for name in fixed:
        calls[name].samples = 1
    return fixed


def _changed(tensor: Tensor) -> Tensor:
    """Nothing of what the tensor holds: NaN, which goes through all layers where noise may fade; whole numbers in reverse."""
    if tensor.is_floating_point():
        return torch.full_like(tensor, math.nan)
    return tensor.flip(tuple(range(tensor.dim())))


def _shared_parameters(model: nn.Module) -> set[str]:
    """Names of modules that share a parameter with another module."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _layers(
    model: nn.Module, calls: Mapping[str, _Call], unusable: Mapping[str, str]
) -> tuple[list[LayerSpec], list[LeftAlone]]:
    layers, left_alone = [], []
    for name, module in model.named_modules():
        if name in unusable:
            left_alone.append(LeftAlone(name, unusable[name]))
        elif isinstance(module, _LAYERS):
            layers.append(_layer(name, module, calls[name]))
        elif name in calls:
            reason = f"{type(module).__name__} layers are neither factorised nor quantised, {ONLY_PRUNED}"
            left_alone.append(LeftAlone(name, reason))
        elif not list(module.children()) and _has_matrix(module):
            left_alone.append(
                LeftAlone(name, f"{type(module).__name__} is not a convolution, linear or recurrent layer")
            )
    return layers, left_alone


def _others(model: nn.Module, calls: Mapping[str, _Call], chosen: Sequence[str]) -> list[LayerSpec]:
    """The layers besides those of the `chosen` modules, one per call."""
    found, owned = list[LayerSpec](), set[int]()
    for name, call in calls.items():
        module = model.get_submodule(name)
        weights = [id(p) for p in module.parameters() if p.dim() > 1]
        for number, _ in enumerate(call.shapes if name not in chosen else ()):
            layer = _layer(name, module, call, number)
            stored = number == 0 and not owned.intersection(weights)
            found.append(replace(layer, low_rank=False, quantize=False, stored=stored))
        owned.update(weights)
    return found


def _unusable(call: _Call, shared: bool, fixed: bool) -> str:
    if call.count == 0:
        return "it does not run in a forward pass"
    if fixed:
        return "what it reads is the same for all inputs of the model"
    if call.count > 1:
        return f"it runs {call.count} times in a forward pass"
    if not call.is_followed:
        return "it reads something else than one batch of tensors, given in order"
    return "it shares its weights with another layer" if shared else ""


def _unusual(module: nn.Module) -> str:
    if not isinstance(module, nn.RNNBase):
        return ""
    if module.num_layers > 1:
        return "its layers could not be split"
    return "its states are projected" if module.proj_size else ""


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


def _layer(name: str, module: Any, call: _Call, number: int = 0) -> LayerSpec:
    """A call of a module among `calls`."""
    if isinstance(module, nn.RNNBase):
        outputs = sum(len(getattr(module, part)) for part in input_parts(module))
        inputs = module.input_size + module.hidden_size
        if _unusual(module):  # of several levels: as if all were one
            weights = [p for n, p in module.named_parameters() if n.startswith("weight")]
            outputs = sum(len(p) for n, p in module.named_parameters() if n.startswith("weight_ih"))
            inputs = round(sum(p.numel() for p in weights) / outputs)
        kind, kernel, stride, groups = "recurrent", (1, 1), (1, 1), 1
    elif isinstance(module, nn.Linear):
        inputs, outputs = module.in_features, module.out_features
        kind, kernel, stride, groups = "linear", (1, 1), (1, 1), 1
    else:
        inputs, outputs, groups = module.in_channels, module.out_channels, module.groups
        kernel, stride = _sides(module.kernel_size), _sides(module.stride)
        kind = _kind(module)
    plain = groups == 1
    in_shape, out_shape = call.per_sample(number, channels_last=kind in ("linear", "recurrent"))
    return LayerSpec(
        name=name + again(number),
        kind=cast(LayerKind, kind),
        inputs=Channels(inputs),
        outputs=Channels(outputs),
        in_channels=inputs,
        out_channels=outputs,
        kernel=kernel,
        stride=stride,
        groups=groups,
        in_shape=in_shape,
        out_shape=out_shape,
        bias=module.bias is not None and module.bias is not False,
        low_rank=plain,
        quantize=True,
        call=number,
    )


def _kind(module: _ConvNd) -> str:
    if module.transposed:
        return "transposed"
    if not isinstance(module, nn.Conv2d):
        return "conv_nd"
    one, inputs, outputs = module.groups == 1, module.in_channels, module.out_channels
    return "conv" if one else "depthwise" if module.groups == inputs == outputs else "grouped"


def _sides(values: Sequence[int]) -> tuple[int, int]:
    """Height and width; of one dimension (1, width), of three (depth, height x width)."""
    return (int(values[0]) if len(values) > 1 else 1), math.prod(int(value) for value in values[1:] or values)


def _with_channels(layer: LayerSpec, groups: Sequence[ChannelGroup]) -> LayerSpec:
    """The layer with its channel counts expressed by the groups that pass through it."""
    inputs, outputs = Channels(layer.in_channels), Channels(layer.out_channels)
    for group in groups:
        for member in group.members:
            if member.module != layer.name:
                continue
            times = len(member.index[0])
            if member.side == "in":
                inputs = Channels(inputs.fixed - times * group.width, (*inputs.parts, (group.name, times)))
            else:
                outputs = Channels(outputs.fixed - times * group.width, (*outputs.parts, (group.name, times)))
    if layer.groups > 1:  # a group of the convolution goes with the channels it reads and those it writes
        inputs = _per_group(outputs, layer)
    return replace(layer, inputs=inputs, outputs=outputs)


def _per_group(outputs: Channels, layer: LayerSpec) -> Channels:
    """Input channels of a grouped convolution, of which whole groups stay, from its output channels."""
    reads, writes = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    parts = tuple((group, times * reads // writes) for group, times in outputs.parts)
    return Channels(outputs.fixed * reads // writes, parts)


def _candidates(heads: Sequence[ChannelGroup], channels: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups of heads, and those of channels that share no side of a layer with them."""
    taken = {(member.module, member.side) for group in heads for member in group.members}
    return [*heads, *(g for g in channels if not any((m.module, m.side) in taken for m in g.members))]
