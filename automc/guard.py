"""Agents held to their contract: what breaks it is named, so that nobody looks for the fault in their own model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from automc.errors import AutomcError, PluginError
from automc.policy import Policy
from automc.protocols import Agent
from automc.space import SearchSpace
from automc.trial import Trial

__all__ = ["Guarded"]


@dataclass
class Guarded:
    """An agent that is found out when it raises, or asks for what is no policy of the space.

    Raises:
        PluginError: as soon as it does; names the agent.
    """

    name: str
    agent: Agent
    space: SearchSpace

    @classmethod
    def of(cls, name: str, make: Callable[[], Agent], space: SearchSpace) -> Guarded:
        """The agent that `make` makes."""
        with _named(name, "was made"):
            return cls(name, make(), space)

    def ask(self, count: int) -> Sequence[Policy]:
        """As of the agent."""
        with _named(self.name, "was asked"):
            asked = list(self.agent.ask(count))
        for policy in asked:
            if not isinstance(policy, Policy):
                raise PluginError(f"The agent {self.name!r} asked for a {type(policy).__name__}, which is no policy.")
            if not self.space.contains(policy):
                raise PluginError(
                    f"The agent {self.name!r} asked for a policy that the search space does not have: {self._reason(policy)}",
                    remedy="AgentContract in automc.testing finds such faults of an agent.",
                )
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """As of the agent."""
        with _named(self.name, "was told"):
            self.agent.tell(trials)

    def _reason(self, policy: Policy) -> str:
        try:
            self.space.encode([policy])
        except AutomcError as error:
            return Exception.__str__(error)
        return policy.digest


@contextmanager
def _named(name: str, when: str) -> Iterator[None]:
    try:
        yield
    except AutomcError:
        raise
    except Exception as error:
        raise PluginError.of(
            f"The agent {name!r} failed when it {when}",
            error,
            "`automc --debug ...` shows where; --agent takes another.",
        ) from error
