"""Warm starts: policies found elsewhere, moved to what this search offers and evaluated first.

From an earlier run (another budget, another device, another model of the same family) or from a file of another tool.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from automc.errors import InputError
from automc.foreign import read_foreign
from automc.graph import LayerGraph
from automc.policy import LowRank, Policy, Prune, Quantize, Sparsify, Spec
from automc.pricing import Pricing
from automc.protocols import Agent, Problem
from automc.rundir import RunDir
from automc.space import Codes, Domain, SearchSpace, summed
from automc.trial import Trial

__all__ = ["Start", "WarmStart", "find_start", "nearest", "read_start"]

Array = NDArray[np.float64]
_LEAST_LOSS, _UNKNOWN_LOSS = 1e-9, 1e9
_FILES = (".json", ".yaml", ".yml")
_POLICIES = 8
"""How many policies of an earlier run are tried at most."""


@dataclass(frozen=True)
class Start:
    """Policies to begin with, the most promising first, and the dense widths of the channel groups they were made for."""

    policies: tuple[Policy, ...]
    widths: Mapping[str, int] = field(default_factory=dict)


def find_start(name: str, runs: str | Path) -> Path | RunDir:
    """The file or the run that `--warm-start` names: a run in the folder `runs`, the path of one or of its front, or a JSON or YAML file.

    Raises:
        UnknownNameError: neither; carries the closest run.
        InputError: there is no such file, it is neither JSON nor YAML, or the run has no scored trials.
    """
    path = Path(name).expanduser()
    is_front = path.name == "front.json" and RunDir(path.parent).exists()
    if path.is_file() and not is_front:
        _contents(path)
        return path
    here = RunDir(path.parent if is_front else path)
    if path.suffix in _FILES and not here.exists() and not RunDir(Path(runs) / name).exists():
        raise InputError(f"There is no file {name}.", remedy="Name a policy file that is there, or an earlier run.")
    run = here if here.exists() else RunDir.open(runs, name)
    if not any(trial.state == "complete" for trial in run.trials()):
        raise InputError(f"The run {run.name!r} has no scored trials to start from.", remedy="Choose another run.")
    return run


def read_start(name: str, runs: str | Path, graph: LayerGraph) -> Start:
    """The policies of `--warm-start`: the winner and the front of a run, best score first, or that of a file.

    Raises:
        InputError: it cannot be found or read, or nothing in it fits the model.
    """
    found = find_start(name, runs)
    if isinstance(found, Path):
        return Start((read_foreign(_contents(found), graph),), graph.widths)
    return Start(tuple(_front(found.trials())), _widths(found))


def nearest(space: SearchSpace, policy: Policy, widths: Mapping[str, int], made_for: Mapping[str, int]) -> Policy:
    """The policy of `space` whose choices are nearest to those of `policy`; what the space does not offer stays dense.

    Args:
        widths: channel group -> dense width here.
        made_for: the same of the model that the policy was made for, so that keep counts carry over as shares.
    """
    wanted = {(target, spec.knob): spec for target, spec in policy}
    choices = []
    for domain in space.domains:
        spec = wanted.get((domain.target, domain.knob))
        width = widths.get(domain.target, 0)
        if spec is not None and (choice := _nearest(domain, spec, width, made_for.get(domain.target, width))):
            choices.append((domain.target, choice))
    return Policy.of(choices)


@dataclass
class WarmStart:
    """An agent that asks the policies of a start first and then another agent; all trials are told to that one.

    A policy outside the budget is first taken into it, by the changes that save most per loss added where losses are known.
    """

    agent: Agent
    problem: Problem
    policies: Sequence[Policy]
    seed: int = 0

    def __post_init__(self) -> None:
        pricing, rng = Pricing(self.problem), np.random.default_rng(self.seed)
        rows = self.problem.space.encode(self.policies)
        inside = [pricing.shrink(_gently(pricing, self.problem.sensitivity, row), rng) for row in rows]
        decoded = self.problem.space.decode(np.array(inside)) if inside else []
        self._left = list(dict.fromkeys(decoded))
        self._asked: set[Policy] = set()

    def ask(self, count: int) -> Sequence[Policy]:
        """The policies of the start not yet known, then those of the agent."""
        first, self._left = self._left[:count], self._left[count:]
        self._asked.update(first)
        more = self.agent.ask(count - len(first)) if len(first) < count else []
        return [*first, *(policy for policy in more if policy not in first)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell the agent, and drop from the start what is known."""
        known = {trial.policy for trial in trials}
        self._left = [policy for policy in self._left if policy not in known]
        self.agent.tell(trials)


def _gently(pricing: Pricing, losses: Sequence[Array] | None, row: Codes) -> Codes:
    """`row`, changed greedily until it holds the budget or nothing takes usage off any more; as it is without sensitivities.

    A loss that is unknown counts as very large.
    """
    if losses is None:
        return row
    known = [np.nan_to_num(np.maximum(loss, 0.0), nan=_UNKNOWN_LOSS, posinf=_UNKNOWN_LOSS) for loss in losses]
    while not pricing.holds(row[None])[0]:
        moves, used, usage = pricing.priced_around(row)
        saved = usage.max() - used.max(axis=1)
        added = summed(known, moves) - summed(known, row)
        worth = np.where(saved > 0.0, saved / np.maximum(added, _LEAST_LOSS), 0.0)
        if not len(worth) or worth.max() <= 0.0:
            break
        row = moves[int(worth.argmax())]
    return row


def _front(trials: Iterable[Trial]) -> list[Policy]:
    """Up to a few policies that no other beats in both score and latency, the best score first."""
    scored = [t for t in trials if t.state == "complete" and t.score is not None and len(t.policy)]
    chosen: list[Policy] = []
    fastest = math.inf
    for trial in sorted(scored, key=lambda t: (-(t.score or 0.0), t.cost.latency_s or math.inf)):
        latency_s = trial.cost.latency_s or math.inf
        if latency_s < fastest and trial.policy not in chosen:
            fastest = latency_s
            chosen.append(trial.policy)
    spread = np.unique(np.linspace(0, len(chosen) - 1, min(_POLICIES, len(chosen))).round().astype(int))
    return [chosen[i] for i in spread]


def _widths(run: RunDir) -> Mapping[str, int]:
    """The dense widths of a run's model; unknown where its search did not end."""
    return run.summary().widths if (run.path / "summary.json").is_file() else {}


def _contents(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read: {reason}.", remedy="Give a JSON or YAML file, or a run.") from error


def _nearest(domain: Domain, spec: Spec, width: int, made_for: int) -> Spec | None:
    """The choice whose share of what is kept is nearest, of the same kind where there is one."""
    wanted = _kept(spec, made_for)
    alike = [choice for choice in domain.choices if choice is None or _kind(choice) == _kind(spec)]
    if len(alike) == 1:
        alike = list(domain.choices)
    return min(alike, key=lambda choice: abs((1.0 if choice is None else _kept(choice, width)) - wanted))


def _kept(spec: Spec, width: int) -> float:
    """What a choice keeps, as a share where that is known; ranks are compared as they are, dense being without bound."""
    if isinstance(spec, Prune):
        return spec.keep / max(width, spec.keep)
    if isinstance(spec, Quantize):
        return spec.weight_bits / 32.0
    if isinstance(spec, Sparsify):
        return spec.density
    return -1.0 / spec.rank if isinstance(spec, LowRank) else 1.0


def _kind(spec: Spec) -> object:
    if isinstance(spec, LowRank):
        return spec.method
    if isinstance(spec, Quantize):
        return spec.activation_bits >= 32
    return spec.pattern if isinstance(spec, Sparsify) else None
