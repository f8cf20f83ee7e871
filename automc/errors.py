"""The error tree. Every error a user can meet says what is wrong, what to do about it, and which exit code the CLI returns.

    AutomcError                 1  something went wrong that the user can act on
    ├── InputError              2  an option, file, model or data set is not usable as given
    │   ├── UnknownNameError    2  a name that is not registered; carries the closest match
    │   ├── BudgetSyntaxError   2  a budget that cannot be read ("50 parsecs")
    │   └── RunConflictError    2  a run directory that belongs to another search
    ├── PluginError             1  an agent, a search space or a device of somebody else that does not do what it has to
    ├── BudgetUnreachableError  3  nothing that was found holds the budget
    └── MissingError            4  something needed is not installed or not supported here
        └── DiskError           4  a file or folder cannot be written

Ctrl-C is not an error: the CLI keeps the record and returns 130.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AutomcError",
    "BudgetSyntaxError",
    "BudgetUnreachableError",
    "DiskError",
    "InputError",
    "MissingError",
    "PluginError",
    "RunConflictError",
    "UnknownNameError",
    "first_line",
]


class AutomcError(Exception):
    """Base of all errors that automc raises on purpose.

    Attributes:
        remedy: one sentence that says what to do next; empty when the message already says it. A message before it ends in a full stop.
        exit_code: what the CLI returns.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(_ended(message) if remedy else message)
        self.remedy = remedy

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.remedy}" if self.remedy else message


def _ended(message: str) -> str:
    """The message with a full stop, which what it quotes of other libraries often lacks, so that a remedy can follow."""
    last = message.rstrip().rstrip("'\"`)")[-1:]
    return message if last in tuple(".!?:,;\u2026") else f"{message.rstrip()}."


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class InputError(AutomcError):
    """What was given cannot be used. The caller corrects the input; nothing was spent or written."""

    exit_code = 2


class PluginError(AutomcError):
    """An agent, a search space or a device that somebody registered does not do what it has to. Its author corrects it."""

    @classmethod
    def of(cls, what: str, error: Exception, remedy: str) -> PluginError:
        """`what` is the beginning of a sentence, such as "The agent 'x' failed when it was asked"; the rest is what was raised."""
        said = str(error).partition("\n")[0] or "no message"
        return cls(f"{what}: {type(error).__name__}: {said}.", remedy=remedy)


class UnknownNameError(InputError):
    """A name that nothing is registered under. The caller picks one of the names listed."""

    def __init__(self, kind: str, name: str, known: Iterable[str], plural: str = "") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}?" if close else ""
        kinds = plural or f"{kind}s"
        listed = f"Known {kinds}: {', '.join(names)}." if names else f"There are no {kinds} yet."
        super().__init__(f"There is no {kind} called {name!r}.", remedy=f"{hint} {listed}".strip())
        self.closest = close[0] if close else None


class BudgetSyntaxError(InputError):
    """A budget that cannot be parsed. The caller writes a number and a unit, such as '50ms' or '60%'."""


class RunConflictError(InputError):
    """A run directory holds the record of a different search. The caller chooses another name or the same settings."""


class BudgetUnreachableError(AutomcError):
    """Nothing that was found holds the budget. The caller relaxes the budget or widens the space."""

    exit_code = 3


class MissingError(AutomcError):
    """Something needed is not installed, or this machine cannot do it. The caller installs it or chooses another way."""

    exit_code = 4


class DiskError(MissingError):
    """A file or folder cannot be written: read-only, or the disk is full. The caller frees it or points elsewhere."""
