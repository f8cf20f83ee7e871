"""From a policy to a compressed model: prune, then factorise, then quantise.

The expensive parts are done once: one elimination order per channel group, and per layer the weights for each kept set and
the factors for each rank, remembered as they are first needed. A policy is then stitched from them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from automc.calibrate import LayerStats
from automc.compression.lowrank import factorise, stats_covariance
from automc.compression.norms import recalibrate
from automc.compression.obs import Consumer, elimination_order, refit
from automc.compression.prune import dropped, remove_channels
from automc.compression.quantize import Quantized, set_ranges
from automc.errors import InputError
from automc.graph import ChannelGroup
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.trace import Traced

__all__ = ["Stitcher"]

Indices = tuple[int, ...]

_CACHE = 512
_INT8 = Quantize(8, 8)
_CHECK = "`automc check` lists what can be compressed."


class Stitcher:
    """Applies policies to one traced and calibrated model.

    Args:
        range_batch: inputs from which the activation ranges of integer layers are set, in each candidate anew.
        reduce_range: integer weights use 7 bits, for processors whose 8-bit kernels saturate.
        closure: the layers that the runtime runs on 8-bit integers when those given do; they are rounded as well.
    """

    def __init__(
        self,
        traced: Traced,
        stats: Mapping[str, LayerStats],
        range_batch: Sequence[Tensor],
        *,
        reduce_range: bool = False,
        closure: Callable[[frozenset[str]], frozenset[str]] = lambda layers: layers,
    ) -> None:
        self.traced = traced
        self.stats = stats
        self.range_batch = tuple(range_batch)
        self.reduce_range = reduce_range
        self.closure = closure
        self._orders: dict[str, tuple[list[int], list[float]]] = {}
        self._weights = lru_cache(maxsize=_CACHE)(self._refit)
        self._factors = lru_cache(maxsize=_CACHE)(self._factorise)

    def order(self, group: ChannelGroup) -> list[int]:
        """The channels of a group from the first to be removed to the last."""
        return self._sweep(group)[0]

    def prune_error(self, group: ChannelGroup, keep: int) -> float:
        """Relative squared output error, summed over the group's consumers, of keeping `keep` channels."""
        errors = self._sweep(group)[1]
        gone = group.width - keep
        return errors[gone - 1] if gone > 0 else 0.0

    def apply(self, policy: Policy) -> nn.Module:
        """The compressed model of a policy, in eval mode, with floating-point tensors.

        Raises:
            InputError: the policy names a target the model does not have, or keeps more channels than there are.
        """
        kept = self._kept(policy)
        model = copy.deepcopy(self.traced.model)
        with torch.no_grad():
            self._prune(model, kept)
            for name, spec in policy:
                if isinstance(spec, LowRank):
                    self._replace_by_factors(model, name, spec, kept)
            if any(not isinstance(spec, Quantize) for _, spec in policy):
                recalibrate(model, self.range_batch)
            for name, spec in self.integer_layers(policy).items():
                self._quantize(model, name, spec)
            set_ranges(model, [self.range_batch])
        return model

    def integer_layers(self, policy: Policy) -> dict[str, Quantize]:
        """The layers that run rounded: those that the policy names, and those that the runtime adds to them."""
        named = {name: spec for name, spec in policy if isinstance(spec, Quantize)}
        eight = frozenset(name for name, spec in named.items() if spec == _INT8)
        added = self.closure(eight) - named.keys() if eight else frozenset()
        return {**named, **{name: _INT8 for name in self.traced.graph.layer if name in added}}

    def _kept(self, policy: Policy) -> dict[str, tuple[int, ...]]:
        kept = {}
        for name, spec in policy:
            known = self.traced.graph.group if isinstance(spec, Prune) else self.traced.graph.layer
            if name not in known:
                raise InputError(f"The policy names {name!r}, which this model does not offer.", remedy=_CHECK)
            if isinstance(spec, Prune):
                group = self.traced.graph.group[name]
                if not 1 <= spec.keep <= group.width:
                    raise InputError(f"{name!r} has {group.width} channels; the policy keeps {spec.keep}.")
                kept[name] = tuple(sorted(self.order(group)[group.width - spec.keep :]))
        return kept

    def _prune(self, model: nn.Module, kept: Mapping[str, tuple[int, ...]]) -> None:
        groups = self.traced.graph.groups
        gone = {(module, side): indices for module, side, indices in dropped(groups, kept)}
        remove_channels(model, groups, kept)
        for (name, side), indices in gone.items():
            if side == "in" and name in self.stats:
                self._set_weights(_layer(model, name), name, tuple(indices), tuple(gone.get((name, "out"), ())))

    def _set_weights(self, layer: nn.Conv2d | nn.Linear, name: str, inputs: Indices, outputs: Indices) -> None:
        """Give `layer`, of whatever shape, the weights of layer `name` without those input and output channels."""
        weight, bias = self._weights(name, inputs)
        rows = _remaining(len(weight), outputs)
        kernel = layer.weight.shape[2:]
        layer.weight = nn.Parameter(weight[rows].reshape(len(rows), -1, *kernel), requires_grad=False)
        layer.bias = nn.Parameter(bias[rows].clone(), requires_grad=False)

    def _dense(self, name: str) -> tuple[Tensor, Tensor]:
        """(outputs, features) weights and (outputs,) bias of the dense layer."""
        layer = _layer(self.traced.model, name)
        bias = layer.bias if layer.bias is not None else torch.zeros(len(layer.weight))
        return layer.weight.detach().flatten(1), bias.detach()

    def _features(self, name: str, gone: Indices) -> Tensor:
        """Feature numbers that remain when a layer no longer reads the input channels `gone`."""
        spec = self.traced.graph.layer[name]
        positions = spec.kernel[0] * spec.kernel[1]
        channels = _remaining(spec.in_channels, gone)
        return (channels[:, None] * positions + torch.arange(positions)).flatten()

    def _refit(self, name: str, gone: Indices) -> tuple[Tensor, Tensor]:
        weight, bias = self._dense(name)
        return refit(weight, bias, self.stats[name], self._features(name, gone))

    def _replace_by_factors(
        self, model: nn.Module, name: str, spec: LowRank, kept: Mapping[str, tuple[int, ...]]
    ) -> None:
        gone = {(m, side): indices for m, side, indices in dropped(self.traced.graph.groups, kept)}
        inputs, outputs = tuple(gone.get((name, "in"), ())), tuple(gone.get((name, "out"), ()))
        model.set_submodule(name, copy.deepcopy(self._factors(name, inputs, outputs, spec)))

    def _factorise(self, name: str, inputs: Indices, outputs: Indices, spec: LowRank) -> nn.Sequential:
        layer = copy.deepcopy(_layer(self.traced.model, name))
        self._set_weights(layer, name, inputs, outputs)
        covariance = stats_covariance(self.stats[name], self._features(name, inputs))
        return factorise(layer, spec, covariance).eval()

    def _quantize(self, model: nn.Module, name: str, spec: Quantize) -> None:
        bits = min(spec.weight_bits, 7) if self.reduce_range and spec.weight_bits == 8 else spec.weight_bits
        layer = model.get_submodule(name)
        parts = (
            {f"{name}.{i}": part for i, part in enumerate(layer)} if isinstance(layer, nn.Sequential) else {name: layer}
        )
        for path, part in parts.items():
            assert isinstance(part, (nn.Conv2d, nn.Linear))
            model.set_submodule(path, Quantized(part, bits, spec.activation_bits).eval())

    def _sweep(self, group: ChannelGroup) -> tuple[list[int], list[float]]:
        if group.name not in self._orders:
            consumers = [c for c in (self._consumer(group, m.module) for m in group.members if m.side == "in") if c]
            self._orders[group.name] = elimination_order(consumers, group.width)
        return self._orders[group.name]

    def _consumer(self, group: ChannelGroup, name: str) -> Consumer | None:
        if name not in self.stats:
            return None
        member = next(m for m in group.members if m.module == name and m.side == "in")
        positions = self.traced.graph.layer[name].kernel[0] * self.traced.graph.layer[name].kernel[1]
        channels = torch.tensor(member.index)  # (channels, times)
        blocks = (channels[:, :, None] * positions + torch.arange(positions)).flatten(1)
        return Consumer(self._dense(name)[0], self.stats[name], blocks)


def _layer(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return layer


def _remaining(size: int, gone: Sequence[int]) -> Tensor:
    """The numbers below `size` that are not in `gone`."""
    mask = torch.ones(size, dtype=torch.bool)
    mask[list(gone)] = False
    return mask.nonzero().flatten()
