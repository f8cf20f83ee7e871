"""Devices that cannot be measured from this machine: models are loaded and scored here, and their costs come from elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from automc.devices.cpu import Cpu
from automc.devices.device import Array, Model, NodeTime, Session
from automc.devices.measure import Measurement
from automc.errors import MissingError

__all__ = ["Unmeasured"]


class Unmeasured(ABC):
    """The part of the Device protocol that such devices share; `threads` are those that score here."""

    threads: int

    @abstractmethod
    def absent(self) -> MissingError:
        """Why nothing can be measured, and what to do instead."""

    def session(self, model: Model) -> Session:
        """The model loaded on this machine, to score it."""
        return Cpu(self.threads).session(model)

    def measure(
        self, models: Mapping[str, Model], inputs: Sequence[Array], rounds: int = 12, **options: Any
    ) -> Measurement:
        """Not possible.

        Raises:
            MissingError: always.
        """
        raise self.absent()

    def node_times(self, model: Model, inputs: Sequence[Array], repeats: int = 5) -> list[NodeTime]:
        """Not possible.

        Raises:
            MissingError: always.
        """
        raise self.absent()
