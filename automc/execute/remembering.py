"""No model is evaluated twice: policies that lead to the same model share its score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from automc.policy import Policy
from automc.protocols import Executor, Outcome, Scored

__all__ = ["Remembering"]


class Remembering:
    """An executor that remembers the scores of another one.

    Scores of a part of the samples and failures are not remembered.

    Args:
        key: policies of the same key are the same model.
    """

    def __init__(self, inner: Executor, key: Callable[[Policy], str]) -> None:
        self.inner = inner
        self.key = key
        self.known: dict[str, float] = {}
        self._ready: list[Outcome] = []
        self._followers: dict[str, list[tuple[Policy, float]]] = {}

    @property
    def slots(self) -> int:
        """As of the inner executor."""
        return self.inner.slots

    def submit(self, policy: Policy, rival: float) -> None:
        """Answer at once where the score is known, wait where the same model is being evaluated, else pass it on."""
        key = self.key(policy)
        if key in self.known:
            self._ready.append(Outcome(policy, self.known[key]))
        elif key in self._followers:
            self._followers[key].append((policy, rival))
        else:
            self._followers[key] = []
            self.inner.submit(policy, rival)

    def collect(self) -> Sequence[Outcome]:
        """What was known already, or else what the inner executor collects, each with the policies that waited for it."""
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        return [outcome for ended in self.inner.collect() for outcome in self._shared(ended)]

    def pause(self) -> None:
        """As of the inner executor."""
        self.inner.pause()

    def _shared(self, ended: Outcome) -> list[Outcome]:
        key = self.key(ended.policy)
        followers = self._followers.pop(key)
        if ended.score is not None and Scored.of(ended.score).samples is None:
            self.known[key] = ended.score
            return [ended, *(replace(ended, policy=policy, seconds=0.0) for policy, _ in followers)]
        for policy, rival in followers:
            self.submit(policy, rival)
        return [ended]
