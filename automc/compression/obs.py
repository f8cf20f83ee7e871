"""Which channels to remove, and the weights that make up for them: the Optimal Brain Surgeon on channel groups.

Removing a set R of input features and re-solving for the rest costs W_R [(C^-1)_RR]^-1 W_R^T in squared output error
(Hassibi and Stork 1993, eq. 5, for blocks; Kurtic et al. 2023, "ZipLM", arXiv 2302.04089, eq. 3). One greedy sweep
removes channel after channel, updating the inverse, so it orders the channels for *every* keep count at once.
The weights for any kept set are then the least-squares solution, damped towards the old weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from automc.calibrate import LayerStats

__all__ = ["DAMPING", "Consumer", "absorb_mean", "elimination_order", "refit"]

DAMPING = 0.01
"""Ridge, as a share of the mean variance of a feature."""
_MAX_STEPS = 128
_SLACK = 1 / 16
"""Share of removed features that a sweep carries along before it cuts them out."""


@dataclass(frozen=True)
class Consumer:
    """One layer that reads a channel group.

    Attributes:
        weight: (outputs, features) its weights.
        stats: what it reads.
        blocks: (channels, features per channel) which features belong to each channel of the group.
        importance: (outputs,) what a squared error of each output costs; None where all cost the same.
    """

    weight: Tensor
    stats: LayerStats
    blocks: Tensor
    importance: Tensor | None = None


def elimination_order(consumers: Sequence[Consumer], width: int) -> tuple[list[int], list[float]]:
    """The channels of a group from the first to go to the last, and the error after each removal.

    The error is relative: squared output error over output variance, summed over consumers; of consumers whose outputs have an
    importance, all their weighted errors over all their weighted variances. Wide groups are swept in at most 128 steps of several
    channels each.
    """
    sweeps = [_Sweep(consumer) for consumer in consumers]
    if any(consumer.importance is not None for consumer in consumers):
        total_scale = sum(sweep.scale for sweep in sweeps)
        for sweep in sweeps:
            sweep.scale = total_scale
    step = max(1, width // _MAX_STEPS)
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    while len(order) < width:
        costs = torch.stack([sweep.costs() for sweep in sweeps]).sum(0)
        chosen = torch.argsort(costs)[: min(step, width - len(order))]
        for channel in chosen.tolist():
            total += max(0.0, float(costs[channel]))
            order.append(channel)
            errors.append(total)
        for sweep in sweeps:
            sweep.remove(chosen)
    return order, errors


class _Sweep:
    """The running inverse and weights of one consumer while channels are removed.

    What is removed is cut out of both only once it is a sixteenth of them: cutting copies them.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.blocks = consumer.blocks
        self.alive = torch.ones(len(self.blocks), dtype=torch.bool)
        covariance = _damped(consumer.stats)
        weights = 1.0 if consumer.importance is None else consumer.importance.sqrt()[:, None]
        self.weight = consumer.weight * weights
        self.scale = float((self.weight @ covariance * self.weight).sum()) + 1e-12
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        self.left = torch.ones(len(covariance), dtype=torch.bool)

    def costs(self) -> Tensor:
        """(channels,) error of removing each channel next, relative to the consumer's output energy; infinite for those removed."""
        blocks = self.blocks[self.alive]
        square = self.inverse[blocks[:, :, None], blocks[:, None, :]]  # (channels, block, block)
        weight = self.weight[:, blocks].transpose(0, 1)  # (channels, outputs, block)
        square = square + torch.eye(square.shape[-1]) * 1e-12
        solved = torch.linalg.solve(square, weight.transpose(1, 2))  # (channels, block, outputs)
        costs = torch.full((len(self.blocks),), torch.inf)
        costs[self.alive] = (weight.transpose(1, 2) * solved).sum((1, 2)) / self.scale
        return costs

    def remove(self, channels: Tensor) -> None:
        """Remove channels: Hassibi and Stork's update of weights and inverse, for a block."""
        gone = self.blocks[channels].flatten()
        self.alive[channels] = False
        self.left[gone] = False
        corner = self.inverse[gone][:, gone] + torch.eye(len(gone)) * 1e-12
        factor = torch.linalg.solve(corner, self.inverse[gone])  # (gone, features)
        self.weight.addmm_(self.weight[:, gone], factor, alpha=-1.0)
        self.inverse.addmm_(self.inverse[:, gone], factor, alpha=-1.0)
        if int(self.left.sum()) < (1.0 - _SLACK) * len(self.left):
            self._cut()

    def _cut(self) -> None:
        """Keep only the features that are left, and number them anew; those of removed channels are never looked at again."""
        kept = self.left.nonzero().flatten()
        number = torch.cumsum(self.left, 0) - 1
        self.blocks = number[self.blocks].clamp_min(0)
        self.weight, self.inverse = self.weight[:, kept], self.inverse[kept][:, kept]
        self.left = torch.ones(len(kept), dtype=torch.bool)


def refit(weight: Tensor, bias: Tensor, stats: LayerStats, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (outputs, kept) and bias (outputs,) that best replace the whole layer when it reads only `kept` features.

    Solves min over V of |W x - V x_K|^2 + damping |V - W_K|^2 on the calibration inputs; the bias absorbs the mean.
    Layers whose covariance is only a diagonal keep their weights, and the bias alone makes up for what is gone.
    """
    old = weight[:, kept]
    if not stats.full or len(kept) == weight.shape[1]:
        new = old
    else:
        covariance = _damped(stats)
        target = covariance[kept] @ weight.T
        new = torch.cholesky_solve(target, torch.linalg.cholesky(covariance[kept][:, kept])).T
    return new, absorb_mean(weight, bias, new, stats, kept)


def absorb_mean(weight: Tensor, bias: Tensor, new: Tensor, stats: LayerStats, kept: Tensor) -> Tensor:
    """Bias (outputs,) with which `new` weights (outputs, kept) put out the same mean as the whole layer."""
    return bias + weight @ stats.mean - new @ stats.mean[kept]


def _damped(stats: LayerStats) -> Tensor:
    """The covariance with a ridge, which pulls towards the old weights and makes it positive definite."""
    covariance = stats.covariance if stats.full else torch.diag(stats.covariance)
    ridge = DAMPING * float(covariance.diagonal().mean()) + 1e-8
    return covariance + ridge * torch.eye(len(covariance))
