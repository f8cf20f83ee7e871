"""What is wrong with a search before anything is spent on it, all of it at once: what `automc check` prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from automc.budget import Budget
from automc.compression.criteria import Pruning
from automc.errors import AutomcError, DiskError, InputError, MissingError, UnknownNameError
from automc.evaluate.data import Data, sample_count
from automc.evaluate.inputs import Fault, check_data, check_inputs, check_match, check_weights
from automc.evaluate.models import load_model
from automc.evaluate.task import load_data, load_score
from automc.execute.parallel import Parallel, check_room, local_cpus
from automc.predict.targets import device_names, is_device, tells_energy, why_no_energy
from automc.registry import load, names
from automc.units import METRIC_NAMES, parse_duration
from automc.warm import find_start

__all__ = ["Fault", "check_budget", "check_inputs", "find_faults", "find_setting_faults", "raise_faults"]

_T = TypeVar("_T")
_READING_BATCH = 64
_OTHER_BUDGETS = "latency (50ms), size (4MB) or MACs (20MMACs)"


FIDELITIES = ("auto", "on", "off")


def find_faults(
    *,
    budget: str | Sequence[str] | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    data: str | None = None,
    evaluate: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    threads: int = 1,
    agent: str | None = None,
    space: str | None = None,
    criterion: str | None = None,
    trials: int = 1,
    timeout: str | None = None,
    seed: int = 0,
    warm_start: str | None = None,
    objective: Sequence[str] = (),
    recover: str | None = None,
    fidelity: str = "auto",
    finetune_epochs: int = 0,
    profile: str | None = None,
    name: str | None = None,
    runs: str | Path | None = None,
    tracking_uri: str | None = None,
    workers: int | str = 1,
    worker_cpus: float = 1.0,
    ray_address: str | None = None,
    ray_env: str | None = None,
    trial_timeout: str | None = None,
    sync: bool = False,
    mlflow_trials: str = "front",
    register: str | None = None,
) -> list[Fault]:
    """Every fault of a search's settings (the fields of a recipe), each with its remedy; an empty list when it can start.

    Loads the model and the data and runs the model on a few samples; measures, compresses, writes and connects to nothing.
    """
    faults = find_setting_faults(
        budget=budget, batch_size=batch_size, device=device, threads=threads, agent=agent, space=space, criterion=criterion,
        trials=trials, timeout=timeout, seed=seed, warm_start=warm_start, objective=objective, recover=recover,
        fidelity=fidelity, finetune_epochs=finetune_epochs, profile=profile, name=name, runs=runs,
        tracking_uri=tracking_uri, workers=workers, worker_cpus=worker_cpus, ray_address=ray_address,
        trial_timeout=trial_timeout, mlflow_trials=mlflow_trials, register=register,
    )  # fmt: skip
    return [*faults, *_task_faults(model, Path(weights) if weights else None, data, evaluate, batch_size)]


def find_setting_faults(
    *,
    budget: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    threads: int = 1,
    agent: str | None = None,
    space: str | None = None,
    criterion: str | None = None,
    trials: int = 1,
    timeout: str | None = None,
    seed: int = 0,
    warm_start: str | None = None,
    objective: Sequence[str] = (),
    recover: str | None = None,
    fidelity: str = "auto",
    finetune_epochs: int = 0,
    profile: str | None = None,
    name: str | None = None,
    runs: str | Path | None = None,
    workers: int | str = 1,
    worker_cpus: float = 1.0,
    ray_address: str | None = None,
    trial_timeout: str | None = None,
    mlflow_trials: str = "front",
    **_others: object,
) -> list[Fault]:
    """The faults that show without loading the model and the data; other fields of a recipe may be given and are not read."""
    faults: list[Fault] = []
    if budget is not None:
        limits = _try(faults, lambda: Budget.parse(*([budget] if isinstance(budget, str) else budget)))
        faults.extend(check_budget(limits, device or "cpu") if limits else ())
    faults.extend(_objective_faults(objective, device or "cpu"))
    if device is not None and not is_device(device):
        faults.append(Fault.of(UnknownNameError("device", device, device_names())))
    for kind, plug_in in (("agent", agent), ("space", space)):
        if plug_in is not None and plug_in not in names(kind):
            faults.append(Fault.of(UnknownNameError(kind, plug_in, names(kind))))
    if mlflow_trials not in ("front", "all"):
        faults.append(Fault(f"There is no choice {mlflow_trials!r} of MLflow trials.", "Choose front or all."))
    if criterion is not None:
        _try(faults, lambda: Pruning(criterion))
    if agent is not None and agent in names("agent"):
        _try(faults, lambda: load("agent", agent))  # what it needs may not be installed
    if warm_start is not None:
        _try(faults, lambda: find_start(warm_start, runs or "runs"))
    faults.extend(_number_faults(threads=threads, trials=trials, batch_size=batch_size, seed=seed))
    if fidelity not in FIDELITIES:
        faults.append(Fault.of(UnknownNameError("fidelity", fidelity, FIDELITIES, "fidelities")))
    if finetune_epochs < 0:
        faults.append(Fault(f"finetune-epochs is {finetune_epochs}.", "Give 0 or more; 0 is off."))
    faults.extend(_worker_faults(workers, worker_cpus, ray_address))
    faults.extend(_duration_faults(timeout=timeout, recover=recover, profile=profile, trial_timeout=trial_timeout))
    faults.extend(_folder_faults(runs, name))
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


def _task_faults(
    model: str | None, weights: Path | None, data: str | None, evaluate: str | None, batch_size: int | None
) -> list[Fault]:
    """Faults of the model, the data, the score, and, where these are sound, of their match."""
    faults: list[Fault] = []
    loaded = _try(faults, lambda: load_model(model, weights))
    found = _try(faults, lambda: load_data(data, max(_READING_BATCH, batch_size or 1)))
    score = _try(faults, lambda: load_score(evaluate))
    if loaded is not None:
        faults.extend(check_weights(loaded))
    if found is not None:
        faults.extend(check_data(found))
        faults.extend(_size_faults(found, batch_size or 1))
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
            yield Fault(f"{option} is {value}.", "Give 1 or more.")
    if seed < 0:
        yield Fault(f"seed is {seed}.", "Give 0 or more.")


def _worker_faults(workers: int | str, cpus: float, address: str | None) -> Iterator[Fault]:
    if workers != "auto" and not (isinstance(workers, int) and workers >= 1):
        yield Fault(f"workers is {workers!r}.", "Give 1 or more, or auto.")
    elif not cpus > 0:
        yield Fault(f"worker-cpus is {cpus:g}.", "Give more than 0, such as 0.5 or 4.")
    elif address is None and workers != 1 and "ray" not in sys.modules:  # which may be connected to a cluster already
        count = None if workers == "auto" else int(workers)
        try:
            check_room(Parallel(count, cpus=cpus), local_cpus(), "this machine")
        except InputError as error:
            yield Fault.of(error)


def _duration_faults(**durations: str | None) -> Iterator[Fault]:
    for option, text in durations.items():
        try:
            parse_duration(text or "0")
        except ValueError:
            yield Fault(f"{option} {text!r} is not a duration.", "Write 90s, 10m or 1h; 0 is off.")


def _folder_faults(runs: str | Path | None, name: str | None) -> Iterator[Fault]:
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        yield Fault(f"{name!r} cannot name a run.", "Give a folder name without slashes, and --runs for the place.")
    if runs is None:
        return
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
