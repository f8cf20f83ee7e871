"""A search from what a person asked for: `run(Job(...))` does what `automc search` does, `search` and `compress` the same in Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from automc.calling import unbind
from automc.errors import BudgetUnreachableError, InputError
from automc.policy import Policy
from automc.protocols import Observer, Silent
from automc.recipe import Job
from automc.result import Certificate, Summary
from automc.runner import Run
from automc.task import Task
from automc.trial import Trial

__all__ = ["Compressed", "Job", "Silent", "compress", "run", "search", "unreachable"]


@dataclass(frozen=True)
class Compressed:
    """What `compress` returns: the compressed PyTorch model in eval mode, and the proof of what it costs."""

    model: nn.Module
    policy: Policy
    certificate: Certificate
    summary: Summary
    onnx: bytes


def run(job: Job, observer: Observer | None = None) -> Summary:
    """Run a search, keep its record in `job.runs` and in MLflow, and return its summary.

    Raises:
        InputError: an option, the model or the data cannot be used; nothing was written.
        RunConflictError: the run of that name is of another search.
        MissingError: something needed is not installed, or the record cannot be written.
    """
    task = Task.of(job)
    search_run = Run(job, task, observer or Silent())
    for _ in search_run.trials():
        pass
    assert search_run.summary is not None
    return search_run.summary


def search(model: nn.Module | str | None = None, *, data: Any = None, **options: Any) -> Iterator[Trial]:
    """Yield the trials of a search as they end, finalists and recovered models too; the record is kept as by `run`.

    Args:
        model: a module, or what --model takes.
        data: Data, loaders (train, calibration, validation, test), or what --data takes.
        options: the other fields of Job; `budget` may be one text or several; `evaluate` may be a function of
            (model, loader); `observer` watches.

    Raises:
        InputError: as `run`.
    """
    yield from _python(model, data, options).trials()


def compress(model: nn.Module | str | None = None, *, data: Any = None, **options: Any) -> Compressed:
    """Search as `search` does, and return the winner.

    Raises:
        BudgetUnreachableError: nothing held the budget as measured; says the smallest found.
        InputError: as `run`.
    """
    search_run = _python(model, data, options)
    for _ in search_run.trials():
        pass
    assert search_run.summary is not None
    best = search_run.best
    if best is None:
        raise BudgetUnreachableError(unreachable(search_run.summary), remedy="Relax the budget or widen the space.")
    unbind(best.candidate.model)
    return Compressed(best.candidate.model, best.candidate.policy, best.certificate, search_run.summary, best.onnx)


def unreachable(summary: Summary) -> str:
    """One sentence: what was asked, and what the smallest that was found takes of it."""
    asked = " and ".join(summary.budget)
    if summary.smallest is None:
        return f"Nothing that was measured holds {asked}."
    nearest = f"; the nearest takes {summary.exceeded}" if summary.exceeded else ""
    return f"Nothing held {asked} as measured{nearest}."


def _python(model: nn.Module | str | None, data: Any, options: dict[str, Any]) -> Run:
    observer = options.pop("observer", None) or Silent()
    evaluate = options.pop("evaluate", None)
    budget = options.pop("budget", ("50ms",))
    known = {field.name for field in dataclasses.fields(Job)}
    for name in options:
        if name not in known:
            raise InputError(f"There is no option {name!r}.", remedy=f"Options: {', '.join(sorted(known))}.")
    job = Job(
        budget=budget,
        model=model if isinstance(model, str) else None,
        data=data if isinstance(data, str) else None,
        evaluate=evaluate if isinstance(evaluate, str) else None,
        **options,
    )
    module = model if isinstance(model, nn.Module) else None
    task = Task.of(
        job, module, None if isinstance(data, str) else data, None if isinstance(evaluate, str) else evaluate
    )
    return Run(job, task, observer)
