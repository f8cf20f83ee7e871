"""Groups of channels are tried before they are offered.

Removing a group's channels must give exactly what zeroing the weights that read them gives. A group that fails is left alone, with
the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from automc.compression.prune import remove_channels, zero_consumers
from automc.compression.sharing import sharing_copy
from automc.graph import ChannelGroup, LeftAlone
from automc.outputs import tensors_of
from automc.tracing.channels import Coupling

__all__ = ["agree", "verified"]


def verified(
    model: nn.Module, example: tuple[Tensor, ...], coupling: Coupling, unusable: Mapping[str, str]
) -> tuple[list[ChannelGroup], list[LeftAlone]]:
    """The groups that can be pruned without changing anything else, and why the others cannot.

    Groups are tried together and halved where they fail, so that a few bad ones among many cost few forward passes.
    """
    kept: list[ChannelGroup] = []
    refused: list[LeftAlone] = []
    small = tuple(tensor[:2] for tensor in example)

    def settle(groups: Sequence[ChannelGroup]) -> None:
        if not groups:
            return
        difference = _difference(model, small, [*kept, *groups])  # groups that pass one by one may disturb each other
        if not difference:
            kept.extend(groups)
        elif len(groups) == 1:
            refused.append(LeftAlone(groups[0].name, _refusal(difference, coupling.passes.get(groups[0].name, ""))))
        else:
            settle(groups[: len(groups) // 2])
            settle(groups[len(groups) // 2 :])

    candidates = []
    for group in coupling.groups:
        stuck = next((member.module for member in group.members if member.module in unusable), None)
        if stuck is None:
            candidates.append(group)
        else:
            refused.append(LeftAlone(group.name, f"its channels pass through {stuck}: {unusable[stuck]}"))
    settle(candidates)
    return kept, refused


def _refusal(difference: str, passes: str) -> str:
    """Why a group stays whole, from what went wrong without some of its channels and the operations that move them."""
    through = f" through {passes}" if passes else ""
    return f"its channels cannot be followed{through}: without some of them {difference}"


def _difference(model: nn.Module, example: tuple[Tensor, ...], groups: Sequence[ChannelGroup]) -> str:
    """How removing every other channel of `groups` differs from zeroing the weights that read them; "" where it does not."""
    keep = {group.name: tuple(range(0, group.width, 2)) for group in groups}
    try:
        zeroed, pruned = sharing_copy(model), sharing_copy(model)
        zero_consumers(zeroed, groups, keep)
        remove_channels(pruned, groups, keep)
        with torch.no_grad():
            pairs = zip(tensors_of(zeroed(*example)), tensors_of(pruned(*example)), strict=True)
            same = all(agree(expected, found) for expected, found in pairs)
        return "" if same else "the others change"
    except Exception as error:  # a model's code may do anything with fewer channels; that it fails is the answer
        words = (str(error).splitlines() or [""])[0][:100]
        return f"the model's code fails ({type(error).__name__}: {words})"


def agree(expected: Tensor, found: Tensor) -> bool:
    """Whether two outputs are the same up to rounding."""
    if expected.shape != found.shape:
        return False
    if not expected.is_floating_point():
        return bool(torch.equal(expected, found))
    scale = float(expected.abs().max()) + 1e-6
    return bool(torch.isfinite(found).all()) and float((expected - found).abs().max()) <= 1e-3 * scale
