"""Structured pruning: taking channels out of modules.

`remove_channels` changes shapes only; the weights that make up for the loss come from `automc.compression.obs`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from automc.graph import Attribute, ChannelGroup

__all__ = ["dropped", "reading_order", "remove_channels", "zero_consumers"]

Kept = Mapping[str, Sequence[int]]
"""Channel group -> the channels it keeps, ascending. Groups that are not named stay whole."""


def remove_channels(
    model: nn.Module, groups: Sequence[ChannelGroup], keep: Kept, without: Collection[str] = ()
) -> None:
    """Take the channels that `keep` drops out of every member module of `groups`, in place.

    Tensors are replaced, never changed, so that models that share them do not disturb each other.

    Args:
        without: modules that are left as they are, because others take their place.
    """
    for name, side, indices in dropped(groups, keep):
        if name not in without:
            _remove(model, name, side, indices)
    for group in groups:
        for attribute in group.attributes if group.name in keep else ():
            _set_attribute(model, attribute, len(keep[group.name]))


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
    """Zero the weights that read the channels that `keep` drops: what removing them must be equal to.

    The modules get new weights; the old tensors stay as they are.
    """
    for name, side, indices in dropped(groups, keep):
        if side == "in":
            layer = model.get_submodule(name)
            assert isinstance(layer, (_ConvNd, nn.Linear))
            weight = layer.weight.detach().clone()
            weight.index_fill_(_dimension(layer, "in"), torch.tensor(indices, device=weight.device), 0.0)
            layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)


def reading_order(model: nn.Module, group: ChannelGroup) -> tuple[list[int], list[float]]:
    """The channels of a group from the first to be removed to the last, by the weights that read them, and the error.

    The share of the readers' squared weights (Li et al. 2017, arXiv 1608.08710, with the L2 norm) stands in for the relative
    output error, which it is for uncorrelated inputs of equal variance; for readers whose inputs have not been recorded.
    """
    costs = torch.zeros(group.width)
    for member in group.members:
        layer = model.get_submodule(member.module) if member.side == "in" else None
        if isinstance(layer, (_ConvNd, nn.Linear)):
            energy = layer.weight.detach().transpose(0, _dimension(layer, "in")).flatten(1).square().sum(1)
            costs += energy[torch.tensor(member.index)].sum(1) / (energy.sum() + 1e-12)
    order = torch.argsort(costs, stable=True)
    return order.tolist(), costs[order].cumsum(0).tolist()


def _dimension(layer: nn.Module, side: str) -> int:
    """The dimension of a layer's weight that holds the channels of `side`."""
    return int(isinstance(layer, _ConvNd) and layer.transposed) ^ int(side == "in")


def _set_attribute(model: nn.Module, attribute: Attribute, kept: int) -> None:
    """Give a number in a module's code its new value; an object that holds it, such as a configuration, is copied before.

    Other modules may share that object, and their numbers must stay.
    """
    module = model.get_submodule(attribute.module)
    holder, _, leaf = attribute.name.rpartition(".")
    owner = copy.copy(getattr(module, holder)) if holder else module
    setattr(owner, leaf, attribute.per_unit * kept + attribute.fixed)
    if holder:
        setattr(module, holder, owner)


def _remove(model: nn.Module, name: str, side: str, indices: Sequence[int]) -> None:
    parent_name, _, leaf = name.rpartition(".")
    target = getattr(model.get_submodule(parent_name), leaf)
    if isinstance(target, nn.Parameter):
        _remove_from_parameter(model.get_submodule(parent_name), leaf, indices)
    elif isinstance(target, _ConvNd):
        if side == "out" and target.groups > 1:
            _remove_conv_groups(target, indices)
        else:
            _remove_from_conv(target, side, indices)
    elif isinstance(target, nn.Linear):
        _remove_from_linear(target, side, indices)
    elif not isinstance(target, nn.Identity):  # a batch norm that was folded into its layer
        _remove_from_vectors(target, indices)


def _keep(size: int, indices: Sequence[int], device: torch.device) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool, device=device)
    mask[list(indices)] = False
    return mask.nonzero().flatten()


def _shrink(parameter: Tensor, dim: int, kept: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, kept), requires_grad=parameter.requires_grad)


def _remove_from_conv(conv: _ConvNd, side: str, indices: Sequence[int]) -> None:
    """Input or output channels of an ungrouped convolution of any number of dimensions, transposed or not."""
    dim = _dimension(conv, side)
    kept = _keep(conv.weight.shape[dim], indices, conv.weight.device)
    conv.weight = _shrink(conv.weight, dim, kept)
    if side == "in":
        conv.in_channels = len(kept)
        return
    if conv.bias is not None:
        conv.bias = _shrink(conv.bias, 0, kept)
    conv.out_channels = len(kept)


def _remove_conv_groups(conv: _ConvNd, outputs: Sequence[int]) -> None:
    """Whole groups of a grouped or depthwise convolution, named by their output channels, with the inputs they read."""
    reads, writes = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    device = conv.weight.device
    gone = sorted({channel // writes for channel in outputs})
    groups = _keep(conv.groups, gone, device)
    rows = conv.weight.shape[0] // conv.groups  # outputs of a convolution, inputs of a transposed one
    conv.weight = _shrink(conv.weight, 0, (groups[:, None] * rows + torch.arange(rows, device=device)).flatten())
    if conv.bias is not None:
        kept = (groups[:, None] * writes + torch.arange(writes, device=device)).flatten()
        conv.bias = _shrink(conv.bias, 0, kept)
    conv.groups = len(groups)
    conv.in_channels, conv.out_channels = reads * len(groups), writes * len(groups)


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
    """Norms and PReLU: every parameter and buffer with one entry per channel, and the numbers that count them."""
    for store in (module._parameters, module._buffers):
        for key, tensor in list(store.items()):
            if tensor is not None and tensor.dim() == 1 and tensor.numel() > 1:
                shrunk = _shrink(tensor, 0, _keep(tensor.shape[0], indices, tensor.device))
                setattr(module, key, shrunk if store is module._parameters else shrunk.data)
    if isinstance(module, nn.GroupNorm):
        module.num_groups -= len(indices) * module.num_groups // module.num_channels
    for attribute in ("num_features", "num_channels", "num_parameters"):
        size = getattr(module, attribute, 1)
        if size > 1:
            setattr(module, attribute, size - len(indices))


def _remove_from_parameter(parent: nn.Module, leaf: str, indices: Sequence[int]) -> None:
    parameter = getattr(parent, leaf)
    dim = max(d for d, size in enumerate(parameter.shape) if size > 1)
    setattr(parent, leaf, _shrink(parameter, dim, _keep(parameter.shape[dim], indices, parameter.device)))
