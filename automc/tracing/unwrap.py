"""The plain module inside what training left around a model: compiled, data-parallel, with parametrised weights."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from automc.errors import InputError

__all__ = ["copy_of", "unwrapped"]

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that `torch.compile`, DataParallel and DistributedDataParallel wrap; any other module as it is.

    Raises:
        InputError: a scripted or exported module, whose layers cannot be replaced.
    """
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise InputError(
                "The model is a scripted or traced module (TorchScript), whose layers cannot be replaced.",
                remedy="Give the nn.Module that it was made from.",
            )
        if isinstance(model, torch.fx.GraphModule) and hasattr(model, "_guards_fn"):
            raise InputError(
                "The model is an exported program (torch.export), whose layers are gone.",
                remedy="Give the nn.Module that it was made from.",
            )
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, _PARALLEL):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of the unwrapped model in eval mode; weights that are computed from others (weight norm, spectral norm,
    any parametrisation) become plain ones of the same values.

    Raises:
        InputError: the model cannot be copied.
    """
    model = unwrapped(model)
    try:
        copied = copy.deepcopy(_copyable(model)).eval()
    except InputError:
        raise
    except Exception as error:  # deepcopy runs the model's own code
        raise InputError(
            f"The model cannot be copied: {type(error).__name__}: {error}.",
            remedy="Keep what cannot be copied (files, locks, generators, tensors with a gradient) out of the module.",
        ) from error
    with torch.no_grad():
        for module in copied.modules():
            _bake(module)
    return copied


def _copyable(model: nn.Module) -> nn.Module:
    """Legacy weight and spectral norm leave a tensor with a gradient behind, which cannot be copied: compute it without."""
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, (WeightNorm, SpectralNorm)):
                    setattr(module, hook.name, getattr(module, hook.name).detach())
    return model


def _bake(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):
        module.__class__ = _own_class(type(module))
    for name in list(cast(nn.ModuleDict, module.parametrizations)) if parametrize.is_parametrized(module) else ():
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        weight = getattr(module, name)
        if not isinstance(weight, nn.Parameter):  # computed from several tensors
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(weight.detach().clone()))
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)


def _own_class(shared: type) -> type:
    """A parametrised class that is this copy's alone: removal deletes the weight's property from the class."""
    members = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    return type(shared.__name__, shared.__bases__, members)
