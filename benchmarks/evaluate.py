"""Candidates evaluated per minute: this engine, the same stitching run by PyTorch, and reconstructing every candidate anew.

    python benchmarks/evaluate.py                                               the built-in example
    python benchmarks/evaluate.py --model FILE.py:FUNCTION --weights FILE --data SPEC

The same random pruning policies go through all of them, one after another in turn, with the same calibration samples and the
same validation split. "reconstruct" is the inner loop of AMC (He et al. 2018, arXiv 1802.03494), by He et al. 2017
(arXiv 1707.06168): keep the channels of the largest L1 norm, then refit each layer that reads them by least squares to the
dense layer's outputs at sampled places, and run the model in PyTorch. Twice: from inputs of the dense model that were
sampled once, as AMC's code does, and from the inputs of the model as pruned so far, as the paper of 2017 does.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.prune import dropped, remove_channels
from automc.devices.cpu import Cpu
from automc.evaluate.data import gather
from automc.evaluate.fast import fast_evaluator
from automc.evaluate.loading import load_data
from automc.evaluate.models import load_model
from automc.evaluate.racing import Racing
from automc.evaluate.running import Stitched
from automc.evaluate.score import load_score
from automc.graph import ChannelGroup
from automc.job import Silent
from automc.offer import offer
from automc.policy import Policy, Prune
from automc.space import SearchSpace
from automc.tracing.trace import Traced

POSITIONS = 10
"""Sampled per image and layer, as He et al. do."""


class Reconstruction:
    """Builds each candidate anew: L1 pruning, then least squares layer by layer to the dense outputs at sampled places.

    Args:
        sequential: read what the layers before leave over, as He et al. 2017; otherwise what the dense model reads, remembered,
            as AMC's code does.
    """

    def __init__(self, traced: Traced, inputs: Sequence[Tensor], *, sequential: bool) -> None:
        self.traced = traced
        self.inputs = inputs
        self.sequential = sequential
        self.places: dict[str, Tensor] = {}
        self.columns: dict[str, Tensor] = {}
        self.wanted: dict[str, Tensor] = {}
        layers = [layer for layer in traced.graph.layers if layer.groups == 1]
        for name, read in inputs_read(traced.model, [layer.name for layer in layers], inputs).items():
            layer = traced.model.get_submodule(name)
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            count = traced.graph.layer[name].positions
            self.places[name] = torch.randint(count, (len(read), min(POSITIONS, count)))
            self.columns[name] = patches(layer, read, self.places[name])
            self.wanted[name] = self.columns[name] @ layer.weight.flatten(1).T

    def apply(self, policy: Policy) -> nn.Module:
        """The pruned model of a policy."""
        groups = self.traced.graph.groups
        keep = {
            name: self._largest(self.traced.graph.group[name], s.keep) for name, s in policy if isinstance(s, Prune)
        }
        model = copy.deepcopy(self.traced.model)
        remove_channels(model, groups, keep)
        gone = {(name, side): indices for name, side, indices in dropped(groups, keep)}
        for layer in self.traced.graph.layers:  # in order of execution
            if (layer.name, "in") in gone and layer.groups == 1:
                self._refit(model, layer.name, gone)
        return model

    def _largest(self, group: ChannelGroup, keep: int) -> list[int]:
        """The `keep` channels of the largest L1 norm over the layers that produce them."""
        norms = torch.zeros(group.width)
        for member in group.members:
            layer = self.traced.model.get_submodule(member.module) if member.side == "out" else None
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                norms += layer.weight.abs().flatten(1).sum(1)[torch.tensor(member.index)].sum(1)
        return sorted(norms.argsort(descending=True)[:keep].tolist())

    def _refit(self, model: nn.Module, name: str, gone: Mapping[tuple[str, str], list[int]]) -> None:
        """Least squares of the dense layer's outputs on what the pruned layer reads, at the same places."""
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        channels = _remaining(self.traced.graph.layer[name].in_channels, gone[name, "in"])
        size = layer.weight[0, 0].numel()
        features = (channels[:, None] * size + torch.arange(size)).flatten()
        columns = self._now(model, name, layer) if self.sequential else self.columns[name][:, features]
        rows = _remaining(self.wanted[name].shape[1], gone.get((name, "out"), []))
        design = columns.double()
        square = design.T @ design
        square += 1e-4 * square.diagonal().mean() * torch.eye(len(square))
        found = torch.linalg.solve(square, design.T @ self.wanted[name][:, rows].double(), left=True).float()
        layer.weight = nn.Parameter(found.T.reshape(len(rows), *layer.weight.shape[1:]), requires_grad=False)

    def _now(self, model: nn.Module, name: str, layer: nn.Conv2d | nn.Linear) -> Tensor:
        """What the layer reads in the model as it stands."""
        return patches(layer, inputs_read(model, [name], self.inputs)[name], self.places[name])


def inputs_read(model: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What the layers read; the model runs no further than the last of them."""
    seen: dict[str, Tensor] = {}

    class Enough(Exception):
        pass

    def keep(name: str, tensor: Tensor) -> None:
        seen[name] = tensor
        if len(seen) == len(names):
            raise Enough

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0]))
        for name in names
    ]
    with torch.inference_mode(), contextlib.suppress(Enough):
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


def patches(layer: nn.Conv2d | nn.Linear, inputs: Tensor, places: Tensor) -> Tensor:
    """(samples, features) of what a layer reads for the output places (images, places) of its inputs."""
    image = torch.arange(len(inputs))[:, None]
    if isinstance(layer, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])[image, places].flatten(0, 1)
    (high, wide), (kernel_h, kernel_w) = layer.padding, layer.kernel_size
    padded = F.pad(inputs, (wide, wide, high, high))
    width = (padded.shape[-1] - layer.dilation[1] * (kernel_w - 1) - 1) // layer.stride[1] + 1
    top, left = places // width * layer.stride[0], places % width * layer.stride[1]
    rows = top[..., None, None] + layer.dilation[0] * torch.arange(kernel_h)[:, None]
    columns = left[..., None, None] + layer.dilation[1] * torch.arange(kernel_w)
    found = padded[image[..., None, None], :, rows, columns]  # (images, places, kernel, kernel, channels)
    return found.movedim(-1, 2).flatten(0, 1).flatten(1)


def _remaining(size: int, gone: Sequence[int]) -> Tensor:
    return torch.tensor([number for number in range(size) if number not in set(gone)])


def pruning(space: SearchSpace) -> SearchSpace:
    """The pruning choices of a space."""
    return SearchSpace(tuple(domain for domain in space.domains if domain.knob == "prune"))


def raced(racing: Racing) -> Callable[[Policy], float]:
    """As in a search in which every candidate costs what the best of those before it does."""
    known: list[float] = []

    def evaluate(policy: Policy) -> float:
        known.append(racing.race(policy, max(known)) if known else racing.evaluate(policy))
        return known[-1]

    return evaluate


def main() -> None:
    """Print candidates per minute of each way, their spread over repeats, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--model", "--weights", "--data", "--evaluate"):
        parser.add_argument(option)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data, score = load_data(options.data, 64), load_score(options.evaluate)
    inputs = gather(data.calibration, options.calibration)
    model = load_model(options.model, Path(options.weights) if options.weights else None).eval()
    offered = offer(model, tuple(t[:1] for t in inputs), Cpu(options.threads), space="default")
    traced, space = offered.traced, pruning(offered.space)
    batches = [tuple(t[i : i + 64] for t in inputs) for i in range(0, len(inputs[0]), 64)]
    start = time.perf_counter()
    stitcher = Stitcher(traced, calibrate(traced, batches, len(inputs[0])), tuple(t[:128] for t in inputs))
    prepared = time.perf_counter() - start
    start = time.perf_counter()
    with torch.inference_mode():
        dense = float(score(traced.model, data.validation))
    engine = fast_evaluator(stitcher, space, data.validation, score, dense, Silent())
    chosen = time.perf_counter() - start
    builder = engine.builder  # type: ignore[attr-defined]

    def rebuilt(sequential: bool) -> Callable[[Policy], float]:
        return Stitched(Reconstruction(traced, inputs, sequential=sequential), data.validation, score).evaluate

    ways: dict[str, Callable[[Policy], float]] = {
        "engine, all samples": engine.evaluate,
        "eager stitching": Stitched(stitcher, data.validation, score).evaluate,
        "reconstruct (AMC)": rebuilt(sequential=False),
        "reconstruct (He 2017)": rebuilt(sequential=True),
    }
    if isinstance(engine, Racing):
        ways = {"engine, racing": raced(engine), **ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, list[float]] = {name: [] for name in ways}
    rng = np.random.default_rng(0)
    policies = space.decode(space.sample(options.candidates * (1 + options.repeats), rng))
    for repeat in range(1 + options.repeats):  # the first warms up and is not counted
        for name, evaluate in ways.items():
            start = time.perf_counter()
            found = [evaluate(p) for p in policies[repeat * options.candidates : (repeat + 1) * options.candidates]]
            if repeat:
                seconds[name].append((time.perf_counter() - start) / options.candidates)
                scores[name].extend(found)
    print(f"{options.threads} thread(s), {options.candidates} candidates x {options.repeats} repeats, "
          f"{len(inputs[0])} calibration samples, dense score {dense:.4f}, builder {type(builder).__name__}")  # fmt: skip
    print(f"once: moments {prepared:.1f} s, choosing the evaluator {chosen:.1f} s")
    amc, he = (np.median(seconds[f"reconstruct ({name})"]) for name in ("AMC", "He 2017"))
    for name, times in seconds.items():
        spread = (max(times) - min(times)) / np.median(times)
        print(f"{name:22s} {60 / np.median(times):7.1f} /min   spread {100 * spread:3.0f} %   {amc / np.median(times):5.1f} x AMC   "
              f"{he / np.median(times):5.1f} x He 2017   mean score {np.mean(scores[name]):.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
