"""The default space: pruning, int8 and low rank together, aligned to the channel block of the device."""

from __future__ import annotations

from collections.abc import Sequence

from automc.errors import InputError
from automc.graph import LayerGraph
from automc.space import SearchSpace

from . import low_rank, prune, quantize

__all__ = ["default"]


def default(
    graph: LayerGraph, *, channel_block: int, int8: bool, levels: int = 8, bits: Sequence[tuple[int, int]] = ()
) -> SearchSpace:
    """Every choice the model and the device have, dense first and most compressed last in each domain.

    Args:
        channel_block: channels the device's kernels work in; counts off a multiple are a latency cliff.
        int8: whether the device runs 8-bit integer kernels.
        levels: keep counts per channel group at most, the dense width among them.
        bits: (weight, activation) bits of a device that computes in fewer than 8, most first.

    Raises:
        InputError: `channel_block` or `levels` below 1.
    """
    if channel_block < 1 or levels < 1:
        raise InputError(f"channel_block ({channel_block}) and levels ({levels}) must be 1 or more.")
    return SearchSpace(
        (
            *prune.domains(graph, channel_block, levels),
            *(quantize.domains(graph, bits) if int8 else ()),
            *low_rank.domains(graph, channel_block),
        )
    )
