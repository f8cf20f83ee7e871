"""How tensors go from layer to layer in a model: its calls of PyTorch functions outside of layers, in order.

Layers are opaque, so that the calls are the same whatever a policy makes of them. A call is known by the name of its function and
by how many of that name went before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Flow", "Kind", "Step", "Watch", "layer_names", "read_flow"]

Kind = Literal["layer", "keep", "mix", "activation", "other"]
"""What a step does to 8-bit integers: layers and "mix" put out others, "keep" only moves or picks them, an "activation" cuts them off
and is fused with what it reads, and "other" has no integer kernel."""

_KEEP = frozenset(
    (
        "__getitem__", "chunk", "clone", "contiguous", "dropout", "flatten", "max_pool2d", "narrow", "permute", "reshape", "split",
        "squeeze", "transpose", "unsqueeze", "view",
    )
)  # fmt: skip
_MIX = frozenset(
    (
        "__add__",
        "__iadd__",
        "__radd__",
        "adaptive_avg_pool2d",
        "add",
        "add_",
        "avg_pool2d",
        "cat",
        "concat",
        "concatenate",
    )
)
_ACTIVATIONS = frozenset(("clamp", "clamp_", "clip", "clip_", "hardtanh", "hardtanh_", "relu", "relu6", "relu_"))


@dataclass(frozen=True)
class Step:
    """One call. Tensors by number; those that depend on no input of the model are left out.

    Attributes:
        key: the layer's name, or the function's with its number.
    """

    key: str
    kind: Kind
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True)
class Flow:
    """The steps of one forward pass in order."""

    layers: tuple[str, ...]
    steps: tuple[Step, ...]


def layer_names(model: nn.Module) -> tuple[str, ...]:
    """The convolutions, linear and recurrent layers of a model."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
    return tuple(name for name, module in model.named_modules() if isinstance(module, kinds))


class Watch(TorchFunctionMode):
    """While it is active, `seen` is told every layer and every call of a function outside of layers, and may change what it puts out.

    Args:
        layers: names of modules of `model` inside which nothing is told.
        seen: (key, kind, inputs, result) -> result; calls without a floating-point tensor among their results are not told.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], seen: Callable[[str, Kind, Sequence[Tensor], Any], Any]
    ) -> None:
        super().__init__()
        self._seen, self._inside, self._counts = seen, 0, Counter[str]()
        self._hooks: list[Any] = []
        for name in layers:
            module = model.get_submodule(name)
            self._hooks.append(module.register_forward_pre_hook(lambda *_: self._enter(), prepend=True))
            left = lambda _, given, result, name=name: self._leave(name, given, result)  # noqa: E731
            self._hooks.append(module.register_forward_hook(left))

    def start(self) -> None:
        """Begin to tell."""
        self.__enter__()

    def stop(self) -> None:
        """Tell no more, and leave the model as it was."""
        self.__exit__(None, None, None)
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Tell within a block."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def _enter(self) -> None:
        self._inside += 1

    def _leave(self, name: str, given: Sequence[Any], result: Any) -> Any:
        told = self._seen(name, "layer", _floats(given), result) if self._inside == 1 else result
        self._inside -= 1
        return told

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function and tell."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._inside or not _floats(result):
            return result
        name = getattr(func, "__name__", "")
        key = f"{name}:{self._counts[name]}"
        self._counts[name] += 1
        return self._seen(key, _kind(name, args, kwargs), _floats((args, tuple(kwargs.values()))), result)


def read_flow(model: nn.Module, inputs: Sequence[Tensor]) -> Flow:
    """The flow of one forward pass of `model`."""
    numbers: dict[int, int] = {}
    alive: list[Tensor] = []  # an identity may come again once its tensor is gone
    steps: list[Step] = []

    def number(tensor: Tensor) -> int:
        alive.append(tensor)
        numbers[id(tensor)] = len(alive)
        return len(alive)

    def seen(key: str, kind: Kind, given: Sequence[Tensor], result: Any) -> Any:
        if kind == "layer":
            for tensor in given:
                if id(tensor) not in numbers:
                    number(tensor)
        reads = tuple(dict.fromkeys(numbers[id(tensor)] for tensor in given if id(tensor) in numbers))
        if reads:
            steps.append(Step(key, kind, reads, tuple(number(tensor) for tensor in _floats(result))))
        return result

    layers = layer_names(model)
    for tensor in inputs:
        number(tensor)
    with torch.no_grad(), Watch(model, layers, seen).watching():
        model(*inputs)
    return Flow(layers, tuple(steps))


def _kind(name: str, args: Sequence[Any], kwargs: Any) -> Kind:
    if name in _ACTIVATIONS:
        return "activation"
    if name == "pad":
        mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
        value = kwargs.get("value", args[3] if len(args) > 3 else None)
        return "keep" if mode == "constant" and not value else "other"
    if name == "interpolate":
        return "keep" if kwargs.get("mode", args[3] if len(args) > 3 else "nearest") == "nearest" else "mix"
    if name in _KEEP:
        return "keep"
    return "mix" if name in _MIX else "other"


def _floats(value: Any) -> list[Tensor]:
    """The floating-point tensors in tuples and lists, scalars left out."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and value.dim() > 0 else []
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _floats(part)]
    return []
