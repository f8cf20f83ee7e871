"""Which models of a run answer a budget: what was certified, what was tried, and what the solver would try."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from automc import wording
from automc.answering import Known, as_budget
from automc.policy import Policy
from automc.result import Finalist, Summary
from automc.trial import Cost, Trial
from automc.units import format_quantity

from .provisional import Shown

__all__ = ["Answered", "answers", "repeat_command", "search_command"]


@dataclass(frozen=True)
class Answered:
    """A model for a budget, in words.

    Attributes:
        how: where it comes from: measured (predicted or simulated, where the device is not at hand), tried, or the solver.
        finalist: the certified model, whose file the run keeps; None where there is none.
    """

    how: str
    policy: Policy
    score: str
    cost: str
    note: str
    finalist: Finalist | None = None


def answers(shown: Shown, summary: Summary, metric: str, limit: float) -> list[Answered]:
    """The best model of each kind within `limit` of `metric` and the run's other limits; kinds that have none are left out."""
    budget = as_budget({**summary.limits, metric: limit})
    known, found = Known.of(summary, shown.trials, shown.tables), []
    if (model := known.measured(budget)) is not None:
        found.append(_certified(summary, metric, model))
    if (trial := known.tried(budget)) is not None:
        found.append(_tried(summary, metric, trial))
    solved = known.solved(budget)
    if solved is not None:
        note = f"sum of the choices' losses {solved.loss:.3g} nats; {solved.moved} choices from a policy that was priced as a whole"
        cost = f"{format_quantity(metric, solved.costs[metric])} estimated"
        found.append(Answered("solver's answer, not tried yet", solved.policy, wording.NOTHING, cost, note))
    return found


def repeat_command(shown: Shown) -> str:
    """What repeats the search under another name."""
    return _command(shown, "--name", f"{shown.run.name}-again")


def search_command(shown: Shown, metric: str, limit: float) -> str:
    """What searches for another budget of the same model."""
    text = format_quantity(metric, limit).replace(" ", "")
    return _command(shown, "--budget", text, "--name", f"{shown.run.name}-{text}")


def _command(shown: Shown, *options: str) -> str:
    return f"{shown.run.again} {shlex.join([*options, '--runs', str(shown.run.path.parent)])}"


def _certified(summary: Summary, metric: str, model: Finalist) -> Answered:
    note = f"95 % interval of the latency {wording.interval(model.cost)}" if metric == "latency_s" else model.stage
    cost = wording.known(model.cost, metric)
    kept = model if model.stage != "dense" else None
    return Answered(
        model.source(metric), model.policy, wording.score(summary.score_name, model.validation), cost, note, kept
    )


def _tried(summary: Summary, metric: str, trial: Trial) -> Answered:
    cost: Cost = trial.cost
    note = f"trial {trial.number}; {_spread(metric, cost)}"
    how = f"tried, as {cost.source.get(metric, 'predicted')}"
    return Answered(
        how, trial.policy, wording.score(summary.score_name, trial.score), wording.known(cost, metric), note
    )


def _spread(metric: str, cost: Cost) -> str:
    return f"95 % interval {wording.interval(cost)}" if metric == "latency_s" else "not measured"
