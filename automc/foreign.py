"""Per-layer policies of other tools, read as policies of the layers and channel groups that a model has here.

| reader | what it reads |
|---|---|
| `from_torch_pruning` | Torch-Pruning's `pruning_ratio_dict`, by module name: the share of output channels taken away |
| `from_nni` | NNI's `config_list`, of pruning (`sparsity`, `sparse_ratio`) and of quantisation (`quant_bits`, `quant_dtype`) |
| `from_bits` | bits per layer: HAQ's list of [weight, activation] bits, HAWQ's mapping or list |
| `from_channels` | AMC's lists: output channels of each convolution (whole numbers), or shares of input channels kept (0 to 1) |

What names no layer of the model, or a layer that cannot be compressed so, is passed over: a starting point need not be complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from automc.errors import InputError
from automc.graph import ChannelGroup, LayerGraph
from automc.policy import Policy, Prune, Quantize, Spec

__all__ = ["from_bits", "from_channels", "from_nni", "from_torch_pruning", "read_foreign"]

_SPARSITY_KEYS = ("sparsity", "sparse_ratio", "sparsity_per_layer", "op_sparsity", "total_sparsity")
_OP_TYPES = {
    "Conv2d": ("conv", "depthwise", "grouped"),
    "Conv1d": ("conv", "depthwise", "grouped"),
    "Linear": ("linear",),
}
_FLOAT_BITS = 32
_KEYS = "pruning_ratio_dict, config_list, bits, channels, choices"


def read_foreign(data: Any, graph: LayerGraph) -> Policy:
    """The policy in the contents of a JSON or YAML file: {"pruning_ratio_dict" | "config_list" | "bits" | "channels": ...}, NNI's
    bare list, or a policy of automc itself.

    Raises:
        InputError: it is none of these, or its values are of the wrong kind, or nothing in it fits the model.
    """
    if isinstance(data, Sequence) and not isinstance(data, str) and data and all(isinstance(e, Mapping) for e in data):
        data = {"config_list": data}
    if not isinstance(data, Mapping):
        raise InputError("The file holds no policy that is known here.", remedy=f"Name its contents: one of {_KEYS}.")
    if "choices" in data:
        return Policy.from_json(data)
    readers: dict[str, Callable[[Any, LayerGraph], Policy]] = {
        "pruning_ratio_dict": from_torch_pruning,
        "config_list": from_nni,
        "bits": from_bits,
        "channels": from_channels,
    }
    found = [key for key in readers if key in data]
    if not found:
        raise InputError("The file holds no policy that is known here.", remedy=f"Name its contents: one of {_KEYS}.")
    try:
        choices = {(t, s.knob): (t, s) for key in found for t, s in readers[key](data[key], graph)}
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise InputError(
            f"{' and '.join(found)} cannot be read: {error}.", remedy="Write it as the tool does."
        ) from error
    if not choices:
        raise InputError(
            f"{' and '.join(found)} names no layer of this model that can be compressed so.",
            remedy="`automc check` lists the layers.",
        )
    return Policy.of(choices.values())


def from_torch_pruning(ratios: Mapping[str, float], graph: LayerGraph) -> Policy:
    """Module name -> share of its output channels that is taken away; of a coupled group the mean over those named."""
    return _pruned({name: 1.0 - _share(ratio) for name, ratio in ratios.items()}, graph)


def from_nni(config: Sequence[Mapping[str, Any]], graph: LayerGraph) -> Policy:
    """Later entries override earlier ones, and `exclude` takes layers out, as in NNI."""
    kept: dict[str, float] = {}
    bits: dict[str, tuple[int, int]] = {}
    for entry in config:
        for name in _named(entry, graph):
            if entry.get("exclude"):
                kept.pop(name, None)
                bits.pop(name, None)
            if (share := next((entry[key] for key in _SPARSITY_KEYS if key in entry), None)) is not None:
                kept[name] = 1.0 - _share(share)
            if (found := _nni_bits(entry)) is not None:
                bits[name] = found
    return Policy.of([*_pruned(kept, graph), *_quantised(bits, graph)])


def from_bits(bits: Mapping[str, Any] | Sequence[Any], graph: LayerGraph) -> Policy:
    """Bits of each layer, by name or in the order of the layers: a whole number for both, or [weight bits, activation bits].

    Raises:
        ValueError: a list that is not as long as the model has layers, or as many as can be quantised.
    """
    if not isinstance(bits, Mapping):
        bits = dict(zip(_in_order(len(bits), graph), bits, strict=True))
    return Policy.of(_quantised({name: _pair(value) for name, value in bits.items()}, graph))


def from_channels(channels: Mapping[str, Any] | Sequence[Any], graph: LayerGraph) -> Policy:
    """By name or in the order of the convolutions: output channels (whole numbers above 1), or shares of the input channels.

    Raises:
        ValueError: a list of another length than the model has convolutions, layers, or channel groups.
    """
    if not isinstance(channels, Mapping):
        names = _channel_names(len(channels), graph)
        channels = dict(zip(names, channels, strict=True))
    counts = [value for value in channels.values() if float(value) > 1.0]
    if counts:
        outputs = {name: float(value) / _width(graph, name) for name, value in channels.items() if _width(graph, name)}
        return _pruned({name: min(share, 1.0) for name, share in outputs.items()}, graph)
    return _pruned({name: _share(value) for name, value in channels.items()}, graph, side="in")


def _pruned(kept: Mapping[str, float], graph: LayerGraph, side: str = "out") -> Policy:
    """Share of channels kept by module (or group) -> keep counts of the groups, the mean over their modules that are named."""
    choices: list[tuple[str, Spec]] = []
    for group in graph.groups:
        named = [kept[name] for name in _members(group, side) if name in kept]
        share = sum(named) / len(named) if named else 1.0
        if (keep := max(1, round(share * group.width))) < group.width:
            choices.append((group.name, Prune(keep)))
    return Policy.of(choices)


def _members(group: ChannelGroup, side: str) -> set[str]:
    return {group.name, *group.producers} if side == "out" else set(group.consumers)


def _quantised(bits: Mapping[str, tuple[int, int]], graph: LayerGraph) -> Iterator[tuple[str, Spec]]:
    for name, (weight, activation) in bits.items():
        if name in graph.layer and graph.layer[name].quantize and weight < _FLOAT_BITS:
            yield name, Quantize(weight, activation)


def _named(entry: Mapping[str, Any], graph: LayerGraph) -> list[str]:
    """The layers that an entry of NNI's list means; all of its types where it names none."""
    types = entry.get("op_types", [])
    kinds = {kind for one in types for kind in _OP_TYPES.get(one, ())}
    everything = not types or "default" in types
    layers = [layer.name for layer in graph.layers if everything or layer.kind in kinds]
    if names := entry.get("op_names"):
        return [name for name in layers if name in names]
    if patterns := entry.get("op_names_re"):
        return [name for name in layers if any(re.fullmatch(pattern, name) for pattern in patterns)]
    if parts := entry.get("op_partial_names"):
        return [name for name in layers if any(part in name for part in parts)]
    return layers


def _nni_bits(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(weight, activation) bits of an entry, None where it quantises nothing."""
    if (dtype := entry.get("quant_dtype")) is not None:
        width = int(re.sub(r"\D", "", str(dtype)))
        targets = entry.get("target_names", ["weight", "_input_"])
        return (width if "weight" in targets else _FLOAT_BITS), (width if "_input_" in targets else _FLOAT_BITS)
    if (bits := entry.get("quant_bits")) is None:
        return None
    if not isinstance(bits, Mapping):
        return _pair(bits)
    return int(bits.get("weight", _FLOAT_BITS)), int(bits.get("input", bits.get("output", _FLOAT_BITS)))


def _in_order(count: int, graph: LayerGraph) -> list[str]:
    """The names of all layers or of those that can be quantised, whichever there are `count` of."""
    options = [[layer.name for layer in graph.layers], [layer.name for layer in graph.layers if layer.quantize]]
    return _of_length(count, options, "layers")


def _channel_names(count: int, graph: LayerGraph) -> list[str]:
    options = [
        [layer.name for layer in graph.layers if layer.kind != "linear"],
        [layer.name for layer in graph.layers],
        [group.name for group in graph.groups],
    ]
    return _of_length(count, options, "convolutions")


def _of_length(count: int, options: Sequence[list[str]], what: str) -> list[str]:
    for option in options:
        if len(option) == count:
            return option
    raise ValueError(f"the list has {count} entries and the model {len(options[0])} {what}; name them instead")


def _width(graph: LayerGraph, name: str) -> int:
    if name in graph.group:
        return graph.group[name].width
    return graph.layer[name].out_channels if name in graph.layer else 0


def _pair(value: Any) -> tuple[int, int]:
    pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
    weight, activation = (int(one) for one in pair)
    if not (1 <= weight <= _FLOAT_BITS and 1 <= activation <= _FLOAT_BITS):
        raise ValueError(f"{value} is not a number of bits")
    return weight, activation


def _share(value: Any) -> float:
    share = float(value)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{value} is not a share between 0 and 1")
    return share
