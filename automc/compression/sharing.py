"""Copies of modules that share every tensor with the original: what a candidate of a search costs before it is scored."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["sharing_copy"]

_PLAIN = frozenset(
    (type(None), bool, int, float, str, torch.Size, torch.dtype, torch.device, FunctionType, BuiltinFunctionType, type)
)
"""Values that copies may share; `copy.deepcopy` shares them too."""
_CONTAINERS = frozenset((dict, OrderedDict, set, list))
_SHARED = frozenset(("_parameters", "_buffers"))
_PROTOCOL = ("__getstate__", "__reduce__", "__reduce_ex__")


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy with modules of its own that shares every parameter and buffer with `model`.

    The same as `copy.deepcopy` with the tensors in its memo, several times as fast: most attributes are plain.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return _copied(model, memo)


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if id(module) in memo:
        found: nn.Module = memo[id(module)]
        return found
    if _says_how(type(module)):
        return copy.deepcopy(module, memo)
    twin = module.__class__.__new__(module.__class__)
    memo[id(module)] = twin
    for name, value in module.__getstate__().items():
        twin.__dict__[name] = _value(name, value, memo)
    return twin


def _says_how(kind: type[nn.Module]) -> bool:
    """Whether a class decides itself how it is copied, as recurrent layers do."""
    own = any(getattr(kind, name) is not getattr(nn.Module, name) for name in _PROTOCOL)
    restored = kind.__setstate__ not in (nn.Module.__setstate__, _ConvNd.__setstate__)
    return own or restored or hasattr(kind, "__deepcopy__")


def _value(name: str, value: Any, memo: dict[int, Any]) -> Any:
    if _is_plain(value):
        return value
    if name in _SHARED or (type(value) in _CONTAINERS and not value):
        return value.copy()
    if name == "_modules":
        return {key: None if child is None else _copied(child, memo) for key, child in value.items()}
    return copy.deepcopy(value, memo)


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in _PLAIN or (kind is tuple and all(map(_is_plain, value)))
