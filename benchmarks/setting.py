"""What the benchmarks share: a model and its data as `automc search` takes them, MACs without a device, and fair scores."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.calibrate import LayerStats, calibrate
from automc.evaluate.data import gather
from automc.evaluate.loading import load_data
from automc.evaluate.models import load_model
from automc.graph import LayerGraph
from automc.policy import Policy, Prune
from automc.protocols import Costs
from automc.space import Codes, SearchSpace
from automc.tracing.trace import Traced, trace

BATCH = 64


@dataclass(frozen=True)
class Setting:
    """A traced model with inputs that calibrate, inputs that guide, and labelled samples that nothing is chosen by."""

    traced: Traced
    calibration: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]
    test: tuple[Tensor, Tensor]

    def stats(self, count: int) -> dict[str, LayerStats]:
        """Statistics of the first `count` calibration samples."""
        return calibrate(self.traced, self.batches(count), min(count, len(self.calibration[0])))

    def batches(self, count: int) -> list[tuple[Tensor, ...]]:
        """The first `count` calibration samples, batch by batch."""
        inputs = [tensor[:count] for tensor in self.calibration]
        return [tuple(t[i : i + BATCH] for t in inputs) for i in range(0, len(inputs[0]), BATCH)]

    def accuracy(self, model: nn.Module) -> float:
        """Top-1 in percent on the test samples."""
        inputs, labels = self.test
        return 100.0 * float((outputs(model, (inputs,)).argmax(1) == labels).float().mean())

    def divergence(self, model: nn.Module) -> float:
        """Nats per sample from the dense model, on the validation inputs."""
        wanted, found = (outputs(m, self.validation).log_softmax(1) for m in (self.traced.model, model))
        return float(F.kl_div(found, wanted, reduction="batchmean", log_target=True))


def options(text: str) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--model", help="as for automc search; the built-in example where it is left out")
    parser.add_argument("--weights")
    parser.add_argument("--data")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--samples", type=int, default=2048, help="calibration samples")
    return parser


def load(arguments: argparse.Namespace, validation: int = 1000) -> Setting:
    """Trace the model and read the samples; says on what machine."""
    from pathlib import Path

    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, Path(arguments.weights) if arguments.weights else None)
    data = load_data(arguments.data, BATCH)
    calibration = gather(data.train if data.train is not None else data.calibration, arguments.samples)
    assert data.test is not None
    test = [torch.cat([batch[i] for batch in data.test]) for i in (0, 1)]
    traced = trace(model, tuple(t[:4] for t in calibration))
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {arguments.threads} threads")
    print(f"{len(calibration[0])} calibration samples, {len(test[0])} test samples")
    return Setting(traced, calibration, gather(data.validation, validation), (test[0], test[1]))


def outputs(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """What a model puts out, batch by batch."""
    with torch.inference_mode():
        count = len(inputs[0])
        return torch.cat([model(*(t[i : i + BATCH] for t in inputs)) for i in range(0, count, BATCH)])


def macs(graph: LayerGraph, policy: Policy) -> int:
    """Multiply-accumulates per sample of a policy that prunes."""
    specs = {name: policy.get(name, Prune) for name in graph.widths}
    keep = {name: spec.keep if spec else graph.widths[name] for name, spec in specs.items()}
    total = 0
    for layer in graph.layers:
        cin, cout = layer.inputs.count(keep), layer.outputs.count(keep)
        groups = cout if layer.kind == "depthwise" else layer.groups
        total += layer.positions * cout * (cin // groups) * layer.kernel[0] * layer.kernel[1]
    return total


@dataclass(frozen=True)
class MacsPredictor:
    """Prices policies that prune by their MACs alone; it stands in for a profiled device."""

    graph: LayerGraph
    space: SearchSpace

    def predict(self, codes: Codes) -> Costs:
        """Costs whose latency and size are placeholders equal to the MACs."""
        counts = np.array([float(macs(self.graph, policy)) for policy in self.space.decode(codes)])
        return Costs(counts, counts, counts, counts, counts)


def uniform(graph: LayerGraph, share: float, left_alone: Sequence[str] = ()) -> Policy:
    """The same share of every channel group, the largest that keeps at most `share` of the MACs."""
    groups: Mapping[str, int] = {name: width for name, width in graph.widths.items() if name not in left_alone}
    for step in range(100, 0, -1):
        policy = Policy.of((name, Prune(max(1, round(width * step / 100)))) for name, width in groups.items())
        if macs(graph, policy) <= share * graph.macs:
            return policy
    return policy
