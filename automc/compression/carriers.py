"""What stands between integer layers, rounded as the runtime does that runs it on integers too.

An integer layer reads and writes 8-bit codes, and operators that have an integer kernel and read nothing but codes (additions,
concatenations, pools, reshapes) write codes as well. Each of those tensors is rounded here, in PyTorch, and so trained through and
exported: the ONNX file says what this module does. Tensors that differ by moving values alone share one grid, as do the
layers that read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automc.compression.flow import Flow, Kind, Watch
from automc.compression.integers import Chain, integer_chain
from automc.compression.quantize import Quantized, sample
from automc.compression.ranges import best_range
from automc.compression.steps import on_grid
from automc.compression.storage import runs_on_integers

__all__ = ["Carriers", "attach", "carriers_of", "detach", "dense_samples", "set_between", "set_ranges"]

_LAST = 255

Seen = Callable[[str, Kind, Sequence[Tensor], Any], Any]


class Carriers:
    """Rounds what one model's steps put out, as hooks of the model.

    Attributes:
        chain: what is rounded; nothing until `plan` has been called.
        grids: step -> (scale, zero) of those with a grid of their own.
        observe: takes the place of rounding while it is set.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.chain = Chain()
        self.grids: dict[str, tuple[float, int]] = {}
        self.observe: Seen | None = None
        self._watches: list[Watch] = []

    @property
    def own(self) -> list[str]:
        """The steps with a grid of their own."""
        return sorted(set(self.chain.like.values()))

    def plan(self, model: nn.Module) -> None:
        """Decide what is rounded, by which layers of `model` are integer."""
        layers = {name: model.get_submodule(name) for name in self.flow.layers}
        reading = {name for name, module in layers.items() if _is_integer(_ends(module)[0])}
        writing = {name for name, module in layers.items() if _is_integer(_ends(module)[1])}
        products = {name for name in writing if isinstance(_ends(layers[name])[1].inner, nn.Linear)}
        self.chain = integer_chain(self.flow, reading, writing, products)

    def share(self, model: nn.Module) -> None:
        """Give layers that read the same tensor the grid of the first of them, and round biases, which integer kernels add to products."""
        for name, first in self.chain.shared.items():
            layer, source = (_ends(model.get_submodule(each))[0] for each in (name, first))
            layer.scale, layer.zero = source.scale.clone(), source.zero.clone()
        for module in model.modules():
            if isinstance(module, Quantized) and _is_integer(module):
                module.round_bias()

    def set_grids(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Give each step of `own` the grid that covers its range, which contains zero."""
        for key in self.own:
            low, high = ranges[key]
            scale = (high - low) / _LAST
            self.grids[key] = (scale, round(-low / scale))

    def fixed_grids(self, model: nn.Module) -> dict[str, tuple[float, int]]:
        """Step -> (scale, zero) of all that is rounded in `model` as it is now."""
        keys = {*self.chain.like, *self.chain.read_by}
        grids = {key: grid for key in keys if (grid := self._grid(model, key)) is not None}
        return {key: (float(scale), int(zero)) for key, (scale, zero) in grids.items()}

    def fix(self, model: nn.Module) -> None:
        """Write down the grids of `model`, whose layers a copy may lack."""
        self.grids = self.fixed_grids(model)
        self.chain = replace(self.chain, like={key: key for key in self.grids}, read_by={})

    def enter(self, model: nn.Module, *_: Any) -> None:
        """The model begins to run."""

        def round_result(key: str, kind: Kind, given: Sequence[Tensor], result: Any) -> Any:
            grid = self._grid(model, key)
            return result if grid is None else _each(result, lambda tensor: on_grid(tensor, *grid, 0, _LAST))

        if self.observe is not None or self.chain.like or self.chain.read_by:
            watch = Watch(model, self.flow.layers, self.observe or round_result)
            self._watches.append(watch)
            watch.start()

    def leave(self, *_: Any) -> None:
        """The model has run, or has failed."""
        if self._watches:
            self._watches.pop().stop()

    def _grid(self, model: nn.Module, key: str) -> tuple[Any, Any] | None:
        if key in self.chain.like:
            return self.grids.get(self.chain.like[key])
        if key not in self.chain.read_by:
            return None
        layer = _ends(model.get_submodule(self.chain.read_by[key]))[0]
        return (layer.scale, layer.zero) if isinstance(layer, Quantized) and layer.rounds_input else None


def _each(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, (tuple, list)):
        return type(result)([_each(part, change) for part in result])
    return change(result)


def _ends(module: nn.Module) -> tuple[Any, Any]:
    """What reads the input of a layer and what writes its output: itself, or its first and last factor; under a norm that trains, too."""
    parts = [part for part in module.modules() if not isinstance(part, nn.Sequential)]
    held = {id(part.inner) for part in parts if isinstance(part, Quantized)}
    parts = [part for part in parts if id(part) not in held and not isinstance(part, nn.BatchNorm2d)]
    return parts[0], parts[-1]


def _is_integer(module: nn.Module) -> bool:
    return isinstance(module, Quantized) and runs_on_integers(module.spec)


def attach(model: nn.Module, carriers: Carriers) -> None:
    """Let `carriers` round while `model` runs, in place; copies of the model get copies of it."""
    model.register_forward_pre_hook(carriers.enter)
    model.register_forward_hook(carriers.leave, always_call=True)


def detach(model: nn.Module) -> None:
    """Undo `attach`, in place."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), Carriers):
                del hooks[key]
                model._forward_hooks_always_called.pop(key, None)


def carriers_of(model: nn.Module) -> Carriers | None:
    """What `attach` gave to a model."""
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Carriers)), None)


def set_ranges(model: nn.Module, batches: Iterable[Sequence[Tensor]], *, only_unset: bool = False) -> None:
    """Set the input range of every rounded layer, and of what stands between them, in place.

    From what they see on `batches` in floating point, weights rounded.

    Args:
        only_unset: leave the layers alone that have a range already, and all that stands between layers.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Quantized) and module.activation_bits < 32 and not (only_unset and module.rounds_input)
    }
    if not layers:
        return
    carriers = None if only_unset else carriers_of(model)
    if carriers is not None:
        carriers.plan(model)
    for layer in layers.values():
        layer.rounds_input = False
    seen, between = _observed(model, layers, carriers, batches)
    for name, layer in layers.items():
        layer.set_range(*best_range(seen[name], layer.activation_bits))
    if carriers is not None:
        carriers.share(model)
        carriers.set_grids({key: best_range(values) for key, values in between.items()})


def set_between(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """As `set_ranges`, but the layers keep the grids of their inputs, as after those were learned."""
    carriers = carriers_of(model)
    if carriers is not None:
        carriers.share(model)
        _, between = _observed(model, {}, carriers, [inputs])
        carriers.set_grids({key: best_range(values) for key, values in between.items()})


Samples = dict[str, NDArray[np.float32]]


def _observed(
    model: nn.Module,
    layers: Mapping[str, Quantized],
    carriers: Carriers | None,
    batches: Iterable[Sequence[Tensor]],
) -> tuple[Samples, Samples]:
    """Samples of what `layers` read, and of what the steps put out that have a grid of their own."""
    seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in layers}
    recorder = _Recorder(carriers.own if carriers is not None else ())
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(sample(inputs[0])))
        for name, layer in layers.items()
    ]
    if carriers is not None:
        carriers.observe = recorder
    try:
        with torch.no_grad():
            for inputs in batches:
                model(*inputs)
    finally:
        if carriers is not None:
            carriers.observe = None
        for hook in hooks:
            hook.remove()
    return {name: np.concatenate(parts) for name, parts in seen.items()}, recorder.samples


def dense_samples(model: nn.Module, flow: Flow, inputs: Sequence[Tensor]) -> Samples:
    """Samples of what every step that may be rounded puts out in `model`, which has no carriers."""
    recorder = _Recorder({step.key for step in flow.steps})
    watch = Watch(model, flow.layers, recorder)
    with torch.no_grad(), watch.watching():
        model(*inputs)
    return recorder.samples


class _Recorder:
    """Keeps samples of what some steps put out."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._seen: dict[str, list[NDArray[np.float32]]] = {key: [] for key in keys}

    def __call__(self, key: str, kind: Kind, given: Sequence[Tensor], result: Any) -> Any:
        if key in self._seen:
            parts = result if isinstance(result, (tuple, list)) else [result]
            self._seen[key] += [sample(part) for part in parts if isinstance(part, Tensor)]
        return result

    @property
    def samples(self) -> Samples:
        """Step -> values."""
        return {key: np.concatenate(parts) for key, parts in self._seen.items() if parts}
