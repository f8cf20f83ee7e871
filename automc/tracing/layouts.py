"""In which order the features of attention heads may lie in the linear layers around an attention.

An attention reads linear layers (its producers: queries, keys, values, one layer for several of them, a gate) and is read by
one (its output projection). What implementations agree on is that the features of a head lie together, or in a few runs
of equal stride; a `Hypothesis` is one such reading. Which one is true is decided by running the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from automc.graph import Member

__all__ = ["Hypothesis", "hypotheses"]

Run = tuple[int, int]
"""(first feature, features per unit): unit u owns `size` features from first + u x size."""
Layout = tuple[Run, ...]
Ranked = tuple[int, Layout]
"""A layout and how far-fetched it is."""

_UNTOUCHED: Layout = ()


@dataclass(frozen=True)
class Hypothesis:
    """Where the features of `units` heads lie. A unit is a head, or a key/value head with the queries that share it.

    Attributes:
        rank: how far-fetched it is; the plain ones are tried first.
        members: of the group, by the layers' names.
        numbers: what the model's own code may hold that follows the units: counts of heads and of features.
    """

    rank: int
    units: int
    members: tuple[Member, ...]
    numbers: frozenset[int]


def hypotheses(
    producers: Sequence[tuple[str, int]], output: tuple[str, int], counts: Sequence[int]
) -> list[Hypothesis]:
    """The readings of layers (name, width) for the head counts that the model's code may mean, the plainest first.

    Grouped queries lie key/value head by key/value head (Ainslie et al. 2023, "GQA", arXiv 2305.13245), or in turns.
    """
    found = []
    for units in sorted((c for c in set(counts) if c > 1 and output[1] % c == 0), reverse=True):
        times = sorted({c // units for c in counts if c > units and c % units == 0})
        for output_rank, output_layout, turns in [
            (0, _whole(output[1], units), 1),
            *_in_turns(output[1], units, times),
        ]:
            options = [_options(width, output[1], units, turns) for _, width in producers]
            for chosen in itertools.product(*options):
                layouts = [layout for _, layout in chosen]
                if any(layouts):
                    rank = output_rank + sum(rank for rank, _ in chosen)
                    found.append(_hypothesis(rank, units, producers, layouts, output, output_layout, times))
    return sorted(found, key=lambda hypothesis: hypothesis.rank)


def _options(width: int, output: int, units: int, turns: int) -> list[Ranked]:
    """The layouts of a producer, each with its rank."""
    if turns > 1 and width == output:  # the queries; they lie as the output does
        return [(0, _stacked(width, units, turns))]
    found: list[Ranked] = []
    if width % units == 0:
        found.append((int(width > output), _whole(width, units)))
    found += [
        (int(width != k * output), _stacked(width, units, k))
        for k in (2, 3)
        if width > output and width % (k * units) == 0
    ]
    found += _grouped(width, output, units)
    if width <= output:
        found.append((2, _UNTOUCHED))
    return found or [(2, _UNTOUCHED)]


def _whole(width: int, units: int) -> Layout:
    return ((0, width // units),)


def _stacked(width: int, units: int, times: int) -> Layout:
    """`times` sections, each with a part of every unit: queries, keys and values one after the other."""
    return tuple((section * width // times, width // times // units) for section in range(times))


def _grouped(width: int, output: int, units: int) -> Iterator[Ranked]:
    """All queries, then all keys, then all values, with fewer keys and values than queries."""
    extra = width - output
    if extra > 0 and extra % (2 * units) == 0 and output % (extra // 2) == 0 and output > extra // 2:
        size = extra // 2 // units
        yield 0, ((0, output // units), (output, size), (output + extra // 2, size))
    if extra > 0 and extra == 2 * (output // units):  # one key and one value that all heads share
        yield 0, ((0, output // units),)


def _in_turns(width: int, units: int, times: Sequence[int]) -> Iterator[tuple[int, Layout, int]]:
    """Query head h reads key/value head h modulo their number."""
    for count in times:
        if width % (count * units) == 0:
            yield 3, _stacked(width, units, count), count


def _hypothesis(
    rank: int,
    units: int,
    producers: Sequence[tuple[str, int]],
    layouts: Sequence[Layout],
    output: tuple[str, int],
    output_layout: Layout,
    times: Sequence[int],
) -> Hypothesis:
    members = [
        Member(name, "out", _index(layout, units))
        for (name, _), layout in zip(producers, layouts, strict=True)
        if layout
    ]
    sections = {size * units for layout in (*layouts, output_layout) for _, size in layout}
    totals = {sum(size for _, size in layout) * units for layout in (*layouts, output_layout)}
    numbers = {units, *(units * t for t in times), *sections, *totals}
    numbers |= {2 * section for section in sections}
    return Hypothesis(
        rank, units, (*members, Member(output[0], "in", _index(output_layout, units))), frozenset(numbers)
    )


def _index(layout: Layout, units: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(first + unit * size + i for first, size in layout for i in range(size)) for unit in range(units))
