"""Code lengths of an optimal prefix code (Huffman 1952, "A Method for the Construction of Minimum-Redundancy Codes")."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count

__all__ = ["code_lengths", "coded_bits"]

_LENGTH_BITS = 8
"""What a canonical code stores of each symbol: its length."""


def code_lengths(counts: Sequence[int]) -> list[int]:
    """Bits of each symbol's code; 0 for symbols that do not occur, 1 for one that occurs alone."""
    order = count()
    heap = [(n, next(order), [symbol]) for symbol, n in enumerate(counts) if n > 0]
    lengths = [0] * len(counts)
    if len(heap) == 1:
        lengths[heap[0][2][0]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (few, _, left), (more, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in left + right:
            lengths[symbol] += 1
        heapq.heappush(heap, (few + more, next(order), left + right))
    return lengths


def coded_bits(counts: Sequence[int]) -> int:
    """Bits of all symbols under their code, and of the table that a decoder needs."""
    lengths = code_lengths(counts)
    return sum(n * length for n, length in zip(counts, lengths, strict=True)) + _LENGTH_BITS * len(counts)
