"""A new device from 20 measurements, leave-one-device-out, on the NAS-Bench-201 latencies of HELP (arXiv 2106.08630).

    python benchmarks/fewshot.py FOLDER/nasbench201_latency_ms.npz

The fastest and slowest tenth of each device's labels are left out, as published. Printed per device: Spearman over the others, its own leave-one-out
error, and in the same run two baselines: a ridge regression on the samples alone, and the mean of the known devices, which sees none.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from automc.predict.fewshot import FewShot, Floats, Prior

_KNOWN = 2000
"""Networks by which the known devices' coefficients are fitted."""


def features(arch: np.ndarray) -> Floats:
    """(count, edges) operators -> (count, features): which operator is on which edge, alone and by pairs of edges."""
    alone = [np.eye(5)[arch[:, edge]] for edge in range(arch.shape[1])]
    pairs = [(alone[i][:, :, None] * alone[j][:, None, :]).reshape(len(arch), -1) for i, j in combinations(range(6), 2)]
    return np.concatenate([*alone, *pairs], axis=1)


def trimmed(latency: np.ndarray) -> np.ndarray:
    """Rows between the first and the last tenth of the labels."""
    low, high = np.quantile(latency, (0.1, 0.9))
    return np.flatnonzero((latency > low) & (latency < high))


def main() -> None:
    """Print a row per device, and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("latencies", type=Path)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    data = np.load(given.latencies, allow_pickle=False)
    names = [name for name in data.files if name not in ("arch", "op_names")]
    design = features(data["arch"])
    latency = {name: np.maximum(data[name].astype(np.float64), 1e-3) for name in names}
    print(f"{'device':>15} {'few-shot':>9} {'ridge':>7} {'mean':>7} {'own error':>10} claim")
    rows = []
    for held in names:
        found = [_once(held, latency, design, given.samples, seed) for seed in range(given.seeds)]
        rows.append(np.mean(found, axis=0))
        print(
            f"{held:>15} {rows[-1][0]:9.3f} {rows[-1][1]:7.3f} {rows[-1][2]:7.3f} {rows[-1][3]:10.3f} {rows[-1][4]:5.2f}"
        )
    print("{:>15} {:9.3f} {:7.3f} {:7.3f} {:10.3f} {:5.2f}".format("mean", *np.mean(rows, axis=0)))


def _once(held: str, latency: dict[str, np.ndarray], design: Floats, count: int, seed: int) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(trimmed(latency[held]))
    chosen, others = rows[:count], rows[count:]
    known = rng.choice(len(design), _KNOWN, replace=False)
    prior = Prior.of(design[known], np.stack([latency[name][known] for name in latency if name != held]))
    fitted = FewShot.fit(prior, design[chosen], latency[held][chosen])
    ridge = RidgeCV(np.logspace(-3, 3, 13)).fit(design[chosen], np.log(latency[held][chosen]))
    guesses = (fitted.predict(design[others]), ridge.predict(design[others]), design[others] @ prior.mean)
    ranks = [float(spearmanr(guess, latency[held][others]).statistic) for guess in guesses]
    return (*ranks, fitted.error, float(fitted.may_claim))


if __name__ == "__main__":
    main()
