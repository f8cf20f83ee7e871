"""What a model offers to compression, as plain data: layers, channel groups, and what is left alone and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

__all__ = [
    "ONLY_PRUNED",
    "Attribute",
    "ChannelGroup",
    "Channels",
    "LayerGraph",
    "LayerKind",
    "LayerSpec",
    "LeftAlone",
    "Member",
    "again",
    "module_of",
]

LayerKind = Literal["conv", "depthwise", "grouped", "linear", "recurrent", "conv_nd", "transposed"]
"""Those of two dimensions, `conv_nd` of one or three, which may be grouped, and transposed ones of any number."""


@dataclass(frozen=True)
class Channels:
    """A channel count that depends on the policy: `fixed` plus, for each (group, times), `times` per kept channel.

    A linear layer after a 7 x 7 flatten reads 49 features per channel of its group: `Channels(0, (("conv5", 49),))`.
    """

    fixed: int = 0
    parts: tuple[tuple[str, int], ...] = ()

    def count(self, keep: Mapping[str, int]) -> int:
        """The number of channels when group `g` keeps `keep[g]` of its channels; every group of `parts` must be there."""
        return self.fixed + sum(times * keep[group] for group, times in self.parts)


@dataclass(frozen=True)
class LayerSpec:
    """A convolution, linear or recurrent layer with weights. Shapes are per sample, without the batch.

    A recurrent layer is what it computes at each of its positions: a linear layer from its input and its state, `in_channels`
    together, to all its gates, `out_channels`; its shapes are (positions, features) of its input and its output.
    `positions` is the number of output positions: height x width of a convolution's output, tokens of a linear layer.
    `kernel` and `stride` of one dimension are (1, width), of three (depth, height x width).
    """

    name: str
    kind: LayerKind
    inputs: Channels
    outputs: Channels
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    bias: bool
    low_rank: bool = True
    """Whether the layer may be factorised (`LayerGraph.left_alone` says why not)."""
    quantize: bool = True
    """Whether the layer may be quantised."""
    call: int = 0
    """Which of its module's calls in a forward pass this is, from 0; a module that is called again is a layer per call."""
    stored: bool = True
    """Whether the model holds the weights for this layer, and not for an earlier one that shares them."""

    @property
    def module(self) -> str:
        """The name of the module."""
        return module_of(self.name)

    @property
    def positions(self) -> int:
        """Output positions per sample."""
        return _positions(self.out_shape, self.kind)

    @property
    def in_positions(self) -> int:
        """Input positions per sample."""
        return _positions(self.in_shape, self.kind)

    @property
    def features(self) -> int:
        """What the layer reads at one position of one sample, states excluded: the columns of its calibration statistics."""
        return self.in_shape[-1] if self.kind == "recurrent" else self.in_channels * self.kernel[0] * self.kernel[1]

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample of the dense layer (FLOPs are twice that)."""
        return (self.in_positions if self.kind == "transposed" else self.positions) * self.weight_count

    @property
    def weight_count(self) -> int:
        """Number of weights, bias excluded."""
        return self.out_channels * self.in_channels // self.groups * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Member:
    """One side of one module that a channel group touches.

    `index[c]` lists the positions, in that module's dimension, of the group's channel `c`.
    `side` is "out" (the module produces the channels, or carries them through) or "in" (it consumes them).
    """

    module: str
    side: Literal["in", "out"]
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module that follows a group's width: `per_unit` for each unit kept, plus `fixed`."""

    module: str
    name: str
    per_unit: int
    fixed: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be pruned together, in every module they pass through (residual adds, concat, depthwise)."""

    name: str
    width: int
    members: tuple[Member, ...]
    unit: str = "channels"
    """What one unit of the width is: "channels", "heads" of an attention (with all their features), "groups" of a convolution."""
    attributes: tuple[Attribute, ...] = ()
    """Numbers in the model's own code that follow the width."""

    @property
    def producers(self) -> tuple[str, ...]:
        """Modules whose output channels belong to the group."""
        return tuple(dict.fromkeys(m.module for m in self.members if m.side == "out"))

    @property
    def consumers(self) -> tuple[str, ...]:
        """Modules whose input channels belong to the group."""
        return tuple(dict.fromkeys(m.module for m in self.members if m.side == "in"))


ONLY_PRUNED = "only pruned"
"""How the reason ends for a layer that is left alone but for its channels."""


@dataclass(frozen=True)
class LeftAlone:
    """A layer, or one knob of it, that no policy touches, and the reason in words a user understands."""

    name: str
    reason: str


@dataclass(frozen=True)
class LayerGraph:
    """Everything a search needs to know about a model, without the model."""

    layers: tuple[LayerSpec, ...]
    groups: tuple[ChannelGroup, ...]
    left_alone: tuple[LeftAlone, ...] = ()
    others: tuple[LayerSpec, ...] = ()
    """Layers without a choice of their own: of other dimensions, transposed, called several times, or of shared weights."""

    @cached_property
    def priced(self) -> tuple[LayerSpec, ...]:
        """All layers: they cost something whether or not there is a choice."""
        return (*self.layers, *self.others)

    @cached_property
    def layer(self) -> Mapping[str, LayerSpec]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def group(self) -> Mapping[str, ChannelGroup]:
        """Channel groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def widths(self) -> Mapping[str, int]:
        """Dense width of each channel group."""
        return {group.name: group.width for group in self.groups}

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample of the dense model's convolutions, linear and recurrent layers."""
        return sum(layer.macs for layer in self.priced)


def again(call: int) -> str:
    """What the name of a layer has behind that of its module from the second call on."""
    return f" (call {call + 1})" if call else ""


def module_of(layer: str) -> str:
    """The module that a layer's name is of."""
    return re.sub(r" \(call \d+\)$", "", layer)


def _positions(shape: tuple[int, ...], kind: LayerKind) -> int:
    sizes = shape[:-1] if kind in ("linear", "recurrent") else shape[1:]
    count = 1
    for size in sizes:
        count *= size
    return count
