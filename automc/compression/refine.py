"""Sequential reconstruction of a stitched model: each layer is solved again for what really reaches it.

The variants of the database are solved one by one for the inputs of the dense model. Stitched together, every layer reads
what the compressed layers before it put out. From the first layer to the last, weights and bias are solved anew so that the
*compressed* inputs give the *dense* outputs (He et al. 2017, "Channel pruning", arXiv 1707.06168, section 3.1; asymmetric as
in Zhang et al. 2015, arXiv 1505.06798), with a ridge towards the weights as they are. The ridge of each layer is the one
that serves inputs best which were not solved on: with few samples, plain least squares fits noise. What a layer may hold stays:
zeros of a sparse layer are zeros afterwards, and rounded weights are rounded again, compensated on the compressed inputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from automc.calibrate import MAX_FEATURES, columns_of
from automc.compression.quantize import Quantized
from automc.compression.rounding import round_weights
from automc.tracing.trace import Traced

__all__ = ["refine"]

_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Strengths of the pull towards the old weights, as shares of the mean variance of a feature."""
_COLUMNS_PER_FEATURE = 12
_MIN_COLUMNS = 8_000
_HELD_OUT = 4
"""Every fourth batch judges, the others solve."""


class _Reached(Exception):
    """The layer in question has been given its input; the rest of the forward pass is not needed."""


@dataclass
class _Moments:
    """Sums over columns x and targets y: counts, means and second moments."""

    count: int = 0
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    xy: Tensor | float = 0.0
    yy: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """`x` is (count, features), `y` (count, outputs)."""
        self.count += len(x)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.xx, self.xy, self.yy = self.xx + x.T @ x, self.xy + x.T @ y, self.yy + y.square().sum(0)

    def central(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(features,) and (outputs,) means, (features, features) and (features, outputs) covariances."""
        mean_x, mean_y = torch.as_tensor(self.x) / self.count, torch.as_tensor(self.y) / self.count
        xx = torch.as_tensor(self.xx) / self.count - torch.outer(mean_x, mean_x)
        return mean_x, mean_y, xx, torch.as_tensor(self.xy) / self.count - torch.outer(mean_x, mean_y)

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error of weight (outputs, features) and bias (outputs,) on these columns."""
        x, y = torch.as_tensor(self.x) / self.count, torch.as_tensor(self.y) / self.count
        xx, xy = torch.as_tensor(self.xx) / self.count, torch.as_tensor(self.xy) / self.count
        yy = torch.as_tensor(self.yy) / self.count
        fitted = ((weight @ xx) * weight).sum() + 2 * (bias * (weight @ x)).sum() + bias.square().sum()
        return float(fitted - 2 * (weight * xy.T).sum() - 2 * (bias * y).sum() + yy.sum())


@dataclass
class _Layer:
    """One layer of the compressed model, the output channels that it kept, and the dense outputs to come near to."""

    name: str
    outputs: Tensor
    is_sparse: bool
    positions: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)


def refine(
    model: nn.Module,
    traced: Traced,
    outputs: Mapping[str, Tensor],
    batches: Sequence[tuple[Tensor, ...]],
    sparse: Collection[str] = (),
) -> nn.Module:
    """A copy of a stitched `model` whose layers were solved again in the order of execution.

    Takes one pass of the dense model, and per layer a pass of the compressed model up to it.

    Args:
        outputs: layer -> the numbers of the dense output channels that its compressed form still has.
        batches: inputs, each a tuple of (batch, ...) tensors; two at least, since every fourth judges the others.
        sparse: layers whose zeros are to stay.
    """
    refined = copy.deepcopy(model)
    names = [name for name in _order(traced, batches[0]) if _part(refined, name) is not None]
    layers = [_Layer(name, outputs[name], name in sparse) for name in names]
    with torch.no_grad():
        _collect_targets(traced, layers, batches)
        for layer in layers:
            _solve(refined, layer, batches)
    return refined


def _part(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear | None:
    """What is solved for: the layer, or the last of its factors; None for grouped and very wide layers."""
    module = model.get_submodule(name)
    while isinstance(module, (nn.Sequential, Quantized)):
        module = module[-1] if isinstance(module, nn.Sequential) else module.inner
    if isinstance(module, nn.Linear):
        return module if module.in_features <= MAX_FEATURES else None
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return module if module.in_channels * math.prod(module.kernel_size) <= MAX_FEATURES else None
    return None


def _order(traced: Traced, inputs: tuple[Tensor, ...]) -> list[str]:
    """The layers in the order in which they run."""
    seen: list[str] = []
    hooks = [
        traced.model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.append(name))
        for name in traced.graph.layer
    ]
    try:
        with torch.no_grad():
            traced.model(*(tensor[:1] for tensor in inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _collect_targets(traced: Traced, layers: Iterable[_Layer], batches: Sequence[tuple[Tensor, ...]]) -> None:
    """One pass of the dense model: its outputs at some positions of each layer."""
    samples = sum(len(inputs[0]) for inputs in batches)
    generator = torch.Generator().manual_seed(0)

    def record(layer: _Layer, per_sample: int, output: Tensor) -> None:
        flat = _by_position(output)
        chosen = torch.randperm(flat.shape[1], generator=generator)[:per_sample]
        layer.positions.append(chosen)
        layer.targets.append(flat[:, chosen][:, :, layer.outputs].flatten(0, 1))

    hooks = []
    for layer in layers:
        spec = traced.graph.layer[layer.name]
        features = spec.in_channels * math.prod(spec.kernel)
        per_sample = math.ceil(max(_MIN_COLUMNS, _COLUMNS_PER_FEATURE * features) / samples)
        module = traced.model.get_submodule(layer.name)
        hooks.append(
            module.register_forward_hook(lambda _, i, o, layer=layer, count=per_sample: record(layer, count, o))
        )
    try:
        for inputs in batches:
            traced.model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _by_position(output: Tensor) -> Tensor:
    """(batch, positions, channels) of what a convolution or linear layer puts out."""
    return output.flatten(2).transpose(1, 2) if output.dim() == 4 else output.reshape(len(output), -1, output.shape[-1])


def _solve(model: nn.Module, layer: _Layer, batches: Sequence[tuple[Tensor, ...]]) -> None:
    part = _part(model, layer.name)
    assert part is not None
    fit, judge = _Moments(), _Moments()
    for number, columns in enumerate(_columns(model, layer, part, batches)):
        (judge if number % _HELD_OUT == _HELD_OUT - 1 else fit).add(columns, layer.targets[number])
    if judge.count == 0 or fit.count == 0:
        return
    old = part.weight.detach().flatten(1)
    bias = part.bias.detach() if part.bias is not None else torch.zeros(len(old))
    found = min(_solutions(fit, old, layer.is_sparse), key=lambda pair: judge.error(*pair))
    holder = _holder(model, layer.name, part)
    rounded = None
    if isinstance(holder, Quantized):
        rounded = round_weights(found[0], holder.spec, fit.central()[2])
        found = _centred(fit, rounded.values)
    if judge.error(*found) >= judge.error(old, bias):
        return
    if isinstance(holder, Quantized) and rounded is not None:
        holder.take(rounded)
    else:
        part.weight = nn.Parameter(found[0].reshape(part.weight.shape).contiguous(), requires_grad=False)
    part.bias = nn.Parameter(found[1], requires_grad=False)


def _solutions(fit: _Moments, old: Tensor, is_sparse: bool) -> list[tuple[Tensor, Tensor]]:
    """min over W of |W x + b - y|^2 + ridge |W - old|^2, for each ridge; of a sparse layer without what was zero."""
    _, _, xx, xy = fit.central()
    scale = float(xx.diagonal().mean()) + 1e-12
    values, vectors = torch.linalg.eigh(xx.double())
    right = xy.double() - xx.double() @ old.double().T  # what the old weights leave over
    found = []
    for ridge in _RIDGES:
        change = vectors @ ((vectors.T @ right) / (values.clamp_min(0.0) + ridge * scale)[:, None])
        weight = (old.double() + change.T).float()
        found.append(_centred(fit, weight * (old != 0) if is_sparse else weight))
    return found


def _centred(fit: _Moments, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight with the bias that keeps the mean output."""
    mean_x, mean_y, _, _ = fit.central()
    return weight, mean_y - weight @ mean_x


def _columns(
    model: nn.Module, layer: _Layer, part: nn.Module, batches: Sequence[tuple[Tensor, ...]]
) -> Iterable[Tensor]:
    """(columns, features) that the compressed layer multiplies its weights with, batch by batch, at the targets' positions."""
    holder = _holder(model, layer.name, part)
    found: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0])
        raise _Reached

    hook = holder.register_forward_pre_hook(stop)
    try:
        for inputs, positions in zip(batches, layer.positions, strict=True):
            try:
                model(*inputs)
            except _Reached:
                columns = columns_of(part, found.pop(), positions)
                yield columns.flatten(0, 1)
    finally:
        hook.remove()


def _holder(model: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """The module that is called with what `part` reads: itself, or the rounding around it."""
    for module in model.get_submodule(name).modules():
        if isinstance(module, Quantized) and module.inner is part:
            return module
    return part
