"""What a job names, loaded: the model, the data, the score and the settings of its search."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from automc.budget import Budget
from automc.clock import Clock
from automc.compression.criteria import Pruning
from automc.devices.device import Device
from automc.engine import Settings
from automc.errors import InputError
from automc.evaluate.data import Data
from automc.evaluate.inputs import check_inputs
from automc.evaluate.loading import as_data, load_data
from automc.evaluate.models import load_model
from automc.evaluate.score import Score, load_score
from automc.execute.parallel import Parallel, local_cpus, read_environment
from automc.faults import find_setting_faults, raise_faults
from automc.locating import located
from automc.prepare import Prepared, prepare
from automc.protocols import Observer
from automc.recipe import Job
from automc.tables import Tables
from automc.tracing.unwrap import unwrapped
from automc.units import METRIC_NAMES, parse_duration

__all__ = ["Task", "prepare_job"]

EVALUATION_BATCH = 64
PROFILING = 0.15
"""Share of a limited time that measuring the device has at most."""


@dataclass(frozen=True)
class Task:
    """The loaded objects of a job."""

    model: nn.Module
    data: Data
    score: Score
    batch_size: int
    settings: Settings
    parallel: Parallel | None
    profile_s: float
    is_demo: bool

    @classmethod
    def of(cls, job: Job, model: nn.Module | None = None, data: Any = None, score: Any = None) -> Task:
        from automc.demo.model import BATCH_SIZE

        job = dataclasses.replace(job, **located(dataclasses.asdict(job)))
        raise_faults(find_setting_faults(job))
        demo = model is None and job.model is None
        if model is not None and (job.weights or job.model):
            raise InputError("Both a module and a model to load were given.", remedy="Give one of them.")
        batch_size = (BATCH_SIZE if demo else 1) if job.batch_size is None else job.batch_size
        settings = _settings(job, batch_size)
        profile_s = min(parse_duration(job.profile), PROFILING * settings.timeout_s)
        parallel = _parallel(job)
        loaded = model if model is not None else load_model(job.model, Path(job.weights) if job.weights else None)
        size = max(EVALUATION_BATCH, batch_size)
        chosen = as_data(data, size, job.seed) if data is not None else load_data(job.data, size, job.seed)
        scored = load_score(job.evaluate) if score is None else Score(getattr(score, "__name__", "score"), score)
        raise_faults(check_inputs(loaded, chosen, scored))
        return cls(unwrapped(loaded), chosen, scored, batch_size, settings, parallel, profile_s, demo)


def _settings(job: Job, batch_size: int) -> Settings:
    timeout_s = math.inf if job.timeout is None else parse_duration(job.timeout) or math.inf
    return Settings(
        budget=Budget.parse(*job.budget),
        agent=job.agent,
        trials=job.trials,
        deadline=None if math.isinf(timeout_s) else time.monotonic() + timeout_s,
        timeout_s=timeout_s,
        finetune_epochs=job.finetune_epochs,
        fidelity=job.fidelity,
        workers=_trainings(job),
        ray_address=job.ray_address,
        seed=job.seed,
        recover_s=parse_duration(job.recover),
        batch_size=batch_size,
        synchronous=job.sync or _in_process(job),
        objectives=tuple(METRIC_NAMES[name] for name in job.objective),
    )


def _trainings(job: Job) -> int:
    """CPUs for fine-tuning: of a cluster what was asked for, of this machine no more than it has."""
    if job.workers == "auto":
        return local_cpus()
    return int(job.workers) if job.ray_address else min(int(job.workers), local_cpus())


def _in_process(job: Job) -> bool:
    return job.workers == 1 and job.ray_address is None


def _parallel(job: Job) -> Parallel | None:
    """The workers of a job; None where it evaluates in this process."""
    if _in_process(job):
        return None
    return Parallel(
        workers=None if job.workers == "auto" else int(job.workers),
        address=job.ray_address,
        cpus=job.worker_cpus,
        trial_timeout_s=None if job.trial_timeout is None else parse_duration(job.trial_timeout) or None,
        environment=read_environment(job.ray_env),
    )


def prepare_job(
    job: Job,
    task: Task,
    device: Device,
    observer: Observer,
    clock: Clock,
    *,
    quiet: Callable[[], object] = lambda: None,
    tables: Tables | None = None,
) -> Prepared:
    """What a job names, ready to be searched; see `prepare`."""
    return prepare(
        task.model, task.data, task.score, device, batch_size=task.batch_size, space=job.space,
        pruning=Pruning(job.criterion, seed=job.seed), seed=job.seed, profile_s=task.profile_s, observer=observer,
        clock=clock, budget=task.settings.watched, quiet=quiet, tables=tables,
    )  # fmt: skip
