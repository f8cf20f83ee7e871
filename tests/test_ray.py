"""Ray itself: a search on workers, workers that die, hang and raise, and nodes that leave and join."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import images
from tiny_run import searched

import automc
from automc.errors import InputError, MissingError
from automc.evaluate.data import Data, TensorSplit
from automc.execute.parallel import Executors, Parallel, check_room, read_environment
from automc.execute.pool import Pool
from automc.job import Silent, search
from automc.policy import Policy, Prune
from automc.protocols import Outcome
from automc.rundir import RunDir

ray = pytest.importorskip("ray")
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def net():
    torch.manual_seed(0)
    return Net().eval()
"""
"""A user's file: workers on other machines lack it."""
HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "automc":
            raise ModuleNotFoundError("No module named 'automc'", name="automc")

sys.meta_path.insert(0, Hide())
"""
"""What makes a Python process on which automc is installed one on which it is not."""
POLICIES = [Policy.of([("a", Prune(keep))]) for keep in range(1, 10)]


class Misbehaving:
    """Scores by the channels kept; what the policy's first choice says goes wrong does."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.table = torch.arange(20.0)

    def evaluate(self, policy: Policy) -> float:
        spec = policy.get("a", Prune)
        assert spec is not None
        if spec.keep == 2:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
        if spec.keep == 4:
            time.sleep(600)
        if spec.keep == 6:
            raise MemoryError("no room")
        time.sleep(self.seconds)
        return float(self.table[spec.keep])


class Holds:
    """Cannot be sent: it holds a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def evaluate(self, policy: Policy) -> float:
        return 0.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    import automc.execute.ray  # noqa: F401 - sets what ray reads when it is imported

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(started.address, logging_level="ERROR", log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


def outcomes(pool: Pool, policies: Sequence[Policy]) -> dict[int, Outcome]:
    for policy in policies:
        pool.submit(policy, -np.inf)
    found: dict[int, Outcome] = {}
    while len(found) < len(policies):
        found.update({_keep(outcome.policy): outcome for outcome in pool.collect()})
    return found


def _keep(policy: Policy) -> int:
    spec = policy.get("a", Prune)
    assert spec is not None
    return spec.keep


def test_workers_that_die_hang_or_raise_cost_only_their_own_trials(cluster: Any) -> None:
    executors = Executors(Parallel(2, cluster.address, trial_timeout_s=4.0))
    try:
        found = outcomes(executors.make(Misbehaving()), POLICIES)  # type: ignore[arg-type]
    finally:
        executors.close()
    assert {keep: outcome.reason for keep, outcome in found.items() if outcome.score is None} == {
        2: "the worker died: it crashed, or was killed, as the system does when memory runs out",
        4: "it took longer than 4 s",
        6: "MemoryError: no room",
    }
    assert all(outcome.score == keep for keep, outcome in found.items() if keep not in (2, 4, 6))


def test_a_search_survives_nodes_that_leave_and_uses_those_that_join(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("automc.execute.pool._LOOK_S", 0.2)
    leaving = cluster.add_node(num_cpus=1)
    executors = Executors(Parallel(None, cluster.address))
    try:
        pool = executors.make(Misbehaving(0.3))
        assert pool.slots == 3
        policies = [policy for policy in POLICIES if _keep(policy) not in (2, 4, 6)]
        for policy in policies:
            pool.submit(policy, -np.inf)
        ended = list(pool.collect())
        cluster.remove_node(leaving)
        cluster.add_node(num_cpus=2)
        while len(ended) < len(policies):
            ended.extend(pool.collect())
        assert sorted(outcome.score or 0.0 for outcome in ended) == [float(_keep(policy)) for policy in policies]
        deadline = time.monotonic() + 60
        while pool.slots < 4 and time.monotonic() < deadline:
            outcomes(pool, POLICIES[:1])  # type: ignore[arg-type]
        assert pool.slots == 4
    finally:
        executors.close()


def test_a_search_of_a_model_in_a_file_goes_on_in_step_on_workers_as_in_process(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.py").write_text(MODEL)
    split = TensorSplit(images(64), torch.arange(64) % 5, 64)

    def searched(name: str, trials: int, **options: Any) -> list[tuple[str, float | None]]:
        data = Data(split, split, split, None, name="noise")
        taken = search(
            f"{tmp_path / 'mine.py'}:net", data=data, budget="50%macs", device="eyeriss", trials=trials, recover="0",
            tracking_uri="", runs=str(tmp_path), agent="uniform", name=name, **options,
        )  # fmt: skip
        list(taken)
        found = [trial for trial in RunDir(tmp_path / name).trials() if trial.stage == "search"]
        return [(trial.policy.digest, trial.score) for trial in sorted(found, key=lambda trial: trial.number)]

    whole = searched("one", 8)
    half = searched("two", 4)
    both = searched("two", 8, workers=2, sync=True)
    assert both[: len(half)] == half
    assert len(half) < len(both)
    assert dict(both[:8]) == dict(whole[:8])
    assert len(set(both)) == len(both)


def test_a_cluster_without_the_package_is_told_how_to_ship_it(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    executors = Executors(Parallel(1, cluster.address, environment={"env_vars": {"PYTHONPATH": str(tmp_path)}}))
    try:
        with pytest.raises(MissingError, match="nodes of the Ray cluster have no automc") as caught:
            outcomes(executors.make(Misbehaving()), POLICIES[:1])  # type: ignore[arg-type]
        assert "--ray-env" in caught.value.remedy
    finally:
        executors.close()


def test_what_cannot_be_sent_is_named(cluster: Any) -> None:
    from automc.execute.ray import RayCrew

    with pytest.raises(InputError, match="cannot be sent to workers"):
        RayCrew(cluster.address).put(Holds())


def test_more_workers_than_there_is_room_for_are_refused(cluster: Any) -> None:
    with pytest.raises(InputError, match=r"64 workers of 1 CPUs need 64, and the Ray cluster has \d"):
        Executors(Parallel(64, cluster.address))
    with pytest.raises(InputError, match=r"3 workers of 0\.5 CPUs need 1\.5, and this machine has 1"):
        check_room(Parallel(3, cpus=0.5), 1, "this machine")


def test_addresses_where_no_cluster_is_are_told_apart() -> None:
    from automc.execute.ray import _mismatch, connect

    with pytest.raises(InputError, match="not the address"):
        connect("nonsense", None)
    with pytest.raises(MissingError, match=r"No Ray cluster can be reached at '127\.0\.0\.1:1': Connection refused"):
        connect("127.0.0.1:1", None)
    told = "Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n    Python: 3.11.7\nThis process"
    assert "pip install ray==2.40.0" in str(_mismatch(told))
    assert _mismatch("anything else") is None


def test_a_runtime_environment_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "env.yaml"
    path.write_text("py_modules: [dist/automc.whl]\n")
    assert read_environment(str(path)) == {"py_modules": ["dist/automc.whl"]}
    assert read_environment(None) is None
    path.write_text("- nothing\n")
    with pytest.raises(InputError, match="holds no runtime_env"):
        read_environment(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        read_environment(str(tmp_path / "none.yaml"))


class _Removes(Silent):
    """Takes a node away once three trainings have a round each. It cannot be sent to other processes, and does not need to be."""

    def __init__(self, cluster: Any, node: Any) -> None:
        self._lock = threading.Lock()
        self._cluster, self._node, self.rounds = cluster, node, 0

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.rounds += "trainings" in note
        if self.rounds == 3:
            self._cluster.remove_node(self._node, allow_graceful=False)


def test_fine_tuning_runs_on_the_nodes_of_a_cluster_and_survives_one_that_leaves(cluster: Any, tmp_path: Path) -> None:
    folder = searched(tmp_path)
    joined = cluster.add_node(num_cpus=1)
    leaves = _Removes(cluster, joined)
    tuned = automc.finetune(
        "tiny", runs=str(tmp_path / "runs"), epochs=4, trainings=3, workers=3, address=cluster.address, observer=leaves
    )
    assert leaves.rounds > 3
    trainings = folder.trainings()
    assert len(trainings) == 3
    assert all(training["history"] for training in trainings)
    assert tuned.after.merit >= tuned.before.merit
