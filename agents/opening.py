"""Where searches that learn from scores alone begin: even policies nearest to the budget, and points of random paths."""

from __future__ import annotations

import numpy as np

from automc.pricing import Pricing, ray
from automc.space import Codes

from .uniform import even

__all__ = ["on_a_path", "opening"]

_EVEN_SHARE = 0.5
_STRENGTHS = np.linspace(0.0, 1.0, 41)


def opening(pricing: Pricing, count: int, rng: np.random.Generator) -> list[Codes]:
    """About `count` rows inside the budget, half of them even ones (the least compressed), the rest on random paths."""
    rows = list(even(pricing)[: max(1, round(_EVEN_SHARE * count))])
    return [*rows, *(on_a_path(pricing, rng) for _ in range(count - len(rows)))]


def on_a_path(pricing: Pricing, rng: np.random.Generator) -> Codes:
    """(domains,) the first point of a random path inside the budget, other than dense: a dense model inside teaches nothing twice."""
    path = ray(pricing.space.cardinalities, _STRENGTHS, rng)
    inside = pricing.holds(path) & path.any(axis=1)
    return pricing.shrink(path[int(np.argmax(inside))], rng)
