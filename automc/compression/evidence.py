"""What pruning criteria look at: original filters, batch norms, activations and gradients, and Torch-Pruning's view of a group."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.dependency import Dependency, Group, Node

from automc.calibrate import output_sensitivity
from automc.graph import ChannelGroup, Member
from automc.outputs import logits_of, tensors_of
from automc.tracing.trace import Traced

__all__ = ["Evidence", "norms", "producers", "tp_group"]

SAMPLES = 64
"""Inputs from which gradients and activations are taken."""

_BATCH = 16
"""Of them at once."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Touched = list[tuple[nn.Module, Member]]
"""Modules and which of their channels belong to a group."""


class Evidence:
    """What criteria look at besides the weights as they are, each part found when it is first asked for.

    Args:
        inputs: calibration inputs, (samples, ...) each, of which the first SAMPLES serve.
        logits: the outputs are logits of classes.
    """

    def __init__(self, traced: Traced, inputs: Sequence[Tensor], *, logits: bool = True, seed: int = 0) -> None:
        self.traced = traced
        self.inputs = tuple(tensor[:SAMPLES] for tensor in inputs)
        self.logits = logits
        self.seed = seed

    @cached_property
    def filters(self) -> nn.Module:
        """The model with the weights its layers had before batch norms were folded; a batch norm of scale 0 leaves zeros."""
        model = copy.deepcopy(self.traced.model)
        for name, norm in self.traced.norms.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            scale = torch.where(norm.weight == 0, 0.0, norm.deviation / norm.weight)
            layer.weight.data.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        return model

    def nonzero(self, group: ChannelGroup) -> Tensor:
        """(units,) share of nonzero activations, 1 - APoZ, over all that the group's consumers read of each unit."""
        shares = [
            self._nonzero[m.module][torch.tensor(m.index)].mean(1)
            for m in group.members
            if m.side == "in" and m.module in self._nonzero
        ]
        return torch.stack(shares).mean(0)

    @cached_property
    def _nonzero(self) -> dict[str, Tensor]:
        """Layer -> (inputs,) share of its input activations that are not zero."""
        found: dict[str, Tensor] = {}
        layers = [(n, m) for n, m in self.traced.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        hooks = [layer.register_forward_pre_hook(_counter(found, name)) for name, layer in layers]
        try:
            with torch.no_grad():
                self.traced.model(*self.inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    @cached_property
    def sensitivity(self) -> dict[str, Tensor]:
        """Layer -> (outputs,) the diagonal of the Fisher information of its outputs."""
        rows = [
            tuple(tensor[row : row + _BATCH].clone() for tensor in self.inputs) for row in range(0, SAMPLES, _BATCH)
        ]
        with torch.inference_mode(False):
            batches = [batch for batch in rows if len(batch[0])]
            return output_sensitivity(self.traced, batches, logits=self.logits, seed=self.seed)

    @cached_property
    def taylor(self) -> dict[str, Tensor]:
        """Group -> (units,) mean over samples of the squared first-order change of the loss.

        The loss is the negative log-likelihood of a target drawn from the model's own outputs, so that no labels are needed: of a
        class drawn from their softmax, or of the outputs under unit Gaussian noise. (The gradient of the divergence from the dense
        model would be zero at the dense model.) The mean of squares is then the Fisher information of each channel's gate,
        for which the bias of a filter, into which its batch norm was folded, counts as one more of its weights.
        """
        with torch.inference_mode(False), torch.enable_grad():
            model = copy.deepcopy(self.traced.model).requires_grad_(True)
            groups = [(group, producers(group, model)) for group in self.traced.graph.groups]
            importance = tp.importance.TaylorImportance(multivariable=True, group_reduction="sum", normalizer=None)
            generator = torch.Generator().manual_seed(self.seed)
            found = {group.name: torch.zeros(group.width) for group, _ in groups}
            for row in range(len(self.inputs[0])):
                model.zero_grad()
                self._loss(model(*(tensor[row : row + 1].clone() for tensor in self.inputs)), generator).backward()
                for group, touched in groups:
                    whole = tp_group([(_with_bias(module, member.side), member) for module, member in touched])
                    found[group.name] += importance(whole)[: group.width].square() / len(self.inputs[0])
        return found

    def _loss(self, returned: Any, generator: torch.Generator) -> Tensor:
        found = logits_of(returned) if self.logits else None
        if found is not None:
            logits = found.movedim(1, -1).flatten(0, -2)
            drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
            return nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum")
        outputs = torch.cat([tensor.flatten() for tensor in tensors_of(returned) if tensor.requires_grad])
        noise = torch.randn(outputs.shape, generator=generator)
        return (outputs - (outputs + noise).detach()).square().sum() / 2


def producers(group: ChannelGroup, model: nn.Module) -> Touched:
    """The layers whose filters make the channels; those that read them where no layer makes them."""
    found = [(_module(model, member.module), member) for member in group.members]
    layers: Touched = [(module, member) for module, member in found if isinstance(module, (nn.Conv2d, nn.Linear))]
    return [(module, member) for module, member in layers if member.side == "out"] or layers


def norms(group: ChannelGroup, evidence: Evidence) -> Touched:
    """The batch norms that scale the group's channels: folded ones as they were, and those that stand alone."""
    found: Touched = []
    for member in group.members:
        module, folded = _module(evidence.traced.model, member.module), evidence.traced.norms.get(member.module)
        if member.side == "out" and folded is not None:
            norm = nn.BatchNorm2d(len(folded.weight))
            norm.weight.data.copy_(folded.weight)
            found.append((norm, member))
        elif isinstance(module, _NORMS) and module.affine:
            found.append((module, member))
    return found


def tp_group(touched: Iterable[tuple[nn.Module, Member]]) -> Group:
    """The least Torch-Pruning group that its importances read: per module the channel numbers, and the unit of each.

    A unit is what Torch-Pruning calls a root index; its importances add up all channels that have the same one.
    """
    group = Group()
    for module, member in touched:
        pairs = sorted((index, unit) for unit, indices in enumerate(member.index) for index in indices)
        node, handler = Node(module, None, member.module), _handler(module, member.side)
        group.add_dep(Dependency(handler, handler, node, node), [index for index, _ in pairs])
        group[-1].root_idxs = [unit for _, unit in pairs]
    return group


def _with_bias(module: nn.Module, side: str) -> nn.Module:
    """The filters of a layer, and their gradients, as rows of a linear layer with the bias as the last column."""
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    if side == "in" or module.bias is None:
        return module
    assert module.weight.grad is not None
    assert module.bias.grad is not None
    rows = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    rows.weight = nn.Parameter(torch.cat([module.weight.detach().flatten(1), module.bias.detach()[:, None]], 1))
    rows.weight.grad = torch.cat([module.weight.grad.flatten(1), module.bias.grad[:, None]], 1)
    return rows


def _handler(module: nn.Module, side: str) -> Any:
    """Torch-Pruning's name for one side of a module. A depthwise convolution has one filter per channel like any other."""
    if isinstance(module, nn.Conv2d):
        return tp.prune_conv_in_channels if side == "in" else tp.prune_conv_out_channels
    if isinstance(module, nn.Linear):
        return tp.prune_linear_in_channels if side == "in" else tp.prune_linear_out_channels
    return tp.prune_batchnorm_out_channels


def _counter(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels = 1 if isinstance(module, nn.Conv2d) else -1
        found[name] = (inputs[0] != 0).float().movedim(channels, 0).flatten(1).mean(1)

    return record


def _module(model: nn.Module, name: str) -> Any:
    """The module or parameter of that name."""
    parent, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(parent), leaf)
