"""Which compressed candidates to profile: few, but spread over what a search may propose."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from automc.policy import LowRank, Prune, Quantize, Sparsify
from automc.predict.kernels import Ints
from automc.space import Codes, SearchSpace

__all__ = ["stratified"]


def stratified(space: SearchSpace, count: int, seed: int = 0) -> Codes:
    """(<= count, domains) different codes: dense, each knob alone at several strengths, knobs together, random mixtures.

    About half are mixtures, which are the hardest to predict and what agents propose, so that errors on held-out candidates do not flatter.
    In order of use: whoever can measure only a part takes the first ones.
    """
    rng = np.random.default_rng(seed)
    recipes = _recipes(space, rng)
    rows = [space.dense, *(recipes[index % len(recipes)]() for index in range(4 * count))]
    unique = list(dict.fromkeys(tuple(row.tolist()) for row in rows))[:count]
    return np.array(unique, dtype=np.int64).reshape(len(unique), len(space))


def _recipes(space: SearchSpace, rng: np.random.Generator) -> list[Callable[[], Codes]]:
    prune, rank, zeros, bits = (space.columns(spec.knob) for spec in (Prune, LowRank, Sparsify, Quantize))

    def draw(strength: float, columns: list[int], share: float = 1.0) -> Ints:
        """Codes near `strength` in a `share` of the columns, dense elsewhere."""
        row = space.dense
        if columns:
            top = space.cardinalities[columns] - 1
            wished = np.rint(top * np.clip(strength + rng.normal(0, 0.2, len(columns)), 0, 1)).astype(np.int64)
            row[columns] = np.where(rng.random(len(columns)) < share, wished, 0)
        return row

    decks = [_deck(int(size), rng) for size in space.cardinalities]

    def anywhere(columns: list[int], share: float) -> Ints:
        """Random codes in a `share` of the columns; each column goes through all its choices before it repeats one."""
        row = space.dense
        for column in columns:
            if rng.random() < share:
                row[column] = next(decks[column])
        return row

    def every_bit() -> Ints:
        row = space.dense
        row[bits] = space.cardinalities[bits] - 1
        return row

    def stretch() -> Ints:
        """Integers in one run of consecutive layers."""
        row = space.dense
        first, last = sorted(rng.integers(0, len(bits) + 1, 2)) if bits else (0, 0)
        row[bits[first:last]] = space.cardinalities[bits[first:last]] - 1
        return row

    def mixture(low: float, high: float) -> Ints:
        return anywhere([*prune, *rank, *zeros, *bits], rng.uniform(low, high))

    return [
        every_bit,
        lambda: mixture(0.5, 1.0),
        lambda: draw(rng.uniform(0.3, 0.7), prune),
        lambda: mixture(0.2, 0.5),
        lambda: anywhere(rank, 0.7),
        lambda: mixture(0.3, 1.0),
        lambda: draw(rng.uniform(0.2, 0.8), prune) + every_bit(),
        lambda: draw(rng.uniform(0.2, 0.8), prune) + stretch(),
        lambda: mixture(0.2, 0.6),
        lambda: draw(rng.uniform(0.1, 0.9), prune) + anywhere(rank, rng.uniform(0.2, 0.6)),
        lambda: mixture(0.4, 1.0),
        lambda: anywhere([*prune, *bits], rng.uniform(0.3, 0.9)),
    ]


def _deck(size: int, rng: np.random.Generator) -> Iterator[int]:
    """The codes 1 .. size - 1 in shuffled order, again and again; only 0 where there is nothing else."""
    while True:
        yield from (rng.permutation(size - 1) + 1).tolist() or [0]
