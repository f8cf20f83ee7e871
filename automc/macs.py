"""Multiply-accumulates of a model as it stands, counted by thop as it runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import thop
import torch
from thop.profile import register_hooks
from thop.vision.basic_hooks import count_linear, zero_ops
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["count_macs"]


def count_macs(model: nn.Module, sample: Sequence[Tensor]) -> float:
    """Multiply-accumulates for a sample: those of convolutions, linear and recurrent layers alone, as `LayerGraph.macs`.

    By itself thop counts what norms, pools, activations and interpolations do too, transposed convolutions by the positions that they
    write, a module of two names four times, and no layer of a class that somebody derived.

    Args:
        model: changed where a module has several names, which become copies.
    """
    known = set[nn.Module]()
    for name, module in [*model.named_modules(remove_duplicate=False)]:
        if module in known:
            model.set_submodule(name, copy.deepcopy(module))
        known.add(module)
    with torch.inference_mode():
        macs, _ = thop.profile(model, inputs=tuple(sample), custom_ops=_rules(model), verbose=False)
    return float(macs)


def _rules(model: nn.Module) -> dict[type[nn.Module], Any]:
    """How to count each class of module in a model."""
    rules: dict[type[nn.Module], Any] = dict.fromkeys(register_hooks, zero_ops)
    for kind in {type(module) for module in model.modules()}:
        if issubclass(kind, _ConvTransposeNd):
            rules[kind] = _count_transposed
        elif issubclass(kind, _ConvNd):
            rules[kind] = _count_convolution
        elif issubclass(kind, nn.Linear):
            rules[kind] = count_linear
        elif issubclass(kind, nn.RNNBase):
            rules[kind] = _count_recurrent
    return rules


def _count_convolution(module: Any, _: tuple[Any, ...], written: Tensor) -> None:
    """Each element that is written takes the weights of its channel once."""
    module.total_ops += written.numel() * module.weight[0].numel()


def _count_transposed(module: Any, _: tuple[Any, ...], written: Tensor) -> None:
    """Each position that is read takes all weights once; how many those are follows from what is written, as of a convolution back."""
    sides = zip(
        written.shape[2:], module.kernel_size, module.stride, module.padding, module.output_padding, module.dilation,
        strict=True,
    )  # fmt: skip
    read = [(o + 2 * pad - beyond - d * (k - 1) - 1) // step + 1 for o, k, step, pad, beyond, d in sides]
    module.total_ops += len(written) * math.prod(read) * module.weight.numel()


def _count_recurrent(module: Any, _: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    """Each step of each sequence takes all weights once."""
    written = outputs[0]
    steps = len(written.data) if isinstance(written, nn.utils.rnn.PackedSequence) else written[..., 0].numel()
    weights = (parameter for name, parameter in module.named_parameters() if name.startswith("weight"))
    module.total_ops += steps * sum(weight.numel() for weight in weights)
