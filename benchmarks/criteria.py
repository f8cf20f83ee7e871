"""Pruning criteria side by side: top-1 at half the MACs without any fine-tuning, every inner channel group cut to the same share.

    python benchmarks/criteria.py                                   the built-in example, about a minute
    python benchmarks/criteria.py --model net.py:build --weights w.safetensors --data cifar10:DIR
    python benchmarks/criteria.py --macs 0.3 --criteria obs l1 random

Inner groups are those that a single layer makes, as in the papers of the criteria; residual streams stay whole. "refit" has the layers
that read removed channels make up for them by least squares; "norms" only recalibrates batch norms and biases on the same inputs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.criteria import CRITERIA, Pruning, fallbacks
from automc.compression.evidence import Evidence
from automc.errors import AutomcError
from automc.evaluate.data import Split, gather
from automc.evaluate.loading import load_data
from automc.evaluate.models import load_model
from automc.graph import ChannelGroup, LayerGraph
from automc.policy import Policy, Prune
from automc.tracing.trace import Traced, trace

CALIBRATION = 1024
BATCH = 100


def main() -> None:
    """Print one row per criterion: top-1 and seconds, with and without compensation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as in automc search")
    parser.add_argument("--weights", type=Path, help="as in automc search")
    parser.add_argument("--data", help="as in automc search")
    parser.add_argument("--macs", type=float, default=0.5, help="share of the dense MACs to keep (default: 0.5)")
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=CRITERIA)
    options = parser.parse_args()
    data = load_data(options.data, BATCH)
    inputs = gather(data.calibration, CALIBRATION)
    traced = trace(load_model(options.model, options.weights), [tensor[:2] for tensor in inputs])
    split = data.validation if data.test is None else data.test
    policy = uniform(traced.graph, options.macs)
    macs = count_macs(traced.graph, {**traced.graph.widths, **{name: prune.keep for name, prune in policy}})
    print(f"dense: {100 * accuracy(traced.model, split):.1f} % top-1, {traced.graph.macs / 1e6:.2f} MMACs")
    print(
        f"pruned: {macs / 1e6:.2f} MMACs ({macs / traced.graph.macs:.2f}), {len(policy)} of {len(traced.graph.groups)} groups"
    )
    print(f"{'criterion':10} {'refit %':>8} {'s':>6} {'norms %':>8} {'s':>6}")
    compare(traced, inputs, split, policy, options.criteria)


def compare(
    traced: Traced, inputs: tuple[torch.Tensor, ...], split: Split, policy: Policy, criteria: tuple[str, ...]
) -> None:
    """Seconds are those of ranking, refitting and stitching, without the calibration pass, which all share."""
    batches = [tuple(t[i : i + BATCH] for t in inputs) for i in range(0, len(inputs[0]), BATCH)]
    stats = calibrate(traced, batches, len(inputs[0]))
    for criterion in criteria:
        row = f"{criterion:10}"
        for compensate in (True, False):
            pruning = Pruning(criterion, compensate)
            evidence = Evidence(traced, inputs)
            start = time.perf_counter()
            try:
                silent = fallbacks(pruning, evidence)
            except AutomcError as error:
                row += f" {error}"
                break
            model = Stitcher(traced, stats, inputs, pruning=pruning, evidence=evidence).apply(policy)
            seconds = time.perf_counter() - start
            row += f" {100 * accuracy(model, split):8.1f} {seconds:6.1f}"
            row += f"   ({len(silent)} groups by another criterion)" if silent and not compensate else ""
        print(row, flush=True)


def uniform(graph: LayerGraph, share: float) -> Policy:
    """The policy that cuts every inner group to the same share of its channels, the largest that keeps `share` of the MACs."""
    groups = [group for group in graph.groups if is_inner(group, graph)]
    for percent in range(100, 0, -1):
        keep = {group.name: max(1, round(percent / 100 * group.width)) for group in groups}
        if count_macs(graph, {**graph.widths, **keep}) <= share * graph.macs:
            break
    return Policy.of((name, Prune(count)) for name, count in keep.items())


def is_inner(group: ChannelGroup, graph: LayerGraph) -> bool:
    """Whether one layer alone makes the group's channels; a depthwise convolution carries them through."""
    makers = [name for name in group.producers if name in graph.layer and graph.layer[name].kind != "depthwise"]
    return len(makers) == 1


def count_macs(graph: LayerGraph, keep: Mapping[str, int]) -> int:
    """Multiply-accumulates per sample when the groups keep that many channels."""
    total = 0
    for layer in graph.layers:
        inputs = layer.inputs.count(keep) if layer.groups == 1 else layer.in_channels // layer.groups
        total += layer.positions * layer.outputs.count(keep) * inputs * layer.kernel[0] * layer.kernel[1]
    return total


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of the split that the model gets right."""
    with torch.inference_mode():
        return float(torch.cat([model(x).argmax(1) == y for x, y in split]).float().mean())


if __name__ == "__main__":
    main()
