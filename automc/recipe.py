"""What a person asks of a search, in their own words: nothing is read, loaded or measured yet."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal

from automc.errors import InputError
from automc.units import seconds_as_text

__all__ = ["Fidelity", "Job", "RecordedTrials"]

Fidelity = Literal["auto", "on", "off"]
"""Whether candidates are told apart by short distillations: "auto" where the winner lost much."""
RecordedTrials = Literal["front", "all"]
"""Which trials get an MLflow run of their own besides the measured models."""

_DURATIONS = ("timeout", "recover", "profile", "trial_timeout")
_SEVERAL = ("budget", "objective")


@dataclass(frozen=True)
class Job:
    """Everything that a search is made of, as a person writes it; the fields of a recipe.

    Attributes:
        model, weights, data, evaluate: as in `automc search --help`; None takes the built-in demo.
        batch_size: samples per inference; None takes 1, or the demo's own.
        criterion: which channels are pruned first: "obs", which also refits the layers that read them, "fisher", which weighs
            their errors by what they cost, or a criterion of the literature ("l1", "l2", "bn", "taylor", "fpgm", "apoz", "lamp", "random"),
            followed by the same refit.
        timeout, recover, profile: durations such as "10m", or seconds: of the whole search, of fine-tuning (0 is off), and of
            measuring the device the first time.
        fidelity: "on" tells candidates apart by short distillations in a part of that time, "auto" where the winner lost much.
        finetune_epochs: of the winner at the end, by several trainings side by side; 0 is off.
        warm_start: a run whose policies are tried first, or a JSON or YAML file with a policy of another tool.
        objective: metrics ("latency", "energy", "size", "macs") that the front is drawn in besides the limited ones.
        name: of the run; one that exists is resumed. None makes one from model, budget and time.
        tracking_uri: MLflow server or store, None for MLFLOW_TRACKING_URI or ./mlflow.db, "" for none.
        workers: evaluations at a time, or "auto" for as many as there is room for; 1 without `ray_address` needs no Ray.
        worker_cpus: CPUs of one worker, and threads of its evaluations.
        ray_address: of a Ray cluster, None for this machine; `ray_env` is a YAML file of the workers' runtime_env.
        trial_timeout: after which an evaluation is given up and tried once more on another worker.
        sync: workers wait for each other, so that the same seed gives the same trials.
        mlflow_trials: which trials get an MLflow run of their own besides the measured models.
        register: name in MLflow's model registry for the best models; None registers none.
        made_in: folder in which relative paths are looked for where they are not there from the current one.

    Raises:
        InputError: a field holds another type than it should; names the field. Seconds become durations, and one limit several.
    """

    budget: tuple[str, ...] = ("50ms",)
    model: str | None = None
    weights: str | None = None
    data: str | None = None
    evaluate: str | None = None
    batch_size: int | None = None
    device: str = "cpu"
    threads: int = 1
    agent: str = "auto"
    space: str = "default"
    criterion: str = "obs"
    trials: int = 60
    timeout: str | None = None
    seed: int = 0
    warm_start: str | None = None
    objective: tuple[str, ...] = ()
    recover: str = "1m"
    fidelity: Fidelity = "auto"
    finetune_epochs: int = 0
    profile: str = "30s"
    name: str | None = None
    runs: str = "runs"
    tracking_uri: str | None = None
    workers: int | str = 1
    worker_cpus: float = 1.0
    ray_address: str | None = None
    ray_env: str | None = None
    trial_timeout: str | None = None
    sync: bool = False
    mlflow_trials: RecordedTrials = "front"
    register: str | None = None
    made_in: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _as_written(field.name, str(field.type).split(" | "), getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def _as_written(name: str, types: list[str], value: Any) -> Any:
    """What a field holds of a value given in Python: text, whole numbers and tuples of texts where these are meant."""
    if value is None and "None" in types:
        return None
    if name in _DURATIONS:
        return _checked(name, seconds_as_text(value), str, "Write 90s, 10m or 1h, or give seconds; 0 is off.")
    if name in _SEVERAL:
        several = (value,) if isinstance(value, str) or not isinstance(value, (tuple, list)) else value
        example = "50ms, 60% or 2MB" if name == "budget" else "latency, size or macs"
        return tuple(_checked(name, each, str, f"Write {example}.") for each in several)
    if types[0] == "str":
        return _checked(name, os.fspath(value) if isinstance(value, os.PathLike) else value, str, "Give a text.")
    if types == ["int"] or types == ["int", "None"]:
        return int(_checked(name, value, Integral, "Give a whole number."))
    return float(_checked(name, value, Real, "Give a number.")) if types == ["float"] else value


def _checked(name: str, value: Any, expected: type, remedy: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, expected):
        raise InputError(f"{name} is {value!r}.", remedy=remedy)
    return value
