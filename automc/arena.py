"""The arena: every agent on the same problem, with equal evaluations and equal seeds, on real evaluations kept on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import nn

from automc import __version__, registry
from automc.aim import Aim, Expected
from automc.budget import Budget
from automc.certify import Certifier
from automc.clock import Clock
from automc.devices.device import digest
from automc.disk import write_atomic
from automc.errors import AutomcError, InputError, PluginError
from automc.evaluate.data import inputs_of
from automc.evaluate.divergence import divergence
from automc.evaluate.fast import is_comparable
from automc.evaluate.models import model_digest
from automc.execute.serial import Serial
from automc.guard import Guarded
from automc.idle import without_idle
from automc.league import Course, League, Recovered
from automc.loop import Loop
from automc.policy import Policy
from automc.predict.targets import open_device
from automc.prepare import Prepared
from automc.protocols import Agent, Observer, Problem, Scored
from automc.recipe import Job
from automc.recovery.recover import recover
from automc.recovery.student import Lesson
from automc.reopening import check_unchanged
from automc.rundir import RunDir
from automc.scorebook import Scorebook, append_line, read_lines
from automc.space import summed
from automc.tables import Tables
from automc.task import Task, prepare_job
from automc.trial import Trial

__all__ = ["Arena", "Timed", "open_arena", "run_course"]

_BATCH = 4
_RECOVERY = "2"
"""Changes whenever recovery leads elsewhere, so that winners of before are recovered anew."""
_SCORES = "2"
"""Version of what is kept about an evaluation: scores, and since 2 what they are worth."""


@dataclass
class Timed:
    """An agent whose own CPU seconds are counted."""

    agent: Agent
    seconds: float = 0.0

    def ask(self, count: int) -> Sequence[Policy]:
        """As of the agent."""
        start = time.process_time()
        asked = self.agent.ask(count)
        self.seconds += time.process_time() - start
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """As of the agent."""
        start = time.process_time()
        self.agent.tell(trials)
        self.seconds += time.process_time() - start


@dataclass
class Arena:
    """A problem that agents compete on.

    Attributes:
        limits: the budget in absolute figures.
        folder: where scores are kept.
        courses: what has been run so far.
        recovered: key of a policy -> scores of its fine-tuned model on the test samples.
    """

    task: Task
    prepared: Prepared
    limits: Budget
    certifier: Certifier
    book: Scorebook
    folder: Path
    key: str
    courses: list[Course] = field(default_factory=list)
    recovered: dict[str, Recovered] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def league(self) -> League:
        """The comparison so far."""
        dense = self.certifier.dense
        cost = dense.cost.get(self.limits.metrics[0]) or 0.0
        return League(self.courses, self.limits, (cost, dense.validation), self.recovered)

    def run(self, agent: str, seed: int, evaluations: int, advance: Callable[[float], None] = lambda _: None) -> Course:
        """Let an agent search, and note how it went; one that raises ends its own course alone."""
        expected, dense = Expected(self.prepared.predictor, Aim()), self.certifier.dense
        problem = without_idle(self.prepared.problem(self.limits, expected, dense.validation, evaluations))
        course = run_course(agent, seed, evaluations, problem, self.book, advance)
        self.courses.append(course)
        policies = [trial.policy for trial in course.trials]
        losses = summed(self.prepared.sensitivity, problem.space.encode(policies))
        self.losses.update(zip((policy.digest for policy in policies), losses.tolist(), strict=True))
        return course

    def recover(self, seconds: float, observer: Observer) -> None:
        """Score the winner of every course on the test samples, each policy once, and again after fine-tuning it for `seconds`.

        Raises:
            InputError: the data have no test samples.
        """
        if self.prepared.data.test is None:
            raise InputError("There are no test samples to judge recovery by.", remedy="Use --recover 0.")
        path = self.folder / f"recovered-{digest(self.key, _RECOVERY)}-{seconds:g}s.jsonl"
        known = {str(line["digest"]): _read_recovered(line) for line in read_lines(path)}
        winners = [w.policy for c in self.courses if (w := self.league.winner(c)) is not None]
        observer.stage("recover the winners" if seconds else "score the winners", len(set(winners)) * (seconds or 1.0))
        for policy in dict.fromkeys(winners):
            if policy.digest not in known:
                known[policy.digest] = found = self._recovered(policy, seconds)
                append_line(path, {"digest": policy.digest, **found.to_json()})
            observer.advance(seconds or 1.0)
        self.recovered.update(known)

    def correlations(self) -> dict[str, tuple[float, int]]:
        """Kendall's tau of each proxy, and over how many policies."""
        trials = {t.policy.digest: t for c in self.courses for t in c.trials if t.score is not None}
        inside = {d: t for d, t in trials.items() if self.league.holds(t)}
        found = {
            "summed losses with the score": _tau([(-self.losses[d], t.score or 0.0) for d, t in trials.items()]),
            "the same inside the budget": _tau([(-self.losses[d], t.score or 0.0) for d, t in inside.items()]),
        }
        if self.recovered:
            known = [(d, r.before, r.after) for d, r in self.recovered.items() if d in trials]
            after = [(d, score) for d, _, score in known if score is not None]
            found["the score with the held-out one"] = _tau([(trials[d].score or 0.0, score) for d, score, _ in known])
            found["the score with the recovered one"] = _tau([(trials[d].score or 0.0, score) for d, score in after])
            found["summed losses with the recovered score"] = _tau([(-self.losses[d], score) for d, score in after])
        return found

    def _recovered(self, policy: Policy, seconds: float) -> Recovered:
        model = self.prepared.stitcher.finished(policy)
        before, away = self._held_out(model)
        if seconds == 0:
            return Recovered(before, away=away)
        tuned = recover(model, self.prepared, seconds=seconds, seed=self.task.settings.seed)
        return Recovered(before, away=away, **dict(zip(("after", "away_after"), self._held_out(tuned), strict=True)))

    @torch.no_grad()
    def _held_out(self, model: nn.Module) -> tuple[float, float]:
        """Score, and divergence from the dense model, on the test samples."""
        score = self.certifier.scores(self.prepared.build(model))[1]
        assert score is not None
        lesson = Lesson.of(self.prepared)
        found = [
            (len(inputs[0]), divergence(lesson.teacher(*inputs), model(*inputs), logits=lesson.logits))
            for inputs in map(inputs_of, self.prepared.data.test or ())
        ]
        return score, sum(count * away for count, away in found) / sum(count for count, _ in found)


def open_arena(job: Job, folder: Path, observer: Observer, *, live: bool = False, run: RunDir | None = None) -> Arena:
    """Load what the job names and measure the device, as a search would.

    What single choices lose is measured on as many samples as the time allows, so it differs from one time to the next, and agents with it: it is
    kept in the folder as the scores are.

    Args:
        live: evaluate everything anew.
        run: a run of the same job, whose scores are taken over, and the losses of single choices where the folder has none.

    Raises:
        InputError: the job cannot be used, the model or the data are no longer those of the run, or the dense model holds the budget.
    """
    task = Task.of(job)
    if run is not None:
        check_unchanged(run, task, remedy="Leave out --run to compare the agents on what there is now.")
    device = open_device(job.device, job.threads)
    told = (
        __version__,
        _SCORES,
        model_digest(task.model),
        task.data.digest,
        task.score.name,
        job.criterion,
        str(job.seed),
    )
    key = digest(*told)
    losses = folder / f"losses-{key}.json"
    kept = None if live else _read_losses(losses) or (run.tables() if run is not None else None)
    prepared = prepare_job(job, task, device, observer, Clock(), tables=kept)
    known = Tables(prepared.space.domains, tuple(tuple(map(float, row)) for row in prepared.sensitivity), (), (), {})
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(losses, json.dumps(known.to_json()) + "\n")
    certifier = Certifier(prepared, task.settings.budget, task.batch_size, job.seed)
    if certifier.dense.holds:
        raise InputError(f"The dense model holds {task.settings.budget}: nothing to compete for.", remedy="Tighten it.")
    limits = task.settings.budget.resolve(certifier.dense.cost)
    evaluator = prepared.evaluator(certifier.dense.validation, observer)

    def key_of(policy: Policy) -> str:
        return prepared.stitcher.explicit(policy).digest

    path = folder / f"scores-{key}.jsonl"
    if live:
        path.unlink(missing_ok=True)
    trials = run.trials() if run is not None and not live else []
    full = (t for t in trials if t.stage == "search" and t.samples is None and is_comparable(t, evaluator))
    taken = {key_of(t.policy): Scored(t.score, t.worth) for t in full if t.score is not None}
    return Arena(task, prepared, limits, certifier, Scorebook(evaluator, path, key_of, taken), folder, key)


def _read_losses(path: Path) -> Tables | None:
    """Losses of single choices that an earlier comparison measured; None where there are none that can be read: they are measured anew."""
    try:
        return Tables.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AutomcError):
        return None


def run_course(
    agent: str, seed: int, evaluations: int, problem: Problem, book: Scorebook, advance: Callable[[float], None]
) -> Course:
    """One search of one agent; whatever it raises becomes the reason why its course ended."""
    trials: list[Trial] = []
    timed, reason = None, ""
    try:
        start = time.process_time()
        make = registry.load("agent", agent)
        guarded = Guarded.of(agent, lambda: make(problem, seed), problem.space)
        timed = Timed(guarded, time.process_time() - start)
        loop = Loop(problem.space, timed, Serial(book), problem.predictor, batch=_BATCH, metrics=problem.budget.metrics)
        for trial in loop.run(evaluations):
            trials.append(trial)
            advance(1.0)
    except PluginError as error:
        reason = Exception.__str__(error)
    except Exception as error:  # an agent's fault must not cost the others their comparison
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return Course(agent, seed, tuple(trials), timed.seconds if timed else 0.0, reason)


def _read_recovered(line: Mapping[str, float | str]) -> Recovered:
    return Recovered(**{name: float(line[name]) for name in ("before", "after", "away", "away_after") if name in line})


def _tau(pairs: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """Kendall's tau over the pairs of finite numbers, and how many there are; not a number below three."""
    finite: NDArray[np.float64] = np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2)
    if len(finite) < 3:
        return float("nan"), len(finite)
    return float(kendalltau(finite[:, 0], finite[:, 1]).statistic), len(finite)
