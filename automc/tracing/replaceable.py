"""Which layers can be replaced: those of which the model's own code uses nothing but their output.

A forward that reads `self.layer.weight` or `self.layer.in_features` fails once another module stands there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from automc.compression.stacks import StandIn

__all__ = ["read_directly"]


class _Opaque(nn.Module):
    """A layer of which only the output can be had."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class _OpaqueRecurrent(StandIn):
    """A recurrent layer of which the output and the numbers can be had, as of those that take its place."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__(layer)
        self.inner = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def read_directly(model: nn.Module, example: tuple[Tensor, ...], layers: Iterable[str]) -> set[str]:
    """Those of the named layers whose attributes the model's code reads when it runs on `example`."""
    names = list(layers)
    if _runs(model, example, names):
        return set()
    return {name for name in names if not _runs(model, example, [name])}


def _runs(model: nn.Module, example: tuple[Tensor, ...], names: Iterable[str]) -> bool:
    hidden = copy.deepcopy(model)
    for name in names:
        layer = hidden.get_submodule(name)
        hidden.set_submodule(name, _OpaqueRecurrent(layer) if isinstance(layer, nn.RNNBase) else _Opaque(layer))
    try:
        with torch.no_grad():
            hidden(*example)
    except Exception:  # the model's code may do anything with what it reads; that it fails is the answer
        return False
    return True
