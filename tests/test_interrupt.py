"""A search that is killed at random moments and started again ends as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from automc.rundir import RunDir

SEARCH = """
import sys, time
from pathlib import Path
from automc.execute.serial import Serial
from automc.loop import Loop
from automc.registry import load
from automc.rundir import RunDir
from automc.testing.fakes import large_toy

folder, agent = Path(sys.argv[1]), sys.argv[2]
toy = large_toy(n_trials=40)

class Slow:
    def evaluate(self, policy):
        with (folder / "begun").open("a") as file:
            file.write(policy.digest + "\\n")
        time.sleep(0.01)
        return toy.evaluator.evaluate(policy)

run = RunDir.create(folder / "run", {"seed": 0})
controller = load("agent", agent)(toy.problem, 0)
loop = Loop(toy.problem.space, controller, Serial(Slow()), toy.problem.predictor)
known = {trial.policy.digest: trial for trial in run.trials()}
done = []
for trial in loop.run(40, recorded=list(known.values())):
    done.append(trial)
    if trial.policy.digest not in known:
        run.append(trial)
run.write_front(done)
"""
"""A search of 40 trials on a toy; every evaluation is noted as it begins."""


def start(folder: Path, agent: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", SEARCH, str(folder), agent], cwd=folder)


def journal(folder: Path) -> list[str]:
    return [trial.policy.digest for trial in RunDir(folder / "run").trials()]


def begun(folder: Path) -> list[str]:
    path = folder / "begun"
    return path.read_text().splitlines() if path.exists() else []


def kill_after(process: subprocess.Popen[bytes], folder: Path, trials: int, delay_s: float) -> None:
    """Kill a search once it has recorded some more trials and a moment has passed, unless it has ended."""
    wanted = len(journal(folder)) + trials
    while process.poll() is None and len(journal(folder)) < wanted:
        time.sleep(0.002)
    time.sleep(delay_s)
    process.kill()
    process.wait()


@pytest.mark.parametrize("agent", ["ilp", "tpe"])
def test_killed_searches_lose_nothing_repeat_nothing_and_end_alike(agent: str, tmp_path: Path) -> None:
    assert start(tmp_path / "whole", agent).wait() == 0
    folder, chance = tmp_path / "killed", random.Random(agent)
    for _ in range(3):
        before, noted = journal(folder) if (folder / "run").exists() else [], len(begun(folder))
        kill_after(start(folder, agent), folder, chance.randint(1, 9), chance.uniform(0.0, 0.02))
        assert journal(folder)[: len(before)] == before
        assert not set(before) & set(begun(folder)[noted:])
    assert start(folder, agent).wait() == 0
    assert sorted(journal(folder)) == sorted(set(journal(folder))) == sorted(journal(tmp_path / "whole"))
    fronts = [
        [(point["digest"], point["score"]) for point in RunDir(place / "run").front()]
        for place in (tmp_path / "whole", folder)
    ]
    assert fronts[0] == fronts[1]
