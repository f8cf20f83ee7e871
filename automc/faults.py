"""What is wrong with a search before anything is spent on it, all of it at once: what `automc check` prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from automc.budget import Budget
from automc.compression.criteria import Pruning
from automc.errors import AutomcError, DiskError, InputError, MissingError, UnknownNameError
from automc.evaluate.data import Data, sample_count
from automc.evaluate.inputs import Fault, check_data, check_match, check_weights
from automc.evaluate.loading import load_data
from automc.evaluate.models import load_model
from automc.evaluate.score import load_score
from automc.execute.parallel import Parallel, check_room, local_cpus
from automc.predict.targets import device_names, is_device, tells_energy, why_no_energy
from automc.recipe import Fidelity, Job, RecordedTrials
from automc.registry import load, names
from automc.units import METRIC_NAMES, parse_duration
from automc.warm import find_start

__all__ = ["check_budget", "find_faults", "find_setting_faults", "raise_faults"]

_T = TypeVar("_T")
_READING_BATCH = 64
_OTHER_BUDGETS = "latency (50ms), size (4MB) or MACs (20MMACs)"


def find_faults(job: Job) -> list[Fault]:
    """Every fault of a job, each with its remedy; an empty list when its search can start.

    Loads the model and the data and runs the model on a few samples; measures, compresses, writes and connects to nothing.
    """
    return [*find_setting_faults(job), *_task_faults(job)]


def find_setting_faults(job: Job) -> list[Fault]:
    """The faults that show without loading the model and the data."""
    faults: list[Fault] = []
    limits = _try(faults, lambda: Budget.parse(*job.budget))
    faults.extend(check_budget(limits, job.device) if limits else ())
    faults.extend(_objective_faults(job.objective, job.device))
    if not is_device(job.device):
        faults.append(Fault.of(UnknownNameError("device", job.device, device_names())))
    for kind, plug_in in (("agent", job.agent), ("space", job.space)):
        if plug_in not in names(kind):
            faults.append(Fault.of(UnknownNameError(kind, plug_in, names(kind))))
    if job.mlflow_trials not in get_args(RecordedTrials):
        remedy = f"Give {' or '.join(get_args(RecordedTrials))}."
        faults.append(Fault(f"--mlflow-trials is {job.mlflow_trials!r}.", remedy))
    _try(faults, lambda: Pruning(job.criterion))
    if job.agent in names("agent"):
        _try(faults, lambda: load("agent", job.agent))  # what it needs may not be installed
    if (start := job.warm_start) is not None:
        _try(faults, lambda: find_start(start, job.runs))
    faults.extend(_number_faults(threads=job.threads, trials=job.trials, batch_size=job.batch_size, seed=job.seed))
    if job.fidelity not in get_args(Fidelity):
        faults.append(Fault.of(UnknownNameError("fidelity", job.fidelity, get_args(Fidelity), "fidelities")))
    if job.finetune_epochs < 0:
        faults.append(Fault(f"--finetune-epochs is {job.finetune_epochs}.", "Give 0 or more; 0 is off."))
    faults.extend(_worker_faults(job.workers, job.worker_cpus, job.ray_address))
    faults.extend(
        _duration_faults(timeout=job.timeout, recover=job.recover, profile=job.profile, trial_timeout=job.trial_timeout)
    )
    faults.extend(_folder_faults(job.runs, job.name))
    return faults


def _objective_faults(objective: Sequence[str], device_name: str) -> list[Fault]:
    unknown = [name for name in objective if name not in METRIC_NAMES]
    if unknown:
        return [Fault.of(UnknownNameError("objective", name, METRIC_NAMES)) for name in unknown]
    if "energy" in objective and not tells_energy(device_name):
        why, remedy = why_no_energy(device_name)
        wrong = f"The device {device_name!r} has no energy figures. {why}"
        return [Fault(wrong, f"{remedy}, or leave --objective energy out.")]
    return []


def check_budget(budget: Budget, device_name: str) -> list[Fault]:
    """A limit on energy where the device cannot tell it, so that nothing could be promised about it; with the reason."""
    if budget.limit("energy_j") is None or tells_energy(device_name):
        return []
    why, remedy = why_no_energy(device_name)
    wrong = f"The device {device_name!r} has no energy figures, so it cannot hold a budget on them. {why}"
    return [Fault(wrong, f"{remedy}, or give a budget on {_OTHER_BUDGETS}.")]


def raise_faults(faults: Sequence[Fault]) -> None:
    """Stop if there are faults.

    Raises:
        MissingError: with all of them, one a line, when each is of something not installed or not writable.
        InputError: with all of them, one a line, otherwise.
    """
    if not faults:
        return
    missing = all(fault.exit_code == MissingError.exit_code for fault in faults)
    raise (MissingError if missing else InputError)("\n".join(faults))


def _task_faults(job: Job) -> list[Fault]:
    """Faults of the model, the data, the score, and, where these are sound, of their match."""
    faults: list[Fault] = []
    batch_size = job.batch_size or 1
    loaded = _try(faults, lambda: load_model(job.model, Path(job.weights) if job.weights else None))
    found = _try(faults, lambda: load_data(job.data, max(_READING_BATCH, batch_size)))
    score = _try(faults, lambda: load_score(job.evaluate))
    if loaded is not None:
        faults.extend(check_weights(loaded))
    if found is not None:
        faults.extend(check_data(found))
        faults.extend(_size_faults(found, batch_size))
    if loaded is not None and found is not None and score is not None and not faults:
        faults.extend(check_match(loaded, found, score))
    return faults


def _size_faults(data: Data, batch_size: int) -> Iterator[Fault]:
    counts = {split: count for split, data_ in data.splits.items() if (count := sample_count(data_)) is not None}
    largest = max(counts, key=lambda split: counts[split], default="")
    if len(counts) == len(data.splits) and counts[largest] < batch_size:
        wrong = f"A batch of {batch_size} is larger than the largest split ({largest}, {counts[largest]} samples)."
        yield Fault(wrong, f"Give --batch-size {counts[largest]} or less.")


def _number_faults(*, seed: int, **counts: int | None) -> Iterator[Fault]:
    for option, value in counts.items():
        if value is not None and value < 1:
            yield Fault(f"{_spelled(option)} is {value}.", "Give 1 or more.")
    if seed < 0:
        yield Fault(f"--seed is {seed}.", "Give 0 or more.")


def _worker_faults(workers: int | str, cpus: float, address: str | None) -> Iterator[Fault]:
    if workers != "auto" and not (isinstance(workers, int) and workers >= 1):
        yield Fault(f"--workers is {workers!r}.", "Give 1 or more, or auto.")
    elif not cpus > 0:
        yield Fault(f"--worker-cpus is {cpus:g}.", "Give more than 0, such as 0.5 or 4.")
    elif address is None and workers != 1 and "ray" not in sys.modules:  # which may be connected to a cluster already
        count = None if workers == "auto" else int(workers)
        try:
            check_room(Parallel(count, cpus=cpus), local_cpus(), "this machine")
        except InputError as error:
            yield Fault.of(error)


def _duration_faults(**durations: str | None) -> Iterator[Fault]:
    for option, text in durations.items():
        try:
            parse_duration("0" if text is None else text)
        except ValueError:
            yield Fault(f"{_spelled(option)} {text!r} is not a duration.", "Write 90s, 10m or 1h; 0 is off.")


def _spelled(option: str) -> str:
    """An option as the command line has it."""
    return f"--{option.replace('_', '-')}"


def _folder_faults(runs: str, name: str | None) -> Iterator[Fault]:
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        yield Fault(f"{name!r} cannot name a run.", "Give a folder name without slashes, and --runs for the place.")
    place = Path(runs).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield Fault(
            f"{place} is a file, so no run can be kept there.", "Point --runs at a folder.", DiskError.exit_code
        )
    elif not os.access(place, os.W_OK | os.X_OK):
        yield Fault(f"The folder {place} is read-only.", "Point --runs at one you may write to.", DiskError.exit_code)


def _try(faults: list[Fault], action: Callable[[], _T]) -> _T | None:
    """The result of `action`, or None with its error noted."""
    try:
        return action()
    except AutomcError as error:
        faults.append(Fault.of(error))
        return None
