"""Evaluations one after another, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from automc.policy import Policy

__all__ = ["Serial"]


class Serial:
    """The executor of a single worker."""

    def map(self, evaluate: Callable[[Policy], float], policies: Sequence[Policy]) -> Iterator[float | Exception]:
        """The score of each policy in order, or the exception that it raised; each is computed when it is asked for."""
        for policy in policies:
            try:
                yield evaluate(policy)
            except Exception as error:
                yield error
