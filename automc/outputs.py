"""What a model returns: one tensor, or tuples, lists, dictionaries and dataclasses of tensors, flattened and rebuilt.

Runtimes and comparisons see a flat tuple of tensors; score functions see what the PyTorch model returned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from automc.errors import InputError

__all__ = ["Outputs", "flat_outputs", "logits_of", "tensors_of"]

_CONSTANTS = (type(None), bool, int, float, str)
_BUILT_IN = (tuple, list, dict)


@dataclass(frozen=True)
class Outputs:
    """The structure of what a model returns.

    Attributes:
        names: of the tensors, in order: "output" of a single tensor, else the keys on the way to each, joined by "_".
        leaves: everything that is no container, None in place of each tensor.
        slots: positions of the tensors among the leaves.
    """

    names: tuple[str, ...]
    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    slots: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> Outputs:
        """The structure of one output value.

        Raises:
            InputError: it holds no tensor, or something that is neither a tensor nor a plain constant.
        """
        leaves, spec = _flatten(value)
        slots = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        strange = next((leaf for leaf in leaves if not isinstance(leaf, (Tensor, *_CONSTANTS))), None)
        if strange is not None or not slots:
            what = f"a {type(strange).__name__}" if strange is not None else "no tensor"
            raise InputError(
                f"The model returns {what}{' among its outputs' if strange is not None and slots else ''}.",
                remedy="Wrap it in a module that returns tensors, in tuples, lists, dictionaries or dataclasses.",
            )
        paths = list(_paths(value, ()))
        known = paths if len(paths) == len(leaves) else [(str(i),) for i in range(len(leaves))]
        constants = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(_names([known[i] for i in slots]), spec, constants, slots)

    @property
    def is_plain(self) -> bool:
        """Whether the containers are Python's own, which any process can load."""
        return _is_plain(self.spec)

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        """The value with these tensors, in the order of `names`."""
        leaves = list(self.leaves)
        for slot, tensor in zip(self.slots, tensors, strict=True):
            leaves[slot] = tensor
        return pytree.tree_unflatten(leaves, self.spec)


def tensors_of(value: Any) -> tuple[Tensor, ...]:
    """The tensors of an output value, in the order of `Outputs.names`."""
    return (value,) if isinstance(value, Tensor) else tuple(x for x in _flatten(value)[0] if isinstance(x, Tensor))


def logits_of(value: Any) -> Tensor | None:
    """What a classifier's score is taken from: the only tensor, or the one called "logits"; None where neither is there."""
    tensors = tensors_of(value)
    if len(tensors) == 1:
        return tensors[0]
    found = value.get("logits") if isinstance(value, Mapping) else getattr(value, "logits", None)
    return found if isinstance(found, Tensor) else None


@contextmanager
def flat_outputs(model: nn.Module) -> Iterator[None]:
    """Let `model` return a tuple of its tensors (a single tensor as it is) within the block, for exporters."""

    def flatten(_: nn.Module, __: Any, outputs: Any) -> Any:
        return outputs if isinstance(outputs, Tensor) else tensors_of(outputs)

    hook = model.register_forward_hook(flatten)
    try:
        yield
    finally:
        hook.remove()


def _flatten(value: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """Leaves and structure; dataclasses become containers when they are first met."""
    while True:
        leaves, spec = pytree.tree_flatten(value)
        unknown = {type(leaf) for leaf in leaves if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)}
        if not unknown:
            return leaves, spec
        for kind in unknown:
            torch.export.register_dataclass(kind)


def _is_plain(spec: pytree.TreeSpec) -> bool:
    return spec.is_leaf() or (spec.type in _BUILT_IN and all(_is_plain(child) for child in _children(spec)))


def _children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    return spec.children() if callable(getattr(spec, "children", None)) else spec.children_specs


def _paths(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The keys on the way to each leaf, in pytree's order."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (tuple, list)):
        items = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        items = ((name, inner) for name, inner in fields if inner is not None)  # pytree leaves empty fields out
    else:
        yield path
        return
    for key, inner in items:
        yield from _paths(inner, (*path, str(key)))


def _names(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if len(paths) == 1:
        return ("output",)
    joined = ["_".join(path) for path in paths]
    clear = len(set(joined)) == len(joined)
    texts = joined if clear else [str(i) for i in range(len(paths))]
    return tuple(f"output{text}" if text[:1].isdigit() else text for text in texts)
