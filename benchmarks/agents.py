"""What each agent's own thinking costs, and what it finds, on a problem in closed form of about ResNet-20's size.

    python benchmarks/agents.py [--agents ilp tpe ...] [--trials 60] [--seeds 3]

The score is exp(-loss) x 0.95 and known without running a model, so what is measured is the agent alone: the CPU time of asking and being told,
per asked policy, pricing included. `best` is the best score inside the budget, mean over the seeds; `inside` the share of trials
inside it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from automc.errors import MissingError
from automc.protocols import Agent
from automc.registry import load, names
from automc.testing import Toy, large_toy
from automc.trial import Trial

BATCH = 4


def main() -> None:
    """Print a row per agent, the best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=names("agent"))
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.agents:
        try:
            make = load("agent", name)
        except MissingError as error:
            print(f"{name}: {error}")
            continue
        rows.append((name, *measured(make, arguments.trials, arguments.seeds)))
    print(f"{'agent':20} {'best':>7} {'+-':>6} {'inside':>7} {'trials':>7} {'ms each':>8} {'longest, ms':>12}")
    for name, best, inside, trials, each_s, longest_s in sorted(rows, key=lambda row: -row[1].mean()):
        print(f"{name:20} {best.mean():7.4f} {best.std():6.4f} {100 * inside:6.0f}% {trials:7.0f} {1e3 * each_s:8.1f} {1e3 * longest_s:12.0f}")  # fmt: skip


def measured(make: type[Agent], trials: int, seeds: int) -> tuple[np.ndarray, float, float, float, float]:
    """Best scores (seeds,), share inside, trials used, seconds per policy, and the seconds of the slowest batch."""
    best, inside, used, spent, longest = [], [], [], 0.0, 0.0
    for seed in range(seeds):
        toy = large_toy(seed, n_trials=trials)
        done, batches = driven(make(toy.problem, seed), toy, trials)
        holding = [t for t in done if toy.problem.budget.holds(t.cost)]
        best.append(max((t.score or 0.0 for t in holding), default=0.0))
        inside.append(len(holding) / max(1, len(done)))
        used.append(len(done))
        spent, longest = spent + sum(batches), max(longest, *batches)
    return np.array(best), float(np.mean(inside)), float(np.mean(used)), spent / sum(used), longest


def driven(agent: Agent, toy: Toy, trials: int) -> tuple[list[Trial], list[float]]:
    """The trials of a search, and the agent's own seconds in each batch."""
    done: list[Trial] = []
    seconds: list[float] = []
    while len(done) < trials:
        start = time.process_time()
        asked = agent.ask(min(BATCH, trials - len(done)))
        asking = time.process_time() - start
        told = [toy.trial(len(done) + i, policy) for i, policy in enumerate(asked)]
        start = time.process_time()
        agent.tell(told)
        seconds.append(asking + time.process_time() - start)
        if not asked:
            break
        done.extend(told)
    return done, seconds


if __name__ == "__main__":
    main()
