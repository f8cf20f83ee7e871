"""The multiple-choice knapsack: one choice per domain, least summed loss, every limit held; solved by HiGHS.

Kellerer, Pferschy and Pisinger 2004, "Knapsack Problems", chapter 11. Compression as an integer programme: HAWQ-V3 (2011.10680).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from automc.pricing import Pricing
from automc.space import Codes

__all__ = ["Knapsack"]

Array = NDArray[np.float64]
_GAP = 1e-3
_NODES = 200


class Knapsack:
    """The programme of one space, over x with an entry for every choice of every domain (domain after domain)."""

    def __init__(self, cardinalities: Codes) -> None:
        self.cardinalities = cardinalities
        self.domain = np.repeat(np.arange(len(cardinalities)), cardinalities)
        """(choices,) the domain of each entry of x."""
        self.first = np.cumsum(cardinalities) - cardinalities
        """(domains,) the entry of x that stands for code 0."""
        shape = (len(cardinalities), len(self.domain))
        entries = (np.ones(len(self.domain)), (self.domain, np.arange(len(self.domain))))
        self._one_each = LinearConstraint(csr_array(entries, shape=shape), 1.0, 1.0)

    def at(self, flat: Array, codes: Codes) -> Array:
        """(..., domains) the entries of (choices,) `flat` that (..., domains) codes choose."""
        chosen: Array = flat[self.first + codes]
        return chosen

    def marginal(self, pricing: Pricing, row: Codes) -> tuple[Array, Array]:
        """((limits,) usage of `row`, (choices, limits) change in usage that each single choice makes to it)."""
        moves, used, usage = pricing.priced_around(row)
        domain = (moves != row).argmax(axis=1)
        marginal = np.zeros((len(self.domain), len(usage)))
        marginal[self.first[domain] + moves[np.arange(len(moves)), domain]] = used - usage
        return usage, marginal

    def solve(self, loss: Array, usage: Array, room: Array, centre: Codes, radius: int, *, exact: bool) -> Codes | None:
        """(domains,) codes of least summed loss, or None where the limits leave nothing.

        Args:
            loss: (choices,) loss of each choice.
            usage: (choices, limits) change in usage that each choice makes.
            room: (limits,) what those changes may sum to.
            centre: (domains,) codes that at most `radius` domains may differ from.
            exact: solve the integer programme (0.1 % gap); otherwise its linear relaxation, in which at most one domain per
                limit is split, rounded to the choice that uses least.
        """
        stay = np.zeros(len(loss))
        stay[self.first + centre] = -1.0
        rows = np.concatenate([usage.T, stay[None]])
        limits = LinearConstraint(rows, -np.inf, np.append(room, radius - len(centre)))
        integrality = np.full(len(loss), int(exact))
        with _silent_highs():
            answer = milp(
                loss,
                integrality=integrality,
                bounds=Bounds(0.0, 1.0),
                constraints=[self._one_each, limits],
                options={"mip_rel_gap": _GAP, "node_limit": _NODES},
            )
        return None if answer.x is None else self._round(answer.x, usage.max(axis=1))

    def _round(self, x: Array, usage: Array) -> Codes:
        """In each domain the choice that uses least among those that x takes at least a tenth of."""
        least = np.where(x >= 0.1, usage, np.inf)
        spans = zip(self.first, self.cardinalities, strict=True)
        return np.array([int(np.argmin(least[start : start + n])) for start, n in spans], dtype=np.int64)


@contextmanager
def _silent_highs() -> Iterator[None]:
    """HiGHS 1.12 (in scipy 1.17) prints a debugging line from C whatever its options say; what we print must stay readable.

    The line goes through the C library's buffer, so that buffer is flushed before standard output is put back.
    """
    sys.stdout.flush()
    library = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    library.fflush(None)
    saved = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
