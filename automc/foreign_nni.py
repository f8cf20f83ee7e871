"""NNI's `config_list`, of version 2 (`sparsity_per_layer`, `quant_types`, `exclude`) and of version 3 (`sparse_ratio`, `target_settings`).

Keys and their meaning as in microsoft/nni, archived: `nni/compression/base/config.py` and `docs/source/compression/config_list.rst` of the last
version, `nni/compression/pytorch/compressor.py` and `docs/source/compression/compression_config_list.rst` of 2.9.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from automc.graph import LayerGraph

__all__ = ["FLOAT_BITS", "read_config_list"]

FLOAT_BITS = 32
_SPARSITY_KEYS = ("sparse_ratio", "sparsity_per_layer", "sparsity", "total_sparsity")
_BOUND_KEYS = ("max_sparse_ratio", "max_sparsity_per_layer")
_OUTPUT_CHANNELS = ("default", "out_channel")
_OP_TYPES = {
    "Conv2d": ("conv", "depthwise", "grouped"),
    "Conv1d": ("conv", "depthwise", "grouped"),
    "Linear": ("linear",),
}
_SELECTING = ("op_names", "op_names_re", "op_partial_names", "op_types")


def read_config_list(
    config: Sequence[Mapping[str, Any]], graph: LayerGraph
) -> tuple[dict[str, float], dict[str, tuple[Any, Any]]]:
    """Layer -> sparsity of its weights by output channels, and layer -> (weight, activation) bits as they are written.

    Where entries share a ratio among layers (`total_sparsity`, `global_group_id`) each takes that ratio: how a pruner shared it is
    not in the list. Of several entries for a layer the last counts, and `exclude` takes it out.

    Raises:
        ValueError: an entry selects no layers by name or type.
    """
    sparsity: dict[str, float] = {}
    bits: dict[str, tuple[Any, Any]] = {}
    for entry in config:
        share, found = _sparsity(entry), _bits(entry)
        for name in _selected(entry, graph):
            if entry.get("exclude"):
                sparsity.pop(name, None)
                bits.pop(name, None)
            if share is not None:
                sparsity[name] = share
            if found is not None:
                bits[name] = found
    return sparsity, bits


def _selected(entry: Mapping[str, Any], graph: LayerGraph) -> Iterator[str]:
    """The names of (op_names or op_names_re or op_partial_names) and op_types, less those of exclude_op_*."""
    if not any(entry.get(key) for key in _SELECTING):
        raise ValueError(f"an entry of NNI's list selects no layers: it has none of {', '.join(_SELECTING)}")
    for layer in graph.layers:
        named = not any(entry.get(key) for key in _SELECTING[:-1]) or _is_named(entry, layer.name)
        typed = not entry.get("op_types") or _is_typed(entry["op_types"], layer.kind)
        out = _is_named(entry, layer.name, "exclude_") or _is_typed(entry.get("exclude_op_types") or (), layer.kind)
        if named and typed and not out:
            yield layer.name


def _is_named(entry: Mapping[str, Any], name: str, prefix: str = "") -> bool:
    patterns = entry.get(f"{prefix}op_names_re") or ()
    parts = entry.get(f"{prefix}op_partial_names") or ()
    named = name in (entry.get(f"{prefix}op_names") or ())
    return named or any(re.match(p, name) for p in patterns) or any(part in name for part in parts)


def _is_typed(types: Sequence[str], kind: str) -> bool:
    """Version 2 has the type "default" for everything with weights."""
    return "default" in types or any(kind in _OP_TYPES.get(one, ()) for one in types)


def _sparsity(entry: Mapping[str, Any]) -> float | None:
    """The sparsity of the weight; None where an entry sets none, or zeroes something else than output channels."""
    setting = {**entry, **_target_settings(entry).get("weight", {})}
    share = next((setting[key] for key in _SPARSITY_KEYS if setting.get(key) is not None), None)
    targeted = "weight" in (entry.get("target_names") or ["weight"])
    if share is None or not targeted or not _is_by_outputs(setting.get("granularity", "default")):
        return None
    return min([float(share), *(float(setting[key]) for key in _BOUND_KEYS if setting.get(key) is not None)])


def _is_by_outputs(granularity: Any) -> bool:
    """Whether whole output channels go; as a list of block sizes that is [1, -1, ...]."""
    if isinstance(granularity, str):
        return granularity in _OUTPUT_CHANNELS
    return bool(granularity) and granularity[0] == 1 and all(size == -1 for size in granularity[1:])


def _bits(entry: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """(weight, activation) bits as they are written, None where an entry quantises nothing; of its activations those that a layer reads."""
    if "quant_bits" in entry:
        return _bits_of_version_2(entry["quant_bits"], entry.get("quant_types") or ("weight", "input"))
    settings = _target_settings(entry)
    shortcut = entry.get("quant_dtype")
    if shortcut is None and not any("quant_dtype" in setting for setting in settings.values()):
        return None
    targets = entry.get("target_names") or (list(settings) if shortcut is None else ["weight", "_input_"])
    return _width("weight", targets, settings, shortcut), _width("_input_", targets, settings, shortcut)


def _bits_of_version_2(bits: Any, types: str | Sequence[str]) -> tuple[Any, Any]:
    each = bits if isinstance(bits, Mapping) else dict.fromkeys(("weight", "input", "output"), bits)
    chosen = {kind: value for kind, value in each.items() if kind in types}
    return chosen.get("weight", FLOAT_BITS), chosen.get("input", FLOAT_BITS)


def _width(target: str, targets: Sequence[str], settings: Mapping[str, Any], shortcut: Any) -> int:
    """Bits of a target; `_input_` stands for the first of the inputs, `_input_0` or `_input_NAME`, as well."""
    name = next((one for one in targets if one == target or (target == "_input_" and one.startswith(target))), None)
    if name is None:
        return FLOAT_BITS
    dtype = {**settings.get(target, {}), **settings.get(name, {})}.get("quant_dtype", shortcut)
    return FLOAT_BITS if dtype is None else int(re.sub(r"\D", "", str(dtype)))


def _target_settings(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = entry.get("target_settings") or {}
    return settings
