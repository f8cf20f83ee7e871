"""Where a search stands, for whoever watches it from outside (`runs/<name>/progress.json`)."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from automc.result import Finalist

__all__ = ["Progress", "Reference"]


@dataclass(frozen=True)
class Reference:
    """What a search compares with: the dense model as measured, and the resolved budget (metric -> limit, SI units)."""

    dense: Finalist
    limits: Mapping[str, float]
    score_name: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"dense": self.dense.to_json(), "limits": dict(self.limits), "score_name": self.score_name}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reference:
        """Read what `to_json` wrote."""
        return cls(Finalist.from_json(data["dense"]), data["limits"], data["score_name"])


@dataclass(frozen=True)
class Progress:
    """The stage of a search and how far it is.

    Attributes:
        total: units of work of the stage, None where unknown.
        began, updated: seconds since 1970, of the stage and of this record.
        warnings: the latest sentences that a person should read.
        ended: the search is over, whatever its outcome.
    """

    stage: str = ""
    done: float = 0.0
    total: float | None = None
    note: str = ""
    began: float = 0.0
    updated: float = 0.0
    warnings: tuple[str, ...] = ()
    ended: bool = False
    reference: Reference | None = None
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)

    @property
    def running(self) -> bool:
        """Whether the process that wrote this still searches; one on another machine is believed."""
        return not self.ended and (self.host != socket.gethostname() or _is_alive(self.pid))

    @property
    def left_s(self) -> float | None:
        """Seconds that the stage will still take at its pace so far; None where that is unknown."""
        if not self.total or self.done <= 0:
            return None
        return max(0.0, (self.updated - self.began) * (self.total - self.done) / self.done)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        reference = self.reference.to_json() if self.reference else None
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "reference": reference}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Progress:
        """Read what `to_json` wrote."""
        reference = Reference.from_json(data["reference"]) if data["reference"] else None
        return cls(**{**data, "warnings": tuple(data["warnings"]), "reference": reference})


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
