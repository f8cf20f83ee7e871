"""Structured pruning: taking channels out of modules.

`remove_channels` changes shapes only; the weights that make up for the loss come from `automc.compression.obs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from automc.graph import ChannelGroup

__all__ = ["dropped", "remove_channels", "zero_consumers"]

Kept = Mapping[str, Sequence[int]]
"""Channel group -> the channels it keeps, ascending. Groups that are not named stay whole."""


def remove_channels(model: nn.Module, groups: Sequence[ChannelGroup], keep: Kept) -> None:
    """Take the channels that `keep` drops out of every member module of `groups`, in place."""
    for name, side, indices in dropped(groups, keep):
        _remove(model, name, side, indices)


def dropped(groups: Sequence[ChannelGroup], keep: Kept) -> list[tuple[str, str, list[int]]]:
    """(module, side, channel numbers in that module) of everything that `keep` drops, each pair once."""
    gone: dict[tuple[str, str], list[int]] = {}
    for group in groups:
        if group.name not in keep:
            continue
        kept = set(keep[group.name])
        for member in group.members:
            indices = gone.setdefault((member.module, member.side), [])
            indices.extend(i for channel in range(group.width) if channel not in kept for i in member.index[channel])
    return [(module, side, sorted(indices)) for (module, side), indices in gone.items() if indices]


def zero_consumers(model: nn.Module, groups: Sequence[ChannelGroup], keep: Kept) -> None:
    """Zero the weights that read the channels that `keep` drops, in place: what removing them must be equal to."""
    for name, side, indices in dropped(groups, keep):
        if side == "in":
            layer = model.get_submodule(name)
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            with torch.no_grad():
                layer.weight[:, indices] = 0.0


def _remove(model: nn.Module, name: str, side: str, indices: Sequence[int]) -> None:
    parent_name, _, leaf = name.rpartition(".")
    target = getattr(model.get_submodule(parent_name), leaf)
    if isinstance(target, nn.Parameter):
        _remove_from_parameter(model.get_submodule(parent_name), leaf, indices)
    elif isinstance(target, nn.Conv2d):
        _remove_from_conv(target, side, indices)
    elif isinstance(target, nn.Linear):
        _remove_from_linear(target, side, indices)
    elif isinstance(target, nn.Identity):  # a batch norm that was folded into its layer
        return
    else:
        _remove_from_vectors(target, indices)


def _keep(size: int, indices: Sequence[int], device: torch.device) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool, device=device)
    mask[list(indices)] = False
    return mask.nonzero().flatten()


def _shrink(parameter: Tensor, dim: int, kept: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, kept), requires_grad=parameter.requires_grad)


def _remove_from_conv(conv: nn.Conv2d, side: str, indices: Sequence[int]) -> None:
    dim = 1 if side == "in" else 0
    kept = _keep(conv.weight.shape[dim], indices, conv.weight.device)
    conv.weight = _shrink(conv.weight, dim, kept)
    if side == "in":
        conv.in_channels = len(kept)
        return
    if conv.bias is not None:
        conv.bias = _shrink(conv.bias, 0, kept)
    conv.out_channels = len(kept)
    if conv.groups > 1:  # depthwise: one filter per channel
        conv.groups = conv.in_channels = len(kept)


def _remove_from_linear(linear: nn.Linear, side: str, indices: Sequence[int]) -> None:
    dim = 1 if side == "in" else 0
    kept = _keep(linear.weight.shape[dim], indices, linear.weight.device)
    linear.weight = _shrink(linear.weight, dim, kept)
    if side == "in":
        linear.in_features = len(kept)
        return
    if linear.bias is not None:
        linear.bias = _shrink(linear.bias, 0, kept)
    linear.out_features = len(kept)


def _remove_from_vectors(module: nn.Module, indices: Sequence[int]) -> None:
    """Batch norm, layer norm, PReLU: every parameter and buffer with one entry per channel."""
    for store in (module._parameters, module._buffers):
        for key, tensor in list(store.items()):
            if tensor is not None and tensor.dim() == 1 and tensor.numel() > 1:
                kept = _keep(tensor.shape[0], indices, tensor.device)
                shrunk = _shrink(tensor, 0, kept)
                setattr(module, key, shrunk if store is module._parameters else shrunk.data)
                size = len(kept)
    for attribute in ("num_features", "num_parameters"):
        if hasattr(module, attribute):
            setattr(module, attribute, size)
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = (size,)


def _remove_from_parameter(parent: nn.Module, leaf: str, indices: Sequence[int]) -> None:
    parameter = getattr(parent, leaf)
    dim = max(d for d, size in enumerate(parameter.shape) if size > 1)
    setattr(parent, leaf, _shrink(parameter, dim, _keep(parameter.shape[dim], indices, parameter.device)))
