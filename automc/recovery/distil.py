"""What a student is told: the dense model's softened outputs, the labels, and, where asked for, what the dense model computes inside.

Outputs after Hinton et al. 2015 (arXiv 1503.02531), hints after Romero et al. 2015 (FitNets, arXiv 1412.6550), attention maps after
Zagoruyko and Komodakis 2017 (arXiv 1612.03928).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.evaluate.divergence import distillation_loss
from automc.outputs import logits_of

__all__ = ["Loss", "Weights", "hint_layers"]

_DEPTHS = 3
"""So many layers give hints, evenly spread over the depth of the model."""


@dataclass(frozen=True)
class Weights:
    """Shares of the loss.

    Attributes:
        labels: of the cross entropy with the labels, between 0 and 1; the softened outputs have the rest.
        hints, attention: of what the layers put out, added.
    """

    labels: float = 0.0
    hints: float = 0.0
    attention: float = 0.0


class Loss(nn.Module):
    """The loss of a student on one batch. Its parameters, the regressors of the hints, train with the student.

    Args:
        layers: names of the layers that give hints, in teacher and student.
        example: inputs on which the shapes of their outputs are found out.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weights: Weights,
        *,
        logits: bool,
        layers: Sequence[str] = (),
        example: Sequence[Tensor] = (),
    ) -> None:
        super().__init__()
        self.weights, self.logits = weights, logits
        self._models = student, teacher  # a tuple: neither is a part of this module
        self._layers = tuple(layers) if weights.hints or weights.attention else ()
        self.regressors = nn.ModuleList(self._regressors(example) if weights.hints else [])

    def forward(self, inputs: Sequence[Tensor], targets: Tensor | None) -> Tensor:
        """The loss of the student on inputs (batch, ...) and, where there are any, class numbers (batch, ...)."""
        student, teacher = self._models
        with torch.no_grad(), _kept(teacher, self._layers) as wanted:
            reference = teacher(*inputs)
        with _kept(student, self._layers) as found:
            outputs = student(*inputs)
        loss = distillation_loss(outputs, reference, logits=self.logits)
        entropy = self._cross_entropy(outputs, targets)
        if entropy is not None:
            loss = (1 - self.weights.labels) * loss + self.weights.labels * entropy
        if self.weights.hints:
            loss = loss + self.weights.hints * self._hints(found, wanted)
        if self.weights.attention:
            loss = loss + self.weights.attention * _mean(
                [_attention(found[name], wanted[name]) for name in self._layers if wanted[name].dim() == 4]
            )
        return loss

    def _cross_entropy(self, outputs: Any, targets: Tensor | None) -> Tensor | None:
        scores = logits_of(outputs) if self.logits and self.weights.labels else None
        if scores is None or targets is None or scores.shape[:1] + scores.shape[2:] != targets.shape:
            return None
        return F.cross_entropy(scores, targets.long())

    def _hints(self, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
        """Squared error of the regressed features, relative to the variance of the teacher's (eq. 3 of FitNets)."""
        pairs = [(found[name], wanted[name]) for name in self._layers]
        return _mean(
            [
                F.mse_loss(regressor(_channels_last(a)), _channels_last(b)) / b.var(correction=0).clamp_min(1e-8)
                for regressor, (a, b) in zip(self.regressors, pairs, strict=True)
            ]
        )

    def _regressors(self, example: Sequence[Tensor]) -> Iterator[nn.Module]:
        """One linear map of channels per layer, that starts as the nearest to one that changes nothing."""
        student, teacher = self._models
        with torch.no_grad(), _kept(student, self._layers) as found, _kept(teacher, self._layers) as wanted:
            student(*example)
            teacher(*example)
        for name in self._layers:
            regressor = nn.Linear(_channels_last(found[name]).shape[-1], _channels_last(wanted[name]).shape[-1])
            nn.init.eye_(regressor.weight)
            nn.init.zeros_(regressor.bias)
            yield regressor


def hint_layers(names: Sequence[str]) -> tuple[str, ...]:
    """The layers that give hints: the ends of equal parts of the model, the last layer left out, whose output is taught anyway."""
    inner = list(names)[:-1]
    return tuple(
        dict.fromkeys(inner[round(len(inner) * part / _DEPTHS) - 1] for part in range(1, _DEPTHS + 1) if inner)
    )


@contextmanager
def _kept(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Layer -> what it puts out within the block."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        kept[name] = output[0] if isinstance(output, tuple) else output

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in layers
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _channels_last(features: Tensor) -> Tensor:
    """(..., channels): maps (batch, channels, height, width) as (batch, height, width, channels), others as they are."""
    return features.movedim(1, -1) if features.dim() == 4 else features


def _attention(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance of the normalised maps of squared activations (eqs. 1 and 2), whatever the numbers of channels."""
    first, second = (F.normalize(x.square().mean(1).flatten(1)) for x in (found, wanted))
    return (first - second).square().sum(1).mean()


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean() if losses else torch.zeros(())
