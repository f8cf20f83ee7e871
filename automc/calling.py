"""How a model is called: with tensors in order, or, where its data names them, by keyword.

Everything in automc calls models with tensors in order. A model whose inputs have names is bound to them once, and then
takes both: `model(ids, mask)` in the order of the names, and `model(input_ids=ids, attention_mask=mask)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["bind_names", "input_names", "protect_inputs", "unbind"]


class _ByName:
    """A forward pre-hook that hands tensors in order to the keywords of the same rank."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = dict(zip(self.names, args, strict=False))
        return (), {**named, **kwargs}


class _Cloned:
    """A forward pre-hook that gives the model tensors of its own."""

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        return tuple(value.clone() if isinstance(value, Tensor) else value for value in args)


def bind_names(model: nn.Module, names: Sequence[str]) -> None:
    """Let `model` take its inputs in the order of `names`, in place; copies of it do so too. Without names, nothing changes."""
    if names:
        model.register_forward_pre_hook(_ByName(names), with_kwargs=True)


def protect_inputs(model: nn.Module) -> None:
    """Let `model`, which writes into its inputs, write into copies of them instead."""
    model.register_forward_pre_hook(_Cloned(), prepend=True)


def input_names(model: nn.Module) -> tuple[str, ...]:
    """The names that `model` is bound to, none where it is not."""
    return next((hook.names for hook in model._forward_pre_hooks.values() if isinstance(hook, _ByName)), ())


def unbind(model: nn.Module) -> None:
    """Let `model` take its arguments as its forward has them, in place."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, (_ByName, _Cloned)):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
