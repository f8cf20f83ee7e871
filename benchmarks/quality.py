"""Accuracy before any fine-tuning, of the same policies under different engines, on images that served nothing else.

    python benchmarks/quality.py [--model M --weights W --data D] [--macs 0.5]

Pruning at a share of the MACs: L1 ranking with batch norms recalibrated, one-shot least squares on L1's channels (the whole network at once, no ridge), the database, the database refined; for the
uniform policy and for the one that the `ilp` agent finds with losses of single choices. Then int8 and 4-bit weights everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import setting
import torch
from torch import nn

from automc.agents.ilp import ILP
from automc.budget import Budget, Limit
from automc.calibrate import LayerStats
from automc.compression.apply import Stitcher
from automc.compression.norms import recalibrate
from automc.compression.prune import dropped, remove_channels
from automc.compression.variants import remaining
from automc.evaluate.divergence import sensitivities
from automc.job import Silent
from automc.policy import Policy, Prune, Quantize
from automc.protocols import Problem
from automc.search_spaces.prune import prune


def main() -> None:
    """Print a table: top-1 on the test samples, its difference from dense, and the divergence on validation inputs."""
    parser = setting.options(__doc__ or "")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--leave", nargs="*", default=[], help="channel groups that stay whole")
    arguments = parser.parse_args()
    given = setting.load(arguments)
    stats = given.stats(arguments.samples)
    stitcher = Stitcher(given.traced, stats, tuple(tensor[:128] for tensor in given.calibration))
    graph = given.traced.graph
    wanted = given.accuracy(given.traced.model)
    count = len(given.test[0])
    print(f"dense {wanted:.2f} %, standard error {100 * np.sqrt(wanted / 100 * (1 - wanted / 100) / count):.2f} points")
    policies = {"uniform": setting.uniform(graph, arguments.macs, arguments.leave)}
    policies["searched"] = searched(given, stitcher, arguments.macs, arguments.leave)
    for name, policy in policies.items():
        print(f"{name}, {100 * setting.macs(graph, policy) / graph.macs:.0f} % of the MACs")
        show(given, "L1 ranking, batch norms recalibrated", by_magnitude(given, policy, stats, solve=False))
        show(given, "L1 ranking, least squares", by_magnitude(given, policy, stats, solve=True))
        show(given, "database (OBS)", stitcher.apply(policy))
        show(given, "database, refined", stitcher.refine(policy, given.batches(arguments.samples)))
    for bits in (8, 4):
        everywhere = Policy.of((layer.name, Quantize(bits, 8)) for layer in graph.layers if layer.quantize)
        show(given, f"{bits}-bit weights, 8-bit activations", stitcher.apply(everywhere))


def show(given: setting.Setting, name: str, model: nn.Module) -> None:
    """One row."""
    found = given.accuracy(model)
    lost = found - given.accuracy(given.traced.model)
    print(f"  {name:<36} {found:6.2f} %  {lost:+6.2f} points  {given.divergence(model):.4f} nats", flush=True)


def searched(given: setting.Setting, stitcher: Stitcher, share: float, leave: list[str]) -> Policy:
    """The first answer of the integer programme under a MACs budget."""
    space = prune(given.traced.graph, channel_block=4)
    space = type(space)(tuple(domain for domain in space.domains if domain.target not in leave))
    inputs = [tensor[:512] for tensor in given.validation]
    losses = sensitivities(stitcher, space, inputs, limit_s=600.0, logits=True, observer=Silent())
    budget = Budget((Limit("macs", share * given.traced.graph.macs),))
    problem = Problem(space, budget, setting.MacsPredictor(given.traced.graph, space), losses)
    return ILP(problem, 0).ask(1)[0]


def by_magnitude(given: setting.Setting, policy: Policy, stats: Mapping[str, LayerStats], *, solve: bool) -> nn.Module:
    """Keep the channels whose producers' filters have the largest L1 norm."""
    model = copy.deepcopy(given.traced.model)
    groups = {group.name: group for group in given.traced.graph.groups}
    keep = {name: spec.keep for name, spec in policy if isinstance(spec, Prune)}
    kept = {name: sorted(np.argsort(-norms(model, groups[name]))[:count].tolist()) for name, count in keep.items()}
    gone = {(name, side): i for name, side, i in dropped(given.traced.graph.groups, kept)}
    remove_channels(model, given.traced.graph.groups, kept)
    for layer in given.traced.graph.layers:
        inputs = gone.get((layer.name, "in"), [])
        if not inputs or layer.name not in stats:
            continue
        taps = layer.kernel[0] * layer.kernel[1]
        features = (remaining(layer.in_channels, inputs)[:, None] * taps + torch.arange(taps)).flatten()
        rows = remaining(layer.out_channels, gone.get((layer.name, "out"), []))
        dense = given.traced.model.get_submodule(layer.name)
        if solve:
            fit(model.get_submodule(layer.name), dense, stats[layer.name], features, rows)
        elif isinstance(dense, nn.Conv2d):
            model.set_submodule(
                layer.name, nn.Sequential(model.get_submodule(layer.name), norm_of(dense, stats[layer.name], rows))
            )
    recalibrate(model, [tensor[:512] for tensor in given.calibration])
    return model.eval()


def norm_of(dense: nn.Conv2d, stats: LayerStats, rows: torch.Tensor) -> nn.BatchNorm2d:
    """The batch norm that was folded into a convolution, up to what recalibration sets: mean and deviation of its output."""
    weight = dense.weight.detach().flatten(1)[rows]
    norm = nn.BatchNorm2d(len(rows))
    bias = torch.zeros(len(rows)) if dense.bias is None else dense.bias.detach()[rows]
    norm.weight.data = ((weight @ stats.covariance) * weight).sum(1).sqrt()
    norm.bias.data = weight @ stats.mean + bias
    return norm


def fit(module: nn.Module, dense: nn.Module, stats: LayerStats, features: torch.Tensor, rows: torch.Tensor) -> None:
    """Give a pruned layer its least-squares weights, and the bias that keeps the mean output."""
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    assert isinstance(dense, (nn.Conv2d, nn.Linear))
    old = dense.weight.detach().flatten(1)[rows]
    covariance = stats.covariance
    new = torch.linalg.lstsq(covariance[features][:, features], covariance[features] @ old.T).solution.T
    bias = torch.zeros(len(rows)) if dense.bias is None else dense.bias.detach()[rows]
    module.weight = nn.Parameter(new.reshape(module.weight.shape).contiguous())
    module.bias = nn.Parameter(bias + old @ stats.mean - new @ stats.mean[features])


def norms(model: nn.Module, group: object) -> np.ndarray:
    """(width,) L1 norm of the filters that make each channel of a group."""
    total = np.zeros(group.width)  # type: ignore[attr-defined]
    for member in group.members:  # type: ignore[attr-defined]
        module = dict(model.named_modules()).get(member.module)
        if member.side == "out" and isinstance(module, (nn.Conv2d, nn.Linear)):
            per_filter = module.weight.detach().abs().flatten(1).sum(1).numpy()
            total += np.array([per_filter[list(index)].sum() for index in member.index])
    return total


if __name__ == "__main__":
    main()
