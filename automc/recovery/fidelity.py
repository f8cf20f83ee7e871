"""Successive halving of a search's candidates: a short distillation for many, a longer one for the best of them.

Jamieson and Talwalkar 2016, arXiv 1502.07943. Once compression is strong, the score of a stitched model says little about what it
recovers to; what it recovers to in a few steps says more. Full recovery, the last fidelity, is left to those that come out on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from automc.errors import AutomcError
from automc.policy import Policy
from automc.prepare import Prepared
from automc.protocols import Observer
from automc.recovery.planning import seconds_of_examination, seconds_per_step
from automc.recovery.recover import taught
from automc.recovery.student import Lesson

__all__ = ["FEWEST", "LONG", "MOST", "SHORT", "Promise", "distilled", "halve", "rungs"]

Promise: TypeAlias = tuple[int, float, float]
"""Steps of the longest distillation, worth and negative divergence after it: the greater tuple promises more."""

SHORT, LONG = 50, 200
"""Steps of the two distillations."""
SHORTEST = 20
"""Steps of the only one where there is no time for more."""
FEWEST, MOST = 4, 12
"""Candidates of the short one: fewer are no choice, more leave no time."""
FEW = 3
"""Candidates of the long one."""


def rungs(candidates: int, steps: float, extra: float = 0.0) -> list[tuple[int, int]]:
    """(steps, candidates) of each distillation that fits into `steps` of training; none where they allow no choice.

    Args:
        extra: what a distillation takes besides its steps, in steps.
    """
    count = min(candidates, MOST)
    least, short, long = min(count, FEWEST), SHORT + extra, FEW * (LONG + extra)
    if count < 2 or steps < least * (min(SHORTEST, SHORT) + extra):
        return []
    if steps < least * short:
        return [(int(steps / least - extra), least)]
    if steps < least * short + long:
        return [(SHORT, min(count, int(steps // short)))]
    first = min(count, int((steps - long) // short))
    return [(SHORT, first), (LONG, min(FEW, first))]


def halve(
    policies: Sequence[Policy], prepared: Prepared, *, seconds: float, seed: int, observer: Observer
) -> dict[Policy, Promise]:
    """What each policy promises, the most promising first; empty where `seconds` are too few to tell.

    Args:
        policies: the most promising first as far as is known.
    """
    if len(policies) < 2:
        return {}
    lesson = Lesson.of(prepared)
    model = prepared.stitcher.finished(policies[0])
    step_s, examination_s = seconds_per_step(model, lesson), seconds_of_examination(model, lesson)
    planned = rungs(len(policies), seconds / step_s, 2 * examination_s / step_s)
    if not planned:
        observer.message(
            f"Candidates are told apart by their scores alone: {seconds:.0f} s are too few to distil some of them for a while; "
            f"a longer --recover does."
        )
        return {}
    observer.stage("distil candidates", float(sum(count for _, count in planned)) or None)
    found: dict[Policy, Promise] = {}
    for steps, count in planned:
        for policy in list(found or policies)[:count]:
            found[policy] = distilled(policy, prepared, lesson, steps, seed)
            observer.advance(1.0, f"{steps} steps, worth {found[policy][1]:.4f}")
        found = dict(sorted(found.items(), key=lambda item: item[1], reverse=True))
    return found


def distilled(policy: Policy, prepared: Prepared, lesson: Lesson, steps: int, seed: int) -> Promise:
    """What a policy is worth after so many steps of distillation."""
    model = prepared.stitcher.finished(policy)
    best = lesson.judge.examine(model)
    try:
        after = lesson.judge.examine(taught(model, lesson, lambda step: step / steps, seed=seed))
    except AutomcError:  # the loss or the score is not finite: the model promises what it is
        after = best
    best = max(best, after, key=lambda found: found["worth"])
    return steps, best["worth"], -best["divergence"]
