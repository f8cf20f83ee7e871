"""Kill a search at random moments and start it again: trials lost, evaluated twice, and whether the end is the same.

    python benchmarks/interrupt.py [--kills 100] [--trials 24] [--workers 2] [-- further options of automc search]

A kill comes at a random time after the search has begun to record, `kill -9` to the process alone. The same command then goes on;
a search that has ended is left and another is begun. Proposals follow what was measured, so that two searches of the same seed
differ where the machine measured differently: what is compared with a search that ran through is said to be of the same budget.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from automc.rundir import RunDir


def digests(run: Path) -> list[str]:
    """The policies that a run has evaluated, in the order recorded."""
    return [trial.policy.digest for trial in RunDir(run).trials() if trial.stage == "search"]


def front(run: Path) -> list[tuple[str, float | None]]:
    """Policies and scores of the trials that were searched on the front."""
    return [(point["digest"], point["score"]) for point in RunDir(run).front() if point["stage"] == "search"]


def kill_one(command: list[str], run: Path, chance: random.Random) -> bool:
    """Start a search and kill it at some moment; whether it had not ended before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = len(digests(run))
    while process.poll() is None and len(digests(run)) <= before:
        time.sleep(0.02)
    try:
        process.wait(chance.uniform(0.0, 3.0))
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return process.returncode == -signal.SIGKILL


def main() -> None:
    """Print what was lost, repeated and different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", default="2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", help="of automc search")
    arguments = parser.parse_args()
    chance, killed, lost, twice, searches, alike = random.Random(arguments.seed), 0, 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        command = ["automc", "search", "--runs", folder, "--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--sync",
                   "--workers", arguments.workers, "--trials", str(arguments.trials), "--recover", "0",
                   *(arguments.options or ["--budget", "30ms"])]  # fmt: skip
        subprocess.run([*command, "--name", "whole"], check=True, stdout=subprocess.DEVNULL)
        run = Path(folder) / "killed"
        while killed < arguments.kills:
            before = digests(run)
            was_killed = kill_one([*command, "--name", "killed"], run, chance)
            after = digests(run)
            killed += was_killed
            lost += after[: len(before)] != before
            twice += sum(count - 1 for count in Counter(after).values())
            print(f"{killed} kills, {len(after)} trials recorded, {lost} lost, {twice} evaluated twice", flush=True)
            if not was_killed:
                searches, alike = searches + 1, alike + (front(run) == front(Path(folder) / "whole"))
                shutil.rmtree(run)
    print(f"{killed} kills over {searches} finished searches: {lost} with trials lost, {twice} trials evaluated twice, "
          f"{alike} of {searches} with the front of the search that ran through")  # fmt: skip


if __name__ == "__main__":
    main()
