"""Kill a search, or its workers, at random moments: trials lost, evaluated twice, and whether the end is the same.

    python benchmarks/interrupt.py [--kills 100] [--trials 24] [--workers 2] [--mlflow] [-- further options of automc search]
    python benchmarks/interrupt.py --worker-kills 10 --trials 100 ...

A kill (`kill -9` to the process alone) comes after a time drawn evenly from nothing to what the search takes from its start to its end,
so that starting, searching, measuring and writing are all met; every second one, while there is something to search, comes within half of
the searching time after a trial was recorded. The same command then goes on; a search that has ended is compared with
one that ran through, and another is begun. The device is a simulated one, so that the same search costs the same each time: searches
that measure differ where the machine was measured differently, and no kill is needed for that. For the same reason `--profile 1h` leaves
the sensitivities all the time that they take: what they are measured on depends on the time that there is.

With `--worker-kills N` a worker of the search is killed whenever so many more trials are recorded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import automc.job  # noqa: F401  # imported once, here, and not after every kill
from automc.cli.main import main as automc_command
from automc.rundir import RunDir


def digests(run: Path) -> list[str]:
    """The policies that a run has evaluated, in the order recorded."""
    return [trial.policy.digest for trial in RunDir(run).trials() if trial.stage == "search"]


def front(run: Path) -> list[tuple[str, float | None, str]]:
    """Policies, scores and stages of the front."""
    return [(point["digest"], point["score"], point["stage"]) for point in RunDir(run).front()]


def started(command: list[str]) -> Any:
    """A search whose output is of no interest, in a process of its own that has imported what this one has."""
    process = multiprocessing.get_context("fork").Process(target=search, args=(command,))
    process.start()
    return process


def search(command: list[str]) -> None:
    """What `automc search` does."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.exit(automc_command(command))


def kill_one(command: list[str], after_s: float | None, run: Path | None = None) -> bool:
    """Start a search and kill it after some time, None lets it end; whether it had not ended before.

    Args:
        run: the time begins when one more trial is recorded there, None when the search starts.
    """
    process = started(command)
    known = len(digests(run)) if run else 0
    while run and process.is_alive() and len(digests(run)) <= known:
        time.sleep(0.01)
    process.join(after_s)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"The search ended with {process.exitcode}: {' '.join(command)}")
    return bool(process.exitcode)


def kill_searches(command: list[str], folder: Path, arguments: argparse.Namespace) -> None:
    """Print what was lost, repeated and different after each kill and in all."""
    chance, killed, lost, twice, searches, alike, unrecorded = random.Random(arguments.seed), 0, 0, 0, 0, 0, 0
    kill_one([*command, "--name", "first"], None)  # fills the caches
    start = time.perf_counter()
    kill_one([*command, "--name", "whole"], None)
    whole_s, begun = time.perf_counter() - start, time.perf_counter()
    run = folder / "killed"
    searching_s = RunDir(folder / "whole").summary().seconds["search"]
    while killed < arguments.kills and time.perf_counter() - begun < 60 * arguments.minutes:
        before = digests(run)
        if killed % 2 and len(before) < arguments.trials:
            was_killed = kill_one([*command, "--name", "killed"], chance.uniform(0.0, searching_s / 2), run)
        else:
            was_killed = kill_one([*command, "--name", "killed"], chance.uniform(0.0, whole_s))
        after = digests(run)
        killed += was_killed
        unrecorded += was_killed and len(after) == len(before)
        lost += len(set(before) - set(after))
        twice += sum(count - 1 for count in Counter(after).values())
        print(f"{killed} kills, {len(after)} trials recorded, {lost} lost, {twice} evaluated twice", flush=True)
        if not was_killed:
            searches, alike = searches + 1, alike + (front(run) == front(folder / "whole"))
            shutil.rmtree(run)
    print(f"{killed} kills ({unrecorded} while nothing was being searched) over {searches} finished searches of {whole_s:.1f} s: "
          f"{lost} trials lost, {twice} evaluated twice, {alike} of {searches} with the front of the search that ran through; "
          f"{(time.perf_counter() - begun) / max(1, killed):.1f} s a kill")  # fmt: skip


def kill_workers(command: list[str], folder: Path, arguments: argparse.Namespace) -> None:
    """Print whether a search of which workers are killed ends, and what became of its trials."""
    chance, killed, run = random.Random(arguments.seed), 0, folder / "killed"
    process, start = started([*command, "--name", "killed"]), time.perf_counter()
    while process.is_alive():
        if len(digests(run)) >= (killed + 1) * arguments.worker_kills and (workers := workers_of(process.pid)):
            os.kill(chance.choice(workers), signal.SIGKILL)
            killed += 1
            print(f"{killed} workers killed, {len(digests(run))} trials recorded", flush=True)
        time.sleep(0.05)
    states = Counter(trial.state for trial in RunDir(run).trials() if trial.stage == "search")
    print(f"search of {arguments.trials} trials ended with {process.exitcode} after {time.perf_counter() - start:.0f} s, "
          f"{killed} workers killed: {dict(states)}, {sum(count > 1 for count in Counter(digests(run)).values())} twice, "
          f"front of {len(RunDir(run).front())} points")  # fmt: skip


def workers_of(pid: int) -> list[int]:
    """The processes that evaluate for a search, among its descendants."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    family = {pid}
    while more := {int(child) for child, parent, *_ in rows if int(parent) in family} - family:
        family |= more
    return [
        int(child) for child, _, *args in rows if int(child) in family and args and args[0].startswith("ray::Worker")
    ]


def main() -> None:
    """Print what the kills did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0, help="no further kill after so many")
    parser.add_argument("--worker-kills", type=int, metavar="TRIALS", help="kill a worker every so many trials instead")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", default="2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mlflow", action="store_true", help="record in MLflow too, which takes longer to start")
    parser.add_argument("options", nargs="*", help="of automc search")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db" if arguments.mlflow else ""
        command = ["search", "--runs", folder, "--tracking-uri", store, "--sync", "--quiet",
                   "--workers", arguments.workers, "--trials", str(arguments.trials), "--recover", "0", "--profile", "1h",
                   *(arguments.options or ["--device", "eyeriss", "--budget", "50%"])]  # fmt: skip
        (kill_workers if arguments.worker_kills else kill_searches)(command, Path(folder), arguments)


if __name__ == "__main__":
    main()
