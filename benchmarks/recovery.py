"""How far recovery brings a compressed model back: test score dense, before, after recovery, after fine-tuning on Ray Tune.

    python benchmarks/recovery.py --model M --weights W --data D [--budget 50%macs] [--space prune] [--minutes 40] [--workers 2]

Two fifths of the minutes go to recovery within the search (short distillations of the candidates, then full ones of two finalists),
three fifths to `automc finetune` of the winner. Costs are those of a simulated device, so that no measuring takes part.

    python benchmarks/recovery.py --arena 8 ...

For so many contenders of the same search: the score stitched, after 50, 200 and `--full` steps, the seconds that each took, and Kendall's
tau of each with the last: what a fidelity buys for its time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from scipy.stats import kendalltau

import automc
from automc.fidelity import LONG, SHORT, distilled
from automc.job import Job, Silent
from automc.predict.targets import open_device
from automc.prepare import Clock, Prepared
from automc.result import Finalist
from automc.rundir import RunDir
from automc.runner import Task, prepare_job
from automc.student import Lesson
from automc.training import examined


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
    parser.add_argument("--samples", type=int, default=4, help="trainings in all")
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
    summary = run(searched(arguments, folder, 0.4 * seconds), Told())
    before = max((f for f in summary.finalists if f.stage == "finalist" and f.holds), key=lambda f: f.validation)
    assert summary.best is not None
    tuned = automc.finetune(
        "recovery", runs=folder, time=f"{0.6 * seconds:.0f}s", workers=arguments.workers, samples=arguments.samples,
        observer=Told(),
    )  # fmt: skip
    print(f"{'':28}{'validation':>12}{'test':>10}{'of dense':>10}")
    rows = (("dense", summary.dense), ("stitched", before), ("recovered", summary.best), ("fine-tuned", tuned.after))
    for name, finalist in rows:
        print(row(name, finalist, summary.dense))
    print(f"kept: {tuned.is_kept} {tuned.reason}; MACs {summary.best.cost.macs:.3g} of {summary.dense.cost.macs:.3g}")
    print("seconds:", {**summary.seconds, "finetune": round(0.6 * seconds)})


def row(name: str, finalist: Finalist, dense: Finalist) -> str:
    """Scores in percent, and the points lost."""
    test, reference = (100 * (f.test if f.test is not None else f.validation) for f in (finalist, dense))
    return f"{name:28}{100 * finalist.validation:>12.2f}{test:>10.2f}{test - reference:>+10.2f}"


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
        return examined(prepared.stitcher.finish(prepared.stitcher.apply(policy)), lesson)["score"]
    return distilled(policy, prepared, lesson, steps, 0)[1]


if __name__ == "__main__":
    main()
