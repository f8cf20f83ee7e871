"""Per-layer policies of other tools, read as policies of the layers and channel groups that a model has here.

| reader | what it reads |
|---|---|
| `from_torch_pruning` | Torch-Pruning's `pruning_ratio_dict`, by name of a layer or block: the share of output channels taken away |
| `from_nni` | NNI's `config_list`, of pruning and of quantisation, versions 2 and 3 (`foreign_nni.py`) |
| `from_bits` | HAQ's list of [weight, activation] bits (-1 is float), HAWQ's `bit_config` by its own or by the model's names |
| `from_channels` | AMC's `--channels` and `--ratios`: input channels of each layer that is not depthwise, as counts or as shares kept |

What names no layer of the model, or a layer that cannot be compressed so, is passed over: a starting point need not be complete.
Checked against the tools' own code: VainF/Torch-Pruning 1.6 (`base_pruner.py`), mit-han-lab/haq (`linear_quantize_env.py`), Zhen-Dong/HAWQ
(`bit_config.py`, `q_resnet.py`), mit-han-lab/amc (`channel_pruning_env.py`, `amc_search.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from automc.errors import InputError
from automc.foreign_nni import FLOAT_BITS, read_config_list
from automc.graph import ChannelGroup, LayerGraph
from automc.policy import Policy, Prune, Quantize, Spec

__all__ = ["from_bits", "from_channels", "from_nni", "from_torch_pruning", "read_foreign"]

_HAWQ_WEIGHTS = re.compile(r"(?:.+\.)?quant_(?:init_block_convbn|init_convbn|convbn\d*|identity_convbn|output)")
_HAWQ_ACTIVATIONS = re.compile(r"(?:.+\.)?quant_(?:input|act\d*|act_output)")
_KEYS = "pruning_ratio_dict, config_list, bits, channels, choices"


def read_foreign(data: Any, graph: LayerGraph) -> Policy:
    """The policy in the contents of a JSON or YAML file: {"pruning_ratio_dict" | "config_list" | "bits" | "channels": ...}, NNI's
    bare list, or a policy of automc itself.

    Raises:
        InputError: it is none of these, or its values are of the wrong kind, or nothing in it fits the model.
    """
    if isinstance(data, Sequence) and not isinstance(data, str) and data and all(isinstance(e, Mapping) for e in data):
        if all("digest" in entry for entry in data):
            raise InputError(
                "The file is the front of a run, which names policies and does not hold them.",
                remedy="Give the run, by its name or its folder.",
            )
        data = {"config_list": data}
    if not isinstance(data, Mapping):
        raise InputError("The file holds no policy that is known here.", remedy=f"Name its contents: one of {_KEYS}.")
    if "choices" in data:
        return Policy.from_json(data)
    readers: dict[str, Callable[[Any, LayerGraph], Policy]] = {
        "pruning_ratio_dict": from_torch_pruning,
        "ch_sparsity_dict": from_torch_pruning,
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
    """Name of a layer, or of a block for all layers in it -> share of the output channels that is taken away; later names override.

    Of a coupled group the mean over the layers that are named.
    """
    kept: dict[str, float] = {}
    for name, ratio in ratios.items():
        inside = [one for one in (*graph.group, *graph.layer) if one.startswith(f"{name}.")]
        kept.update(dict.fromkeys([name, *inside], 1.0 - _share(ratio)))
    return _pruned(kept, graph)


def from_nni(config: Sequence[Mapping[str, Any]], graph: LayerGraph) -> Policy:
    """NNI's list of entries; see `read_config_list`.

    Raises:
        ValueError: an entry selects no layers, or holds what is no share or no number of bits.
    """
    sparsity, bits = read_config_list(config, graph)
    kept = {name: 1.0 - _share(value) for name, value in sparsity.items()}
    return Policy.of([*_pruned(kept, graph), *_quantised({n: _pair(value) for n, value in bits.items()}, graph)])


def from_bits(bits: Mapping[str, Any] | Sequence[Any], graph: LayerGraph) -> Policy:
    """Bits of each layer, by name or in the order of the layers: [weight bits, activation bits], or a whole number for both; -1 is float.

    HAQ's lists of whole numbers, of its k-means quantisation, are of weights alone: write [6, -1] for 6.

    Raises:
        ValueError: a list that is not as long as the model has layers, or as many as can be quantised.
    """
    if isinstance(bits, Mapping) and any(_HAWQ_WEIGHTS.fullmatch(name) for name in bits):
        bits = _hawq_pairs(bits)
    if not isinstance(bits, Mapping):
        bits = dict(zip(_in_order(len(bits), graph), bits, strict=True))
    return Policy.of(_quantised({name: _pair(value) for name, value in bits.items()}, graph))


def _hawq_pairs(config: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """(weight, activation) bits of HAWQ's `bit_config` in its order, which is that of the layers; a layer reads the activation before it.

    The shortcut of a residual unit reads what the first convolution of the unit reads.
    """
    bits = {name: value[0] if isinstance(value, (list, tuple)) else value for name, value in config.items()}
    pairs = []
    before: Any = FLOAT_BITS
    for name, value in bits.items():
        if _HAWQ_ACTIVATIONS.fullmatch(name):
            before = value
        elif _HAWQ_WEIGHTS.fullmatch(name):
            unit = name.removesuffix("quant_identity_convbn")
            pairs.append((value, before if unit == name else bits.get(f"{unit}quant_act", before)))
    return pairs


def from_channels(channels: Mapping[str, Any] | Sequence[Any], graph: LayerGraph) -> Policy:
    """By name or in the order of the layers that are not depthwise: input channels, as counts or (none above 1) as shares kept.

    Raises:
        ValueError: a list of another length than the model has such layers, with or without the linear ones.
    """
    if not isinstance(channels, Mapping):
        channels = dict(zip(_channel_names(len(channels), graph), channels, strict=True))
    values = {name: _number(value) for name, value in channels.items()}
    if any(value > 1.0 for value in values.values()):
        values = {n: min(1.0, v / graph.layer[n].in_channels) for n, v in values.items() if n in graph.layer}
    return _pruned({name: _share(value) for name, value in values.items()}, graph, side="in")


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
        if name in graph.layer and graph.layer[name].quantize and weight < FLOAT_BITS:
            yield name, Quantize(weight, activation)


def _in_order(count: int, graph: LayerGraph) -> list[str]:
    """The names of all layers or of those that can be quantised, whichever there are `count` of."""
    options = [[layer.name for layer in graph.layers], [layer.name for layer in graph.layers if layer.quantize]]
    return _of_length(count, options, "layers")


def _channel_names(count: int, graph: LayerGraph) -> list[str]:
    options = [
        [layer.name for layer in graph.layers if layer.kind != "depthwise"],
        [layer.name for layer in graph.layers if layer.kind not in ("depthwise", "linear")],
    ]
    return _of_length(count, options, "layers that are not depthwise")


def _of_length(count: int, options: Sequence[list[str]], what: str) -> list[str]:
    for option in options:
        if len(option) == count:
            return option
    raise ValueError(f"the list has {count} entries and the model {len(options[0])} {what}; name them instead")


def _pair(value: Any) -> tuple[int, int]:
    pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
    numbers = [_number(one) for one in pair]
    if not all(number == -1 or (number.is_integer() and 1 <= number <= FLOAT_BITS) for number in numbers):
        raise ValueError(f"{value} is not a number of bits")
    weight, activation = (FLOAT_BITS if number == -1 else int(number) for number in numbers)
    return weight, activation


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    return float(value)


def _share(value: Any) -> float:
    share = _number(value)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{value} is not a share between 0 and 1")
    return share
