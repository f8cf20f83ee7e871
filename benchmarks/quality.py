"""Accuracy before any fine-tuning, of the same policies under different engines, on images that served nothing else.

    python benchmarks/quality.py [--model M --weights W --data D] [--macs 0.5]

Pruning at a share of the MACs: channels of the smallest L1 norm go (of the filters as they were before folding) and batch norms are
recalibrated; the same channels, and the layers that read them refitted by least squares; the database; the database refined; for the
uniform policy and for the one that the `ilp` agent finds with losses of single choices. Then int8 and 4-bit weights everywhere, calibrated
on several random halves of the samples: as simulated in PyTorch, and the exported file in ONNX Runtime beside it.
"""

from __future__ import annotations

import numpy as np
import setting
import torch
from torch import nn

from automc.agents.ilp import ILP
from automc.budget import Budget, Limit
from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.criteria import Pruning
from automc.compression.evidence import Evidence
from automc.devices.cpu import Cpu, has_vnni
from automc.evaluate.divergence import sensitivities
from automc.evaluate.running import Deployed
from automc.export.onnx import build_onnx
from automc.export.verify import relative_error
from automc.job import Silent
from automc.policy import Policy, Quantize
from automc.protocols import Problem
from automc.search_spaces.prune import prune


def main() -> None:
    """Print a table: top-1 on the test samples, its difference from dense, and the divergence on validation inputs."""
    parser = setting.options(__doc__ or "")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--halves", type=int, default=5, help="random halves of the samples that calibrate the bits")
    parser.add_argument("--leave", nargs="*", default=[], help="channel groups that stay whole")
    arguments = parser.parse_args()
    given = setting.load(arguments)
    stats = given.stats(arguments.samples)
    ranges = tuple(tensor[:128] for tensor in given.calibration)
    stitcher = Stitcher(given.traced, stats, ranges)
    evidence = Evidence(given.traced, tuple(tensor[:1024] for tensor in given.calibration))
    norms, squares = (
        Stitcher(given.traced, stats, ranges, pruning=Pruning("l1", compensate), evidence=evidence)
        for compensate in (False, True)
    )
    graph = given.traced.graph
    wanted = given.accuracy(given.traced.model)
    count = len(given.test[0])
    print(f"dense {wanted:.2f} %, standard error {100 * np.sqrt(wanted / 100 * (1 - wanted / 100) / count):.2f} points")
    policies = {"uniform": setting.uniform(graph, arguments.macs, arguments.leave)}
    policies["searched"] = searched(given, stitcher, arguments.macs, arguments.leave)
    for name, policy in policies.items():
        print(f"{name}, {100 * setting.macs(graph, policy) / graph.macs:.0f} % of the MACs")
        show(given, "L1 ranking, batch norms recalibrated", norms.apply(policy))
        show(given, "L1 ranking, least squares", squares.apply(policy))
        show(given, "database (OBS)", stitcher.apply(policy))
        show(given, "database, refined", stitcher.refine(policy, given.batches(arguments.samples)))
    for bits in (8, 4):
        everywhere = Policy.of((layer.name, Quantize(bits, 8)) for layer in graph.layers if layer.quantize)
        for seed in range(arguments.halves):
            stitched = half(given, seed)
            model = stitched.finished(everywhere)
            show(given, f"{bits}-bit weights, 8-bit activations, half {seed}", model)
            show_file(given, model, stitched.reduce_range)


def show(given: setting.Setting, name: str, model: nn.Module) -> None:
    """One row."""
    found = given.accuracy(model)
    lost = found - given.accuracy(given.traced.model)
    print(f"  {name:<36} {found:6.2f} %  {lost:+6.2f} points  {given.divergence(model):.4f} nats", flush=True)


def show_file(given: setting.Setting, model: nn.Module, reduce_range: bool) -> None:
    """One row: the exported file beside its simulation, on the test samples and, for their number, the validation inputs."""
    file = build_onnx(model, tuple(t[: setting.BATCH] for t in given.calibration), reduce_range=reduce_range)
    session = Deployed(Cpu(torch.get_num_threads()).session(file), setting.BATCH)
    inputs = torch.cat([given.test[0], given.validation[0]])
    simulated, found = (setting.outputs(each, (inputs,)) for each in (model, session))
    differs = int((simulated.argmax(1) != found.argmax(1)).sum())
    print(
        f"    its file in ONNX Runtime           {given.accuracy(session):6.2f} %  {differs} of {len(inputs)} answers differ;"
        f" logits by {float((simulated - found).abs().max()):.3f} at most of {float(simulated.abs().max()):.1f},"
        f" {100 * relative_error(found, simulated):.2f} % (RMS)",
        flush=True,
    )


def half(given: setting.Setting, seed: int) -> Stitcher:
    """Calibrated on a random half of the samples."""
    count = len(given.calibration[0])
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: count // 2]
    inputs = tuple(tensor[chosen] for tensor in given.calibration)
    batches = [tuple(t[i : i + setting.BATCH] for t in inputs) for i in range(0, len(chosen), setting.BATCH)]
    return Stitcher(
        given.traced, calibrate(given.traced, batches, len(chosen)), tuple(tensor[:128] for tensor in inputs),
        reduce_range=not has_vnni(),
    )  # fmt: skip


def searched(given: setting.Setting, stitcher: Stitcher, share: float, leave: list[str]) -> Policy:
    """The first answer of the integer programme under a MACs budget."""
    space = prune(given.traced.graph, channel_block=4)
    space = type(space)(tuple(domain for domain in space.domains if domain.target not in leave))
    inputs = [tensor[:512] for tensor in given.validation]
    losses = sensitivities(stitcher, space, inputs, limit_s=600.0, logits=True, observer=Silent())
    budget = Budget((Limit("macs", share * given.traced.graph.macs),))
    problem = Problem(space, budget, setting.MacsPredictor(given.traced.graph, space), losses)
    return ILP(problem, 0).ask(1)[0]


if __name__ == "__main__":
    main()
