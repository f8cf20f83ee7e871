"""A new budget for an old run: its model and data loaded again, and what its tables answer measured until something holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from automc.answering import Known, limits_of
from automc.budget import Budget
from automc.certify import Candidate, Certified, Certifier, Failed
from automc.errors import AutomcError
from automc.evaluate.models import model_digest
from automc.policy import Policy
from automc.prepare import Prepared
from automc.protocols import Observer
from automc.recovery.recover import recover
from automc.reopening import reopened
from automc.result import Finalist
from automc.rundir import RunDir
from automc.solver import smallest, solve
from automc.standing import Standing
from automc.task import Task

__all__ = ["Resolved", "certify_budget"]

_ROUNDS = 3
_AT_ONCE = 3
_TIGHTER = (1.0, 0.95, 0.9)
"""Shares of the limits that the candidates of a round are solved for."""
_MARGIN = 0.99


@dataclass(frozen=True)
class Resolved:
    """What was measured for a new budget.

    Attributes:
        best: the best score that holds the budget as measured; None where nothing did.
        nearest: what came nearest; None where nothing could be measured.
        folder: where the files of `best` are.
    """

    best: Finalist | None
    nearest: Finalist | None
    measured: tuple[Finalist, ...]
    folder: Path | None


def certify_budget(
    run: RunDir, known: Known, texts: Sequence[str], observer: Observer, *, recover_s: float = 0.0
) -> Resolved:
    """Measure what the run's tables answer for a budget, tightening it until something holds; best/ is left as it is.

    Raises:
        InputError: the run's model or data cannot be loaded, or are no longer what they were.
        AutomcError: nothing could be exported and measured.
    """
    opened = reopened(run, remedy="Restore it, use --no-certify, or search again.")
    task, prepared = opened.task, opened.prepared(observer)
    budget = Budget.parse(*texts)
    certifier = Certifier(prepared, budget, task.batch_size, task.settings.seed)
    limits = budget.resolve(certifier.dense.cost)
    standing = Standing(prepared, budget, limits, certifier.dense, prepared.predictor)
    for candidates in _candidates(standing, known):
        observer.stage("measure the answers", None)
        _note(standing, certifier.certify(candidates), observer)
        if standing.best is not None:
            break
    if not standing.certified:
        raise AutomcError("Nothing that was solved for could be measured.", remedy="The messages above say why.")
    if standing.best is not None and recover_s > 0:
        _recover(standing, certifier, recover_s, task.settings.seed, observer)
    return _kept(run, standing, texts, prepared, task)


def _candidates(standing: Standing, known: Known) -> Iterator[list[Candidate]]:
    """Round after round what is worth measuring; the limits tighten by what the nearest so far exceeds them."""
    share = 1.0
    for round_ in range(_ROUNDS):
        solved = [_solved(standing, known, share * tighter) for tighter in _TIGHTER]
        tried = known.tried(standing.limits) if round_ == 0 else None
        before = known.measured(standing.limits) if round_ == 0 else None
        policies = [*solved[:1], *(one.policy for one in (before, tried) if one and len(one.policy)), *solved[1:]]
        measured = {c.candidate.policy for c in standing.certified}
        explicit = dict.fromkeys(standing.explicit(policy) for policy in policies if policy is not None)
        fresh = [policy for policy in explicit if policy not in measured and policy.digest not in standing.failed]
        stitcher = standing.prepared.stitcher
        if fresh:
            yield [Candidate(policy, stitcher.finished(policy)) for policy in fresh[:_AT_ONCE]]
        if standing.smallest is not None:
            excess = max(0.0, standing.limits.violation(standing.smallest.finalist.cost))
            share *= min(_MARGIN / (1.0 + excess), min(_TIGHTER))


def _solved(standing: Standing, known: Known, share: float) -> Policy | None:
    assert known.tables is not None
    limits = {metric: share * limit for metric, limit in limits_of(standing.limits).items()}
    answer = solve(known.tables, limits) or smallest(known.tables, limits)
    return None if answer is None else answer.policy


def _note(standing: Standing, found: Sequence[Certified | Failed], observer: Observer) -> None:
    for one in found:
        if isinstance(one, Certified):
            standing.certified.append(one)
            continue
        standing.failed.add(one.candidate.policy.digest)
        observer.message(f"{one.candidate.policy.digest} could not be measured: {one.reason}", "warning")


def _recover(standing: Standing, certifier: Certifier, seconds: float, seed: int, observer: Observer) -> None:
    """Fine-tune the best and measure it again."""
    best = standing.best
    assert best is not None
    observer.stage("recover the answer", seconds)
    try:
        model = recover(best.candidate.model, standing.prepared, seconds=seconds, seed=seed, advance=observer.advance)
    except Exception as error:  # a model that cannot be trained is handed over as it is
        observer.message(f"Recovery failed and is left out: {type(error).__name__}: {error}", "warning")
        return
    before = (best.finalist.validation, best.finalist.test)
    candidate = dataclasses.replace(best.candidate, model=model, stage="recovered", before_recovery=before)
    observer.stage("measure the answer", None)
    _note(standing, certifier.certify([candidate]), observer)


def _kept(run: RunDir, standing: Standing, texts: Sequence[str], prepared: Prepared, task: Task) -> Resolved:
    best, nearest = standing.best, standing.smallest
    folder = None
    if best is not None:
        folder = run.solved(texts).write(
            best.finalist, best.onnx, best.certificate, model_digest=model_digest(task.model),
            device_digest=prepared.device.key,
        )  # fmt: skip
    measured = tuple(c.finalist for c in standing.certified)
    return Resolved(best.finalist if best else None, nearest.finalist if nearest else None, measured, folder)
