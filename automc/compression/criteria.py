"""In which order the channels of a group go: the Optimal Brain Surgeon sweep, and the criteria of the literature.

    obs     error of the consumers after they are refitted (`automc.compression.obs`)
    fisher  the same, errors of each output weighted by its Fisher information (`automc.calibrate.output_sensitivity`)
    l1, l2  norm of the filters that produce the channel; Li et al. 2017, arXiv 1608.08710, section 3.1
    bn      scale of its batch norm; Liu et al. 2017, "Network Slimming", arXiv 1708.06519
    taylor  mean over samples of (sum of gradient x weight)^2; Molchanov et al. 2019, arXiv 1906.10771, eq. 8
    fpgm    distance to the other filters; He et al. 2019, "FPGM", arXiv 1811.00250, eq. 4
    apoz    share of activations that are not zero; Hu et al. 2016, arXiv 1607.03250, eq. 2
    lamp    squared norm over that of the channels that are still there; Lee et al. 2021, arXiv 2010.07611, eq. 4
    random  by lot

Scores come from Torch-Pruning's importances (Fang et al. 2023, arXiv 2301.12900), which only lack apoz. Filters are judged as
they were before their batch norm was folded into them. Where several layers produce a channel (a residual stream), or one
unit is several channels (an attention head), the scores are added up. Within one group lamp orders like l2: it differs in
the scores, which compare groups. Torch-Pruning's fpgm takes the distances between the absolute values of the weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor

from automc.compression.evidence import Evidence, norms, producers, tp_group
from automc.errors import InputError, UnknownNameError
from automc.graph import ChannelGroup

__all__ = ["CRITERIA", "FALLBACK", "SWEPT", "Pruning", "channel_order", "channel_scores", "fallbacks"]

CRITERIA = ("obs", "fisher", "l1", "l2", "bn", "taylor", "fpgm", "apoz", "lamp", "random")
SWEPT = ("obs", "fisher")
"""Ordered by a sweep that refits the consumers."""
FALLBACK = "l1"
"""Ranks the groups about which the chosen criterion can say nothing."""

_SUM: dict[str, Any] = {"group_reduction": "sum", "normalizer": None}
_IMPORTANCES: dict[str, Callable[[], Any]] = {
    "l1": lambda: tp.importance.MagnitudeImportance(p=1, **_SUM),
    "l2": lambda: tp.importance.MagnitudeImportance(p=2, **_SUM),
    "bn": lambda: tp.importance.BNScaleImportance(**_SUM),
    "fpgm": lambda: tp.importance.FPGMImportance(p=1, **_SUM),
    "lamp": lambda: tp.importance.LAMPImportance(group_reduction="sum"),
    "random": tp.importance.RandomImportance,
}


@dataclass(frozen=True)
class Pruning:
    """How channels are pruned.

    Attributes:
        criterion: one of CRITERIA.
        compensate: the layers that read removed channels are refitted to make up for them; without, they keep the weights that
            are left and only batch norms and biases are adapted, as in the papers of the other criteria.
        seed: of what is drawn by lot: the order of "random", and the targets of "taylor".

    Raises:
        UnknownNameError: there is no such criterion.
    """

    criterion: str = "obs"
    compensate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UnknownNameError("pruning criterion", self.criterion, CRITERIA, "pruning criteria")


def channel_order(pruning: Pruning, group: ChannelGroup, evidence: Evidence) -> tuple[list[int], list[float]]:
    """The channels of a group from the first to go to the last, and the share of all importance gone after each.

    The same form as `obs.elimination_order`, which serves the criteria in SWEPT.
    """
    scores = channel_scores(pruning, group, evidence)
    order = torch.argsort(scores, stable=True)
    gone = scores[order].double().cumsum(0) / scores.double().sum().clamp_min(1e-30)
    return order.tolist(), gone.tolist()


def channel_scores(pruning: Pruning, group: ChannelGroup, evidence: Evidence) -> Tensor:
    """(units,) importance of each channel (or head, or other unit) of a group, none negative; the least goes first."""
    criterion = FALLBACK if _is_silent(pruning.criterion, group, evidence) else pruning.criterion
    if criterion == "taylor":
        return evidence.taylor[group.name]
    if criterion == "apoz":
        return evidence.nonzero(group)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(pruning.seed + zlib.crc32(group.name.encode()))
        touched = norms(group, evidence) if criterion == "bn" else producers(group, evidence.filters)
        scores: Tensor = _IMPORTANCES[criterion]()(tp_group(touched))
    return scores[: group.width].nan_to_num()  # lamp divides by the sum, which may be zero


def fallbacks(pruning: Pruning, evidence: Evidence) -> tuple[str, ...]:
    """The channel groups that are ranked by FALLBACK because the criterion says nothing about them.

    Raises:
        InputError: it says nothing about any group of the model.
    """
    groups = evidence.traced.graph.groups
    silent = tuple(group.name for group in groups if _is_silent(pruning.criterion, group, evidence))
    if groups and len(silent) == len(groups):
        lacking = {"bn": "has no batch norm that scales a channel", "apoz": "has no activation that is ever zero"}
        raise InputError(
            f"The pruning criterion {pruning.criterion!r} cannot rank anything: the model {lacking[pruning.criterion]}.",
            remedy=f"Choose another: {', '.join(c for c in CRITERIA if c != pruning.criterion)}.",
        )
    return silent


def _is_silent(criterion: str, group: ChannelGroup, evidence: Evidence) -> bool:
    if criterion == "bn":
        return not norms(group, evidence)
    return criterion == "apoz" and bool((evidence.nonzero(group) >= 1.0).all())
