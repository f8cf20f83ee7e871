"""What a search leaves on disk: `runs/<name>/`, written while it runs and enough to resume, export or explain it.

config.yaml              everything needed to repeat the search
trials.jsonl             one trial a line, on disk as soon as the trial ends
front.json               the Pareto front: [{digest, number, score, cost, source}]
summary.json             the result in one record
tables.json              what each single choice hurts and costs, and the time of each layer
progress.json            where the search stands, for whoever watches
trainings.json           how each fine-tuning went, round by round
mlflow.json              where in MLflow the run is recorded, and whether all of it is
models/<digest>-<stage>.onnx   every exported finalist, before and after recovery; beside it its tensors as safetensors
finetune/                checkpoints of a fine-tuning that has not ended
best/policy.json         the winner's choices, predicted and measured cost, digests of model and device
best/model.onnx          the winner as deployed; best/model.pt2 the same from torch.export
best/certificate.json    how the winner was measured
solved/<budget>/         the same files for another budget, answered later
sweep-<metric>.json      what the tables answer over the whole range of a metric, and sweep-<metric>.svg the curve
report.html              the same for people
optuna.log               the study of an agent that is Optuna's
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml

from automc.disk import decoded, dump, explained, read_json, read_text, write_atomic
from automc.errors import InputError, RunConflictError, UnknownNameError
from automc.journal import Journal
from automc.pareto import front
from automc.policy import Policy
from automc.progress import Progress
from automc.result import Finalist, Summary
from automc.tables import Tables
from automc.trial import Trial
from automc.winner import Winner

try:
    import fcntl
except ImportError:  # Windows: two searches under one name are then the user's care
    fcntl = None  # type: ignore[assignment]

__all__ = ["MAY_DIFFER", "RunDir", "runs_in"]

T = TypeVar("T")

MAY_DIFFER = frozenset(
    {
        "created",
        "fidelity",
        "finetune_epochs",
        "json",
        "made_in",
        "mlflow_trials",
        "objective",
        "profile",
        "quiet",
        "ray_address",
        "ray_env",
        "recover",
        "register",
        "runs",
        "sync",
        "timeout",
        "tracking",
        "trial_timeout",
        "trials",
        "versions",
        "worker_cpus",
        "workers",
    }
)  # fmt: skip
"""Settings that a rerun under the same name may change: they say how long to search, not what for.

The agent, its seed and where it starts (warm_start) are not among them: config.yaml has to repeat the trials beside it.
"""


class RunDir:
    """One run's folder. Cheap to make: nothing is read or written before a method asks for it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None
        self._journal = Journal(self.path / "trials.jsonl")

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, Any]) -> RunDir:
        """Start a run in `path`, or go on with the one that is there if it was made with the same settings.

        Settings named in MAY_DIFFER may change between the two; config.yaml then holds the newer ones.

        Raises:
            RunConflictError: the folder holds another search (names the first difference) or something else altogether,
                or a search that still runs is writing there.
            DiskError: the folder cannot be written.
        """
        run = cls(path)
        if run.exists():
            run._refuse_difference(_plain(config))
        elif run.path.is_dir() and any(run.path.iterdir()):
            raise RunConflictError(f"{run.path} holds files but no run.", remedy="Choose another name.")
        with explained(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            run._take_lock()
        write_atomic(run.path / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))
        return run

    @classmethod
    def open(cls, folder: str | os.PathLike[str], name: str) -> RunDir:
        """The run called `name` in `folder`, to be read.

        Raises:
            UnknownNameError: there is none; carries the closest match.
        """
        run = cls(Path(folder) / name)
        if not run.exists():
            raise UnknownNameError("run", name, [other.name for other in runs_in(folder)])
        return run

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.path.name

    @property
    def report(self) -> Path:
        """Where the HTML report stands, or will."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Where fine-tuning keeps what it can go on from."""
        return self.path / "finetune"

    @property
    def again(self) -> str:
        """The command that goes on with its search."""
        return shlex.join(["automc", "search", str(self.path / "config.yaml")])

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.yaml").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether a search has ended here; one that goes on with it may be under way."""
        return (self.path / "summary.json").is_file()

    def config(self) -> dict[str, Any]:
        """What `create` was given, as plain values.

        Raises:
            InputError: no run here, or its config.yaml is not readable.
        """
        text = read_text(self.path / "config.yaml")
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{self.path / 'config.yaml'} is not valid YAML: {error}") from error
        if not isinstance(data, dict):
            raise InputError(f"{self.path / 'config.yaml'} does not hold settings.", remedy="Choose another run.")
        return data

    def lock(self) -> None:
        """Keep other processes from writing here until `close`.

        Raises:
            RunConflictError: one of them does.
        """
        with explained(self.path):
            self._take_lock()

    def close(self) -> None:
        """Let other processes write here. Reading needs no closing."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def append(self, trial: Trial) -> None:
        """Add one trial to trials.jsonl; see `Journal`."""
        self._journal.append(trial)

    def trials(self) -> list[Trial]:
        """The trials so far, in the order in which they ended; see `Journal`."""
        return self._journal.trials()

    def write_front(self, trials: Iterable[Trial], metrics: Sequence[str] = ("latency_s",)) -> None:
        """Write front.json: the trials that no other beats in score and `metrics`, cheapest first."""
        self._write_json("front.json", [_point(trial) for trial in front(trials, metrics)])

    def front(self, metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
        """What `write_front` wrote: one {digest, number, score, cost, source} per point; in other `metrics` drawn from the trials.

        Raises:
            InputError: there is none yet.
        """
        if metrics:
            return [_point(trial) for trial in front(self.trials(), metrics)]
        points: list[dict[str, Any]] = self._read_json("front.json")
        return points

    def write_summary(self, summary: Summary) -> None:
        """Write summary.json."""
        self._write_json("summary.json", summary.to_json())

    def summary(self) -> Summary:
        """What `write_summary` wrote.

        Raises:
            InputError: there is none yet (the search did not end), or it is of another version.
        """
        return decoded(self.path / "summary.json", self._read_json("summary.json"), Summary.from_json)

    def add_trainings(self, trainings: Sequence[Mapping[str, Any]]) -> None:
        """Note how fine-tunings went in trainings.json, behind what is there."""
        if trainings:
            self._write_json("trainings.json", [*self.trainings(), *trainings])

    def trainings(self) -> list[dict[str, Any]]:
        """What `add_trainings` noted, the earliest first: see `training.curves`."""
        found: list[dict[str, Any]] = self._optional("trainings.json", list) or []
        return found

    def write_tables(self, tables: Tables) -> None:
        """Write tables.json."""
        write_atomic(self.path / "tables.json", json.dumps(tables.to_json()) + "\n")

    def tables(self) -> Tables | None:
        """What `write_tables` wrote; None where the search has not got that far.

        Raises:
            InputError: it is of another version.
        """
        return self._optional("tables.json", Tables.from_json)

    def write_progress(self, progress: Progress) -> None:
        """Write progress.json."""
        self._write_json("progress.json", progress.to_json())

    def progress(self) -> Progress | None:
        """What `write_progress` wrote; None where there is none.

        Raises:
            InputError: it is of another version.
        """
        return self._optional("progress.json", Progress.from_json)

    def write_model(self, finalist: Finalist, onnx: bytes, weights: bytes | None = None) -> Path:
        """Keep the exported model of a finalist, and its tensors, so that any of them can be handed out or trained later."""
        if weights is not None:
            write_atomic(self.weights_path(finalist), weights)
        return write_atomic(self.model_path(finalist), onnx)

    def weights_path(self, finalist: Finalist) -> Path:
        """Where the tensors of a finalist stand, or would."""
        return self.model_path(finalist).with_suffix(".safetensors")

    def trained_path(self, policy: Policy) -> Path:
        """Where the tensors of a policy's recovered model stand, or would."""
        return self.path / "models" / f"{policy.digest}-recovered.safetensors"

    def model_path(self, finalist: Finalist) -> Path:
        """Where the exported model of a finalist stands, or would: before and after recovery are two files."""
        return self.path / "models" / f"{finalist.policy.digest}-{finalist.stage}.onnx"

    @property
    def best(self) -> Winner:
        """The folder of the winner."""
        return Winner(self.path / "best")

    def solved(self, budget: Sequence[str]) -> Winner:
        """The folder of the answer to another budget: solved/30ms-400kB."""
        name = "-".join(limit.replace("%", "pct").replace(" ", "").replace("/", "") for limit in budget)
        return Winner(self.path / "solved" / name)

    def _read_json(self, name: str) -> Any:
        return read_json(self.path / name)

    def _optional(self, name: str, decode: Callable[[Any], T]) -> T | None:
        if not (self.path / name).is_file():
            return None
        return decoded(self.path / name, self._read_json(name), decode)

    def _write_json(self, name: str, data: Any) -> None:
        write_atomic(self.path / name, dump(data))

    def _refuse_difference(self, new: Mapping[str, Any]) -> None:
        old = self.config()
        for key in [*old, *(key for key in new if key not in old)]:
            if key == "watts" and old.get(key) is None:  # it was not asked for energy, or not yet told to note a power
                continue
            if key not in MAY_DIFFER and old.get(key) != new.get(key):
                raise RunConflictError(
                    f"The run {self.name!r} was made with {key} = {old.get(key)!r}, this search has {new.get(key)!r}.",
                    remedy="Choose another name, or the same settings to go on with it.",
                )

    def _take_lock(self) -> None:
        """Hold .lock for as long as this object lives. Within one process a run may be opened again."""
        self._lock = (self.path / ".lock").open("a")
        if fcntl is None:
            return
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.close()
            raise RunConflictError(
                f"Another search is writing the run {self.name!r}.", remedy="Wait for it, or choose another name."
            ) from None


def runs_in(folder: str | os.PathLike[str]) -> list[RunDir]:
    """The runs in a folder such as `runs`, the one started or resumed last first; empty where there is no such folder."""
    root = Path(folder)
    found = [RunDir(path) for path in root.iterdir() if RunDir(path).exists()] if root.is_dir() else []
    return sorted(found, key=lambda run: (run.path / "config.yaml").stat().st_mtime_ns, reverse=True)


def _plain(value: Any) -> Any:
    """The same value in what YAML and JSON can hold: tuples become lists, paths and other objects text."""
    return json.loads(json.dumps(dict(value), default=str))


def _point(trial: Trial) -> dict[str, Any]:
    cost = trial.cost.to_json()
    source = cost.pop("source")
    return {
        "digest": trial.policy.digest,
        "number": trial.number,
        "stage": trial.stage,
        "score": trial.score,
        "cost": cost,
        "source": source,
    }
