"""Does the integer programme find the 4/8-bit configurations of ResNet-18 that HAWQ-V3 (2011.10680) published?

    python benchmarks/hawq.py --data hawq_resnet18.json

The file holds the inputs of that work's programme: per layer the Hessian trace, the squared perturbation of its weights at 4 and 8 bits
(sensitivity = trace x perturbation, equation 11), its parameters and bit operations, which layers share their bits, and the published configurations. A
limit is a fraction of the way from uniform 4 bits to uniform 8 bits.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from automc.agents.knapsack import Knapsack

LIMITS = {"modelsize": "parameters", "bops": "bops"}
FRACTIONS = ("0.25", "0.5", "0.75")
BITS = np.array([8, 4])


def main() -> None:
    """Print, per limit, in how many layers the answer agrees with what was published."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    record = json.loads(parser.parse_args().data.read_text())
    same = 0
    for limit, column in LIMITS.items():
        for fraction in FRACTIONS:
            start = time.perf_counter()
            bits = solved(record, column, float(fraction))
            seconds = time.perf_counter() - start
            agreed = int((bits == np.array(record["published"][f"{limit}_{fraction}"])).sum())
            same += agreed == len(bits)
            print(f"{limit} {fraction}: {agreed} of {len(bits)} layers as published, {seconds:.3f} s")
    print(f"{same} of {len(LIMITS) * len(FRACTIONS)} configurations as published")


def solved(record: Mapping[str, Any], column: str, fraction: float) -> np.ndarray:
    """(layers,) bits of least summed sensitivity at a limit on the summed `column` of the file."""
    domain = domains(record)
    count = int(domain.max()) + 1
    trace = np.array(record["Hutchinson_trace"])
    loss = np.stack([trace * np.array(record[f"delta_weights_{bits}bit_square"]) for bits in BITS], axis=1)
    cost = np.array(record[column])
    losses, saved = np.zeros((count, 2)), np.zeros((count, 2))
    np.add.at(losses, domain, loss)
    np.add.at(saved[:, 1], domain, -cost)
    room = np.array([-(1.0 - fraction) * cost.sum()])
    dense = np.zeros(count, dtype=np.int64)
    codes = Knapsack(np.full(count, 2)).solve(losses.ravel(), saved.reshape(-1, 1), room, dense, count, exact=True)
    if codes is None:
        raise ValueError(f"no configuration holds {fraction} of {column}")
    return BITS[codes[domain]]


def domains(record: Mapping[str, Any]) -> np.ndarray:
    """(layers,) the domain of each layer: layers that share their bits are one."""
    leader = np.arange(len(record["layers"]))
    for first, second in record["tied_layers"]:
        leader[second] = leader[first]
    return np.unique(leader, return_inverse=True)[1]


if __name__ == "__main__":
    main()
