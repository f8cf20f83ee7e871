"""Evaluations per second on one and two workers, Ray's overhead for each, and how busy 64 workers are kept.

    python benchmarks/parallel.py [--model M --weights W --data D] [--evaluations 60] [--median 1.0]

The 64 workers are simulated: their evaluations sleep for log-normal times (the median as given, a third of them further than
0.6 to 1.6 times from it) and share a process, but each is called through Ray, asked for and told like any other.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import setting
import torch

from automc.compression.apply import Stitcher
from automc.evaluate.fast import fast_evaluator
from automc.evaluate.loading import load_data
from automc.evaluate.score import load_score
from automc.execute.parallel import Executors, Parallel
from automc.execute.pool import Pool
from automc.execute.ray import RayCrew
from automc.execute.worker import Worker
from automc.job import Silent
from automc.loop import Loop
from automc.policy import Policy
from automc.protocols import Evaluator
from automc.registry import load
from automc.search_spaces.default import default
from automc.testing.fakes import large_toy


class Instant:
    """Costs nothing, so that what is left is the overhead."""

    def evaluate(self, policy: Policy) -> float:
        return 0.5


class Asleep:
    """Sleeps as long as an evaluation might take; the time depends on the policy alone."""

    def __init__(self, median_s: float) -> None:
        self.median_s = median_s

    def evaluate(self, policy: Policy) -> float:
        rng = np.random.default_rng(int(policy.digest, 16))
        time.sleep(self.median_s * float(np.exp(0.5 * rng.standard_normal())))
        return float(rng.random())


class Whole:
    """An evaluator that runs all samples, without the race that a search would end early."""

    def __init__(self, inner: Evaluator) -> None:
        self.inner = inner

    def evaluate(self, policy: Policy) -> float:
        return self.inner.evaluate(policy)


class Shared(RayCrew):
    """A crew whose workers are threads of one actor."""

    def share(self, count: int) -> None:
        """Start the actor."""
        import ray

        self._one = ray.remote(Worker).options(num_cpus=0, max_concurrency=count).remote([], 1)

    def start(self) -> Any:
        return self._one

    def stop(self, worker: Any) -> None:
        pass

    def capacity(self) -> int:
        return 1


def streamed(pool: Pool, policies: list[Policy]) -> float:
    """Evaluations per second when a new one is submitted for each that ends, as a search does."""
    start, waiting, flying, ended = time.perf_counter(), list(policies), 0, 0
    while ended < len(policies):
        while waiting and flying < pool.slots:
            pool.submit(waiting.pop(), -np.inf)
            flying += 1
        found = pool.collect()
        flying, ended = flying - len(found), ended + len(found)
    return len(policies) / (time.perf_counter() - start)


def speed_up(arguments: Any) -> None:
    """Evaluations per second on one worker and on two."""
    given = setting.load(arguments)
    data, score = load_data(arguments.data, 64), load_score(None)
    space = default(given.traced.graph, channel_block=8, int8=True, levels=8)
    with tempfile.TemporaryDirectory() as folder:
        ranges = tuple(tensor[:128] for tensor in given.calibration)
        stitcher = Stitcher(given.traced, given.stats(arguments.samples), ranges, folder=Path(folder))
        policies = space.decode(space.sample(arguments.evaluations, np.random.default_rng(0)))
        for policy in policies:
            stitcher.apply(policy)  # their variants then lie in the folder
        stitcher.database.save()
        with torch.inference_mode():
            dense = float(score(given.traced.model, data.validation))
        evaluator = Whole(fast_evaluator(stitcher, space, data.validation, score, dense, Silent()))
        rates = {}
        for workers in (1, 2):
            start = time.perf_counter()
            executors = Executors(Parallel(workers))
            pool = executors.make(evaluator)
            assert isinstance(pool, Pool)
            started = time.perf_counter() - start
            streamed(pool, policies)  # reads the variants
            rates[workers] = max(streamed(pool, policies) for _ in range(3))
            print(f"{workers} worker(s): started in {started:.1f} s, {rates[workers]:.2f} evaluations/s")
            executors.close()
        print(f"2 workers against 1: {rates[2] / rates[1]:.2f} x, on {os.cpu_count()} CPUs")


def overhead(evaluations: int = 500) -> None:
    """Milliseconds that an evaluation costs beyond itself."""
    executors = Executors(Parallel(1))
    pool = executors.make(Instant())
    assert isinstance(pool, Pool)
    policy = Policy()
    streamed(pool, [policy] * 50)
    print(f"overhead: {1e3 / streamed(pool, [policy] * evaluations):.2f} ms per evaluation")
    executors.close()


def busy(agent: str, median_s: float, workers: int = 64, rounds: int = 10) -> None:
    """Share of the time that simulated workers evaluate, from the first question to the last."""
    crew = Shared(local_cpus=1)
    crew.share(workers)
    crew.put(Asleep(median_s))
    pool = Pool(crew, workers)
    toy = large_toy(n_trials=workers * rounds)
    asking = 0.0
    controller = load("agent", agent)(toy.problem, 0)
    ask = controller.ask

    def timed(count: int) -> Any:
        nonlocal asking
        start = time.perf_counter()
        asked = ask(count)
        asking += time.perf_counter() - start
        return asked

    controller.ask = timed
    loop = Loop(toy.problem.space, controller, pool, toy.problem.predictor, synchronous=False)
    pool.pause()
    start, spans = time.perf_counter(), []
    for trial in loop.run(workers * rounds):
        now = time.perf_counter()
        spans.append((now - trial.seconds, now))
    last = max(begin for begin, _ in spans)
    share = sum(max(0.0, min(end, last) - begin) for begin, end in spans) / (workers * (last - start))
    print(f"{workers} workers, {agent}: {100 * share:.1f} % busy, median evaluation {median_s:g} s, "
          f"{1e3 * asking / len(spans):.1f} ms of asking per evaluation")  # fmt: skip
    crew.close()


def main() -> None:
    """Print the three tables."""
    parser = setting.options(__doc__ or "")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--median", type=float, default=1.0, help="seconds of a simulated evaluation")
    parser.set_defaults(threads=1)
    arguments = parser.parse_args()
    overhead()
    for agent in ("random", "ilp"):
        busy(agent, arguments.median)
    speed_up(arguments)


if __name__ == "__main__":
    main()
