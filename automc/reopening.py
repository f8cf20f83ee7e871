"""A run opened again: the job that it was made by, and what the job names, loaded and known to be what it was."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from automc.clock import Clock
from automc.devices.device import Device
from automc.errors import InputError
from automc.evaluate.models import model_digest
from automc.job import Job
from automc.joules import check_power
from automc.predict.targets import open_device
from automc.prepare import Prepared
from automc.protocols import Observer
from automc.rundir import RunDir
from automc.task import Task, prepare_job

__all__ = ["Reopened", "check_unchanged", "job_of", "reopened"]


@dataclass(frozen=True)
class Reopened:
    """What a run was made of, once more."""

    run: RunDir
    job: Job
    task: Task
    device: Device

    def prepared(self, observer: Observer) -> Prepared:
        """Its model, data and device, ready for more; the losses of single choices are those that the run measured."""
        return prepare_job(self.job, self.task, self.device, observer, Clock(), tables=self.run.tables())


def reopened(
    run: RunDir, model: nn.Module | None = None, data: Any = None, evaluate: Any = None, *, remedy: str
) -> Reopened:
    """Load what the job of a run names.

    Args:
        model, data, evaluate: in place of what the job names, where the run was made with objects.
        remedy: what to do where the model or the data is another.

    Raises:
        InputError: the model or the data cannot be loaded or are not those of the run, or its energy is predicted by another power.
    """
    job = job_of(run)
    device = open_device(job.device, job.threads)
    check_power(device, run.config())
    task = Task.of(job, model, data, evaluate)
    check_unchanged(run, task, remedy=remedy)
    return Reopened(run, job, task, device)


def check_unchanged(run: RunDir, task: Task, *, remedy: str) -> None:
    """Refuse a model or data that are not those of the run.

    Raises:
        InputError: they are not, with the `remedy`.
    """
    config = run.config()
    for what, found in (("model", model_digest(task.model)), ("data", task.data.digest)):
        if config.get(f"{what}_digest") != found:
            raise InputError(f"The {what} is not what the run {run.name!r} was made with.", remedy=remedy)


def job_of(run: RunDir) -> Job:
    """The job that a run was made by.

    Raises:
        InputError: its config.yaml is not that of a search.
    """
    config = run.config()
    config["tracking_uri"] = config.pop("tracking", None)
    values = {field.name: config[field.name] for field in dataclasses.fields(Job) if field.name in config}
    try:
        several = {"budget": tuple(values["budget"]), "objective": tuple(values.get("objective", ()))}  # YAML has lists
        return Job(**{**values, **several, "name": run.name, "runs": str(run.path.parent)})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{run.path / 'config.yaml'} is not that of a search.", remedy="Choose another run."
        ) from error
