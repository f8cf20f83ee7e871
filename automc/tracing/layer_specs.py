"""From a module and how it was called to what the graph says of a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from torch import nn
from torch.nn.modules.conv import _ConvNd

from automc.compression.stacks import input_parts
from automc.graph import ChannelGroup, Channels, LayerKind, LayerSpec, again
from automc.tracing.calls import Call

__all__ = ["layer_spec", "unusual", "with_channels"]


def layer_spec(name: str, module: Any, call: Call, number: int = 0) -> LayerSpec:
    """What the graph says of a module by one of its calls; its channels are not those of groups yet."""
    if isinstance(module, nn.RNNBase):
        outputs = sum(len(getattr(module, part)) for part in input_parts(module))
        inputs = module.input_size + module.hidden_size
        if unusual(module):  # of several levels: as if all were one
            weights = [p for n, p in module.named_parameters() if n.startswith("weight")]
            outputs = sum(len(p) for n, p in module.named_parameters() if n.startswith("weight_ih"))
            inputs = round(sum(p.numel() for p in weights) / outputs)
        kind, kernel, stride, groups = "recurrent", (1, 1), (1, 1), 1
    elif isinstance(module, nn.Linear):
        inputs, outputs = module.in_features, module.out_features
        kind, kernel, stride, groups = "linear", (1, 1), (1, 1), 1
    else:
        inputs, outputs, groups = module.in_channels, module.out_channels, module.groups
        kernel, stride = _sides(module.kernel_size), _sides(module.stride)
        kind = _kind(module)
    plain = groups == 1
    in_shape, out_shape = call.per_sample(number, channels_last=kind in ("linear", "recurrent"))
    return LayerSpec(
        name=name + again(number),
        kind=cast(LayerKind, kind),
        inputs=Channels(inputs),
        outputs=Channels(outputs),
        in_channels=inputs,
        out_channels=outputs,
        kernel=kernel,
        stride=stride,
        groups=groups,
        in_shape=in_shape,
        out_shape=out_shape,
        bias=module.bias is not None and module.bias is not False,
        low_rank=plain,
        quantize=True,
        call=number,
    )


def _kind(module: _ConvNd) -> str:
    if module.transposed:
        return "transposed"
    if not isinstance(module, nn.Conv2d):
        return "conv_nd"
    one, inputs, outputs = module.groups == 1, module.in_channels, module.out_channels
    return "conv" if one else "depthwise" if module.groups == inputs == outputs else "grouped"


def _sides(values: Sequence[int]) -> tuple[int, int]:
    """Height and width; of one dimension (1, width), of three (depth, height x width)."""
    return (int(values[0]) if len(values) > 1 else 1), math.prod(int(value) for value in values[1:] or values)


def with_channels(layer: LayerSpec, groups: Sequence[ChannelGroup]) -> LayerSpec:
    """The layer with its channel counts expressed by the groups that pass through it."""
    inputs, outputs = Channels(layer.in_channels), Channels(layer.out_channels)
    for group in groups:
        for member in group.members:
            if member.module != layer.name:
                continue
            times = len(member.index[0])
            if member.side == "in":
                inputs = Channels(inputs.fixed - times * group.width, (*inputs.parts, (group.name, times)))
            else:
                outputs = Channels(outputs.fixed - times * group.width, (*outputs.parts, (group.name, times)))
    if layer.groups > 1:  # a group of the convolution goes with the channels it reads and those it writes
        inputs = _per_group(outputs, layer)
    return replace(layer, inputs=inputs, outputs=outputs)


def _per_group(outputs: Channels, layer: LayerSpec) -> Channels:
    """Input channels of a grouped convolution, of which whole groups stay, from its output channels."""
    reads, writes = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    parts = tuple((group, times * reads // writes) for group, times in outputs.parts)
    return Channels(outputs.fixed * reads // writes, parts)


def unusual(module: nn.Module) -> str:
    """Why a recurrent layer cannot be compressed, "" where nothing stands against it."""
    if not isinstance(module, nn.RNNBase):
        return ""
    if module.num_layers > 1:
        return "its layers could not be split"
    return "its states are projected" if module.proj_size else ""
