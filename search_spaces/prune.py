"""Structured pruning alone: how many channels each channel group keeps."""

from __future__ import annotations

from automc.graph import ChannelGroup, LayerGraph
from automc.policy import Prune
from automc.space import Domain, SearchSpace

__all__ = ["domains", "keep_counts", "prune"]

_SMALLEST_SHARE = 8
"""No group is cut below its width divided by this."""


def prune(graph: LayerGraph, *, channel_block: int, levels: int = 8) -> SearchSpace:
    """One pruning domain per channel group and nothing else, of `levels` keep counts at most."""
    return SearchSpace(tuple(domains(graph, channel_block, levels)))


def domains(graph: LayerGraph, channel_block: int, levels: int) -> list[Domain]:
    """The pruning domains of every channel group that can be cut at all."""
    found = []
    for group in graph.groups:
        counts = keep_counts(group, channel_block, levels)
        if len(counts) > 1:
            found.append(Domain(group.name, Prune.knob, (None, *(Prune(keep) for keep in counts[1:]))))
    return found


def keep_counts(group: ChannelGroup, channel_block: int, levels: int) -> tuple[int, ...]:
    """At most `levels` keep counts, the width first, then evenly down to about an eighth of it.

    Wide groups are cut to whole blocks of the runtime, because a count off the block costs more than it saves; narrow ones
    to multiples of 4 (of 1 below 8 channels, and for units such as attention heads), where whole blocks would leave no choice.
    """
    step = _step(group, channel_block)
    lowest = max(round(group.width / _SMALLEST_SHARE / step) * step, step)
    aligned = range(lowest, group.width, step)
    return (group.width, *_spread(sorted(aligned, reverse=True), levels - 1))


def _step(group: ChannelGroup, channel_block: int) -> int:
    if group.unit != "channels" or group.width < 8:
        return 1
    return channel_block if group.width > 2 * channel_block else min(4, channel_block)


def _spread(values: list[int], count: int) -> list[int]:
    """At most `count` of `values`, evenly spaced, ending in the last."""
    if len(values) <= count:
        return values
    return [values[(i + 1) * len(values) // count - 1] for i in range(count)]
