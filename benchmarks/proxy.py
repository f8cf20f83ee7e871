"""Does the score before fine-tuning rank policies as the score after it does? Kendall's tau over random policies.

    python benchmarks/proxy.py [--model M --weights W --data D] [--policies 24] [--steps 50] [--macs 0.35 0.75]

Random pruning policies between two shares of the MACs are stitched, scored by each proxy, fine-tuned by the same few steps of
distillation, and scored on the test samples. The interval is a bootstrap over policies.
"""

from __future__ import annotations

import copy
import itertools
import time

import numpy as np
import setting
import torch
from scipy.stats import kendalltau
from torch import nn

from automc.compression.apply import Stitcher
from automc.evaluate.divergence import distillation_loss, sensitivities
from automc.job import Silent
from automc.policy import Policy
from automc.recovery.student import descend
from automc.search_spaces.prune import prune
from automc.space import SearchSpace, summed

STEP_BATCH = 128


def main() -> None:
    """Print tau of each proxy with the fine-tuned score."""
    parser = setting.options(__doc__ or "")
    parser.add_argument("--policies", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--macs", type=float, nargs=2, default=(0.35, 0.75))
    arguments = parser.parse_args()
    given = setting.load(arguments)
    stitcher = Stitcher(given.traced, given.stats(arguments.samples), tuple(t[:128] for t in given.calibration))
    space = prune(given.traced.graph, channel_block=4)
    inputs = [tensor[:512] for tensor in given.validation]
    losses = sensitivities(stitcher, space, inputs, limit_s=600.0, logits=True, observer=Silent())
    rows: list[tuple[float, ...]] = []
    for policy in drawn(given, space, arguments.policies, *arguments.macs):
        model = stitcher.apply(policy)
        loss = float(summed(losses, space.encode([policy])[0]))
        before = given.accuracy(model), -given.divergence(model), -loss
        start = time.perf_counter()
        tuned = fine_tuned(model, given, arguments.steps)
        after = given.accuracy(tuned), -given.divergence(tuned)
        rows.append((*before, *after))
        share = setting.macs(given.traced.graph, policy) / given.traced.graph.macs
        print(f"{100 * share:4.0f} % MACs: accuracy {before[0]:.1f} -> {after[0]:.1f} %, divergence {-before[1]:.3f} -> {-after[1]:.3f}, summed losses {summed:.3f} ({time.perf_counter() - start:.0f} s)", flush=True)  # fmt: skip
    table = np.array(rows)
    print(f"Kendall's tau over {len(table)} policies with the score after {arguments.steps} steps of {STEP_BATCH}")
    for column, name in enumerate(
        ("test accuracy, stitched", "divergence on validation, stitched", "sum of single losses")
    ):
        by_accuracy, by_divergence = (with_interval(table[:, column], table[:, after]) for after in (3, 4))
        print(f"  {name:<36} accuracy {by_accuracy}   divergence {by_divergence}")


def drawn(given: setting.Setting, space: SearchSpace, count: int, low: float, high: float) -> list[Policy]:
    """Random policies whose MACs are between two shares of the dense model's."""
    rng = np.random.default_rng(0)
    found: list[Policy] = []
    while len(found) < count:
        policy = space.decode(space.sample(1, rng))[0]
        if low <= setting.macs(given.traced.graph, policy) / given.traced.graph.macs <= high:
            found.append(policy)
    return found


def fine_tuned(model: nn.Module, given: setting.Setting, steps: int) -> nn.Module:
    """A copy after `steps` steps of distillation on calibration inputs, SGD with a cosine schedule."""
    student = copy.deepcopy(model).requires_grad_(True).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in itertools.repeat(None, steps):
        rows = torch.randint(len(given.calibration[0]), (STEP_BATCH,), generator=generator)
        inputs = tuple(tensor[rows] for tensor in given.calibration)
        with torch.no_grad():
            target = given.traced.model(*inputs)
        loss = distillation_loss(student(*inputs), target, logits=True)
        descend(optimizer, loss, student)
        schedule.step()
    return student.eval().requires_grad_(False)


def with_interval(first: np.ndarray, second: np.ndarray) -> str:
    """Tau and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(first), len(first)) for _ in range(500)]
    low, high = np.nanpercentile([kendalltau(first[d], second[d]).statistic for d in draws], (2.5, 97.5))
    return f"{kendalltau(first, second).statistic:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
