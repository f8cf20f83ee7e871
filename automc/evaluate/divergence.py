"""How far a compressed model's outputs are from the dense model's, without labels; and what each single choice costs.

Of several outputs each is compared on its own, and the plain mean over them counts: every output has the same weight, whatever
its size. Outputs of integers or truth values are compared by the share of entries that differ, and left out of distillation,
which cannot descend on them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.apply import Stitcher
from automc.outputs import logits_of, tensors_of
from automc.policy import Prune
from automc.protocols import Observer
from automc.space import Domain, SearchSpace

__all__ = ["TEMPERATURE", "distillation_loss", "divergence", "sensitivities"]

TEMPERATURE = 2.0

_MIN_SAMPLES = 16
_BROKEN = 1e6
"""Divergence of outputs that are not finite."""


def divergence(reference: Any, outputs: Any, *, logits: bool) -> float:
    """Mean divergence of `outputs` from `reference`: tensors (batch, ...), or equal structures of them.

    Args:
        logits: the outputs, or those called "logits", are (batch, classes, ...): the Kullback-Leibler divergence of their softmax
            over the classes, in nats per prediction. Otherwise the squared error relative to the variance of the reference.
    """
    pairs = _pairs(reference, outputs, logits)
    return float(np.mean([_divergence(wanted, found, is_logits) for wanted, found, is_logits in pairs]))


def _divergence(reference: Tensor, outputs: Tensor, logits: bool) -> float:
    if not reference.is_floating_point():
        return float((outputs != reference).double().mean())
    if logits:
        found = float(_kullback_leibler(outputs.double(), reference.double()))
        return 0.0 if found < 0.0 else found  # rounding may take it below; what is no number stays none
    error = (outputs.double() - reference.double()).square().mean()
    return float(error / _variance(reference.double()))


def _pairs(reference: Any, outputs: Any, logits: bool) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """(reference, output, whether they are logits) of each tensor."""
    chosen = logits_of(reference) if logits else None
    for wanted, found in zip(tensors_of(reference), tensors_of(outputs), strict=True):
        yield wanted, found, wanted is chosen


def distillation_loss(outputs: Any, target: Any, *, logits: bool, temperature: float = TEMPERATURE) -> Tensor:
    """What `outputs` lose against the teacher's `target`, a scalar to descend on: tensors (batch, ...), or equal structures.

    Args:
        logits: the outputs, or those called "logits", are (batch, classes, ...): the divergence of the softened softmax (Hinton
            et al. 2015, arXiv 1503.02531, times T^2 so that gradients keep their size). Otherwise the relative squared error.
        temperature: T, above 0; what both logits are divided by.
    """
    pairs = [pair for pair in _pairs(target, outputs, logits) if pair[0].is_floating_point()]
    return torch.stack([_loss(found, wanted, is_logits, temperature) for wanted, found, is_logits in pairs]).mean()


def _loss(outputs: Tensor, target: Tensor, logits: bool, temperature: float) -> Tensor:
    if logits:
        return _kullback_leibler(outputs / temperature, target / temperature) * temperature**2
    return F.mse_loss(outputs, target) / _variance(target)


def _kullback_leibler(outputs: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(outputs)) over dimension 1, its mean over all other dimensions."""
    found, wanted = (F.log_softmax(tensor.movedim(1, -1).flatten(0, -2), -1) for tensor in (outputs, reference))
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def _variance(tensor: Tensor) -> Tensor:
    return tensor.var(correction=0).clamp_min(1e-12)


def sensitivities(
    stitcher: Stitcher,
    space: SearchSpace,
    inputs: Sequence[Tensor],
    *,
    limit_s: float,
    logits: bool,
    observer: Observer,
) -> list[NDArray[np.float64]]:
    """One array per domain: entry c is the `divergence` of the model with only choice c taken, entry 0 is 0.

    What would take longer than `limit_s` is thinned out: first fewer samples, then only the middle and the strongest choice of
    each domain, then only the strongest, the others filled in, by the pruning error of the elimination order or along the
    index. Arrays are made non-decreasing, because a stronger choice that seems better on few samples is noise.
    """
    start = time.perf_counter()
    with torch.inference_mode():
        stitcher.traced.model(*inputs)
    per_sample = (time.perf_counter() - start) / len(inputs[0])
    count = sum(len(domain) - 1 for domain in space.domains)
    samples = int(np.clip(limit_s / max(1e-9, count * per_sample), _MIN_SAMPLES, len(inputs[0])))
    overrun = count * samples * per_sample / limit_s
    inputs = [tensor[:samples] for tensor in inputs]
    with torch.inference_mode():
        reference = stitcher.traced.model(*inputs)
    chosen = [_chosen(domain, overrun) for domain in space.domains]
    observer.stage("measure sensitivities", sum(len(codes) for codes in chosen))
    curves = []
    for column, codes in enumerate(chosen):
        known = {0: 0.0}
        for code in codes:
            value = divergence(reference, _outputs(stitcher, space, column, code, inputs), logits=logits)
            known[code] = value if np.isfinite(value) else _BROKEN
            observer.advance(1.0, f"{space.domains[column].target} {space.domains[column].knob}")
        curves.append(_filled(stitcher, space.domains[column], known))
    return curves


def _chosen(domain: Domain, overrun: float) -> list[int]:
    """The choices to measure when measuring all would take `overrun` times as long as there is time."""
    last = len(domain) - 1
    if overrun > 3.0:
        return [last] if last else []
    return sorted({(last + 1) // 2, last} - {0}) if overrun > 1.5 else list(range(1, len(domain)))


def _outputs(stitcher: Stitcher, space: SearchSpace, column: int, code: int, inputs: Sequence[Tensor]) -> Any:
    """What the model puts out with only this choice taken."""
    row = space.dense.copy()
    row[column] = code
    model: nn.Module = stitcher.apply(space.decode(row[None])[0])
    with torch.inference_mode():
        return model(*inputs)


def _filled(stitcher: Stitcher, domain: Domain, known: dict[int, float]) -> NDArray[np.float64]:
    """The curve over all choices, missing ones interpolated, made non-decreasing."""
    position = np.array([_position(stitcher, domain, code) for code in range(len(domain))])
    codes = sorted(known)
    curve = np.interp(position, position[codes], [known[code] for code in codes])
    return np.maximum.accumulate(curve)


def _position(stitcher: Stitcher, domain: Domain, code: int) -> float:
    spec = domain.choices[code]
    if isinstance(spec, Prune):
        return stitcher.prune_error(stitcher.traced.graph.group[domain.target], spec.keep)
    return float(code)
