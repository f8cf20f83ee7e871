"""Profiles of networks with random weights, and of candidates of theirs that no fit sees; measured once, then read.

    python benchmarks/profiles.py FOLDER [--networks PATH.py:resnet20@32 resnet18 mobilenet_v2 vit_tiny] [--unseen 24]

What a kernel takes depends on shapes, not on what weights are worth, so nothing is solved: channels go by their norm.
Networks are `file.py:builder@side` or names that torchvision and timm know; the others' benchmarks read FOLDER.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.criteria import Pruning
from automc.devices.cpu import Cpu
from automc.devices.device import Array, digest
from automc.evaluate.models import load_model
from automc.export.floating import export_float
from automc.export.integer import Closure
from automc.export.onnx import build_onnx
from automc.job import Silent
from automc.offer import Offer, offer
from automc.policy import Policy
from automc.predict.profile import EXPORTS, MAX_CANDIDATES, Profile, ProfiledModel, measure_policies
from automc.predict.sampling import stratified
from automc.predict.store import read_profile, write_profile

ANCHORS = 8
NETWORKS = ("resnet18@224", "mobilenet_v2@224", "vit_tiny@224")


class Teller(Silent):
    """An observer that passes on what is said."""

    def message(self, text: str, level: str = "info") -> None:
        print(f"  {level}: {text}", file=sys.stderr)


@dataclass(frozen=True)
class Case:
    """A network: what it offers, its dense file, what a predictor learns from, and candidates that it must not have seen.

    ANCHORS of the models to learn from, the dense one first, are measured in both sessions, so that a machine that has slowed down
    between them is not taken for an error.
    """

    name: str
    offered: Offer
    dense_onnx: bytes
    profile: Profile
    unseen: Profile

    @property
    def drift(self) -> float:
        """How much slower the second session was: the median over the models that both know."""
        here, there = ({c.policy.digest: p.latency_s(c) for c in p.candidates} for p in (self.profile, self.unseen))
        return float(np.median([there[name] / here[name] for name in here.keys() & there.keys()]))

    @property
    def dense(self) -> ProfiledModel:
        """The dense model, which both sessions measured."""
        return next(candidate for candidate in self.profile.candidates if not len(candidate.policy))

    def only_unseen(self) -> list[ProfiledModel]:
        """The candidates of the second session that the first does not hold."""
        known = {candidate.policy.digest for candidate in self.profile.candidates}
        return [candidate for candidate in self.unseen.candidates if candidate.policy.digest not in known]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name profiles."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME@SIDE")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for either profile of a network")
    parser.add_argument("--unseen", type=int, default=24)


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Each network's profiles, from the folder or measured now and kept there."""
    for name in arguments.networks:
        yield _case(name, arguments)


def _case(name: str, arguments: argparse.Namespace) -> Case:
    source, _, side = name.partition("@")
    torch.manual_seed(0)
    example = torch.randn(1, 3, int(side), int(side))
    device = Cpu(1)
    offered = offer(_network(source), (example,), device)
    dense = export_float(offered.traced.model, (example,)).SerializeToString()
    build = _builder(offered, device, example, dense)
    known = stratified(offered.space, MAX_CANDIDATES, 0)
    drawn = offered.space.sample(arguments.unseen, np.random.default_rng(2))
    others = _different(known, stratified(offered.space, arguments.unseen // 2, 1), drawn)
    anchored = np.concatenate([known[:ANCHORS], others[: arguments.unseen]])

    def profile(codes: Array, seed: int) -> Profile:
        path = arguments.folder / f"{source.rpartition(':')[2]}-{seed}.jsonl"
        key = digest(device.key, name, EXPORTS, repr(codes.tolist()))
        if (found := read_profile(path, key)) is None:
            found = measure_policies(
                device, build, offered.graph, offered.space.decode(codes), [example.numpy()], key,
                time_limit_s=arguments.seconds, seed=seed, observer=Teller(),
            )  # fmt: skip
            write_profile(path, found, Teller())
        return found

    return Case(source.rpartition(":")[2], offered, dense, profile(known, 0), profile(anchored, 1))


def _different(known: Array, *more: Array) -> Array:
    """The rows of `more` that are not among `known`."""
    seen = {tuple(row) for row in known.tolist()}
    rows = dict.fromkeys(tuple(row) for codes in more for row in codes.tolist() if tuple(row) not in seen)
    return np.array(list(rows), dtype=np.int64)


def _builder(offered: Offer, device: Cpu, example: torch.Tensor, dense: bytes) -> Callable[[Policy], bytes]:
    stats = calibrate(offered.traced, [(example,)], 1, memory_bytes=0)
    reduce_range = device.capabilities().reduce_range
    pruning = Pruning("l1", compensate=False)
    closure = Closure(onnx.load_from_string(dense))
    stitcher = Stitcher(offered.traced, stats, (example,), reduce_range=reduce_range, closure=closure, pruning=pruning)
    return lambda policy: build_onnx(stitcher.apply(policy), (example,), reduce_range=reduce_range)


def _network(source: str) -> nn.Module:
    if ":" in source:
        return load_model(source, None)
    _declare_missing()
    import timm
    import torchvision

    if source == "vit_tiny":
        return timm.create_model("vit_tiny_patch16_224").eval()
    return getattr(torchvision.models, source)().eval()


@cache
def _declare_missing() -> torch.library.Library:
    """Operators that torchvision asks for at import where it was built for another torch; to be kept, and declared once."""
    schemas = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return schemas


def main() -> None:
    """Measure, and say how much."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    for case in cases(parser.parse_args()):
        for what, profile in (("learned from", case.profile), ("unseen", case.unseen)):
            kernels = sum(place is not None for c in profile.candidates for place in c.places)
            noise = profile.noise_floor
            print(f"{case.name:>12}, {what}: {len(profile.candidates)} candidates, {kernels} kernels, {profile.seconds:.0f} s, noise floor {100 * noise:.1f} %{', noisy' if profile.measurement.noisy else ''}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
