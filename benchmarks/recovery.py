"""How far recovery brings a compressed model back: test score dense, before, after recovery, after fine-tuning on Ray Tune.

    python benchmarks/recovery.py --model M --weights W --data D [--budget 50%macs] [--space prune] [--minutes 40] [--workers 2]

A tenth of the minutes goes to recovery within the search (short distillations of the candidates, then longer ones of two finalists),
the rest to `automc finetune` of the winner. Costs are those of a simulated device, so that no measuring takes part.

    python benchmarks/recovery.py --arena 8 ...

For so many contenders of the same search: the score stitched, after 50, 200 and `--full` steps, the seconds that each took, and Kendall's
tau of each with the last: what a fidelity buys for its time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import torch
from scipy.stats import kendalltau

import automc
from automc.clock import Clock
from automc.evaluate.data import gather
from automc.evaluate.divergence import divergence
from automc.job import Job, Silent
from automc.predict.targets import open_device
from automc.prepare import Prepared
from automc.recovery.fidelity import LONG, SHORT, distilled
from automc.recovery.student import Lesson
from automc.result import Finalist
from automc.rundir import RunDir
from automc.task import Task, prepare_job
from automc.weights import unpack

RECOVERING = 0.1


class Told(Silent):
    """Prints stages, with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def stage(self, name: str, total: float | None) -> None:
        print(f"[{time.perf_counter() - self._start:6.0f} s] {name}", flush=True)


def main() -> None:
    """Print the scores, or the arena."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--data")
    parser.add_argument("--budget", default="50%macs")
    parser.add_argument("--space", default="prune")
    parser.add_argument("--device", default="eyeriss")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    parser.add_argument("--trainings", type=int, help="in all, by default as many as time allows")
    parser.add_argument("--arena", type=int, default=0, metavar="CONTENDERS")
    parser.add_argument("--full", type=int, default=700, help="steps of the arena's last fidelity")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arena(arguments, folder) if arguments.arena else recovery(arguments, folder)


def searched(arguments: argparse.Namespace, folder: str, recover_s: float) -> Job:
    """The job of the search."""
    return Job(
        budget=(arguments.budget,), model=arguments.model, weights=arguments.weights, data=arguments.data,
        device=arguments.device, space=arguments.space, trials=arguments.trials, recover=f"{recover_s:.0f}s" if recover_s else "0",
        name="recovery", runs=folder, tracking_uri="", profile="10s",
    )  # fmt: skip


def recovery(arguments: argparse.Namespace, folder: str) -> None:
    """Search and recover, then fine-tune; one row a step."""
    from automc.job import run

    seconds = 60 * arguments.minutes
    job = searched(arguments, folder, RECOVERING * seconds)
    summary = run(job, Told())
    assert summary.best is not None
    prepared = prepare_job(job, Task.of(job), open_device(job.device, job.threads), Silent(), Clock())
    held = [f for f in summary.finalists if f.stage == "finalist" and f.holds]
    before = next((f for f in held if f.policy == summary.best.policy), max(held, key=lambda f: f.merit))
    print(HEAD)
    for name, finalist in (("dense", summary.dense), ("stitched", before), ("recovered", summary.best)):
        print(row(name, finalist, summary.dense, folder, prepared), flush=True)
    tuned = automc.finetune(
        "recovery", runs=folder, time=f"{(1 - RECOVERING) * seconds:.0f}s", workers=arguments.workers, trainings=arguments.trainings,
        observer=Told(),
    )  # fmt: skip
    print(HEAD)
    print(row("fine-tuned", tuned.after, summary.dense, folder, prepared))
    print(f"kept: {tuned.is_kept} {tuned.reason}; MACs {summary.best.cost.macs:.3g} of {summary.dense.cost.macs:.3g}")
    print("seconds:", {**summary.seconds, "finetune": round((1 - RECOVERING) * seconds)})


HEAD = f"{'':12}{'validation':>12}{'test':>8}{'of dense':>10}{'agree':>8}{'held-out KL':>13}{'test KL':>9}"


def row(name: str, finalist: Finalist, dense: Finalist, folder: str, prepared: Prepared) -> str:
    """Scores in percent and the points lost; of the test images the share on which it agrees with the dense model, and the divergence."""
    test, reference = (100 * (f.test if f.test is not None else f.validation) for f in (finalist, dense))
    agree, away = compared(finalist, folder, prepared)
    return (
        f"{name:12}{100 * finalist.validation:>12.2f}{test:>8.2f}{test - reference:>+10.2f}{agree:>8.1f}"
        f"{finalist.divergence or 0.0:>13.4f}{away:>9.4f}"
    )


def compared(finalist: Finalist, folder: str, prepared: Prepared) -> tuple[float, float]:
    """(per cent agreement, divergence) with the dense model on the test inputs."""
    model = prepared.stitcher.finished(finalist.policy)
    path = RunDir.open(folder, "recovery").weights_path(finalist)
    if finalist.stage == "recovered" and path.is_file():
        model = unpack(model, path.read_bytes())
    inputs = gather(prepared.data.test or prepared.data.validation, 10**6)
    with torch.inference_mode():
        wanted, found = prepared.traced.model(*inputs), model(*inputs)
    same = (wanted.argmax(1) == found.argmax(1)).float().mean()
    return 100 * float(same), divergence(wanted, found, logits=prepared.logits)


def arena(arguments: argparse.Namespace, folder: str) -> None:
    """Each fidelity against the last on the same contenders."""
    from automc.job import run

    job = searched(arguments, folder, 0.0)
    run(job, Told())
    task = Task.of(job)
    prepared = prepare_job(job, task, open_device(job.device, job.threads), Silent(), Clock())
    trials = [t for t in RunDir.open(folder, "recovery").trials() if t.stage == "search" and t.score is not None]
    policies = list({t.policy: t for t in sorted(trials, key=lambda t: -(t.score or 0.0))})[: arguments.arena]
    columns, seconds = [], []
    for steps in (0, SHORT, LONG, arguments.full):
        start = time.perf_counter()
        columns.append([score(policy, prepared, steps) for policy in policies])
        seconds.append((time.perf_counter() - start) / len(policies))
        print(f"{steps:4} steps: {' '.join(f'{100 * value:6.2f}' for value in columns[-1])}  {seconds[-1]:.1f} s each", flush=True)  # fmt: skip
    for steps, column, each in zip(("stitched", SHORT, LONG), columns, seconds, strict=False):
        print(f"{steps!s:>9}: tau {kendalltau(column, columns[-1]).statistic:+.2f} for {each:.1f} s a candidate")


def score(policy: automc.Policy, prepared: Prepared, steps: int) -> float:
    """The validation score after so many steps."""
    lesson = Lesson.of(prepared)
    if steps == 0:
        return lesson.judge.examine(prepared.stitcher.finished(policy))["worth"]
    return distilled(policy, prepared, lesson, steps, 0)[1]


if __name__ == "__main__":
    main()
