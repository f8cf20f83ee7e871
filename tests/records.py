"""A made-up but plausible record of a search: a small residual network, its trials, finalists and summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from automc.pareto import front
from automc.policy import LowRank, Policy, Prune, Quantize, Spec
from automc.progress import Progress, Reference
from automc.result import Certificate, Finalist, PredictorReport, Summary
from automc.rundir import RunDir
from automc.space import Domain
from automc.tables import Anchor, Tables
from automc.trial import Cost, Trial

LIMIT_S = 0.050
DENSE = Cost(
    latency_s=0.1004,
    size_bytes=1_085_000,
    macs=68.4e6,
    latency_interval_s=(0.0991, 0.1018),
    source={"latency_s": "measured", "size_bytes": "measured", "macs": "predicted"},
)
GROUPS = {"conv1": 16, **{f"layer{s}.{b}.conv1": 8 * 2**s for s in (1, 2, 3) for b in (0, 1)}}
LAYERS = [
    "conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1) for c in (1, 2)), "fc"
]  # fmt: skip


def make_trials(count: int = 60, seed: int = 0) -> list[Trial]:
    """`count` trials of a search that gets better as it goes; one in ten failed, and so did the fifth."""
    rng = np.random.default_rng(seed)
    trials = [_trial(number, rng, number / count) for number in range(count)]
    if count > 4:
        failed = trials[4]
        trials[4] = Trial(
            4, failed.policy, failed.cost, state="failed", reason="RuntimeError: worker lost", seconds=0.2
        )
    return trials


def make_summary(trials: list[Trial] | None = None, *, name: str = "digits-50ms", reached: bool = True) -> Summary:
    """The summary of `trials`; nothing held the budget unless `reached`."""
    chosen = [t for t in front(trials if trials is not None else make_trials()) if t.cost.latency_upper_s is not None]
    inside = [t for t in chosen if (t.cost.latency_s or 1) < 1.1 * LIMIT_S][-4:]
    finalists = [_finalist(t, i, reached) for i, t in enumerate(inside)]
    holding = [f for f in finalists if f.holds]
    best = max(holding, key=lambda f: f.validation) if holding else None
    if best is not None:
        finalists.append(_recovered(best))
        best = finalists[-1]
    return Summary(
        name=name,
        model="demo: ResNet-20 on handwritten digits",
        device="cpu (Xeon 2.4 GHz, ONNX Runtime 1.31, 1 thread)",
        agent="ilp",
        seed=0,
        score_name="accuracy",
        batch_size=64,
        budget=("50ms",),
        limits={"latency_s": LIMIT_S},
        dense=Finalist(Policy(), DENSE, 0.0989, 0.9911, 0.9889, False, "dense"),
        best=best,
        smallest=None if best else min(finalists, key=lambda f: f.cost.latency_s or math.inf),
        finalists=tuple(finalists),
        predictor=PredictorReport(
            mape=0.041, kernel_mape=0.083, noise_floor=0.012, kernels=212, models=14, coverage=0.97
        ),
        trials=len(trials) if trials is not None else 60,
        dense_meets_budget=False,
        left_alone=(
            ("conv1", "reads the image: its 3 input channels are fixed"),
            ("fc", "its 10 outputs are the classes"),
            ("layer1.0.conv1", "low rank: the factors would cost more than the layer"),
        ),
        seconds={"trace": 1.2, "profile": 41.0, "calibrate": 6.1, "search": 38.5, "certify": 14.2, "recover": 60.3},
        widths=GROUPS,
    )


def make_certificate(summary: Summary | None = None) -> Certificate:
    """A certificate that fits the summary's winner."""
    best = (summary or make_summary()).best
    assert best is not None
    assert best.cost.latency_s is not None
    assert best.cost.latency_interval_s is not None
    return Certificate(
        limits={"latency_s": LIMIT_S},
        batch_size=64,
        latency_s=best.cost.latency_s,
        latency_interval_s=best.cost.latency_interval_s,
        dense_latency_s=0.1004,
        dense_latency_interval_s=(0.0991, 0.1018),
        size_bytes=312_000,
        holds=True,
        noise_floor=0.012,
        environment={"processor": "Xeon 2.4 GHz", "runtime": "onnxruntime 1.31.0", "threads": "1"},
        rounds_s={"dense": (0.1001, 0.1007), "best": (0.0468, 0.0472)},
    )


def _trial(number: int, rng: np.random.Generator, progress: float) -> Trial:
    strength = float(rng.uniform(0.05, 1.0))
    policy = _policy(strength, rng)
    latency_s = 0.1 * (1.0 - 0.75 * strength) * float(rng.uniform(0.97, 1.03))
    cost = Cost(
        latency_s=latency_s,
        size_bytes=1_085_000 * (1 - 0.8 * strength),
        macs=68.4e6 * (1 - 0.8 * strength),
        latency_interval_s=(0.93 * latency_s, 1.07 * latency_s),
        source={"latency_s": "predicted", "size_bytes": "predicted", "macs": "predicted"},
    )
    if number % 10 == 9:
        return Trial(number, policy, cost, state="failed", reason="RuntimeError: out of memory", seconds=0.0)
    loss = (0.35 - 0.2 * progress) * strength**3 + float(rng.exponential(0.01))
    return Trial(number, policy, cost, score=max(0.1, 0.991 - loss), seconds=round(float(rng.uniform(0.2, 0.8)), 3))


def _policy(strength: float, rng: np.random.Generator) -> Policy:
    choices: list[tuple[str, Spec]] = []
    for name, width in GROUPS.items():
        keep = width - 8 * int(strength * rng.uniform(0, width / 8))
        if keep < width:
            choices.append((name, Prune(max(8, keep))))
    for name in LAYERS:
        if rng.uniform() < strength:
            choices.append((name, Quantize(8, 8)))
        elif "layer3" in name and rng.uniform() < strength:
            choices.append((name, LowRank(8 * int(rng.integers(1, 4)))))
    return Policy.of(choices)


def _finalist(trial: Trial, index: int, reached: bool) -> Finalist:
    assert trial.cost.latency_s is not None
    assert trial.score is not None
    measured = trial.cost.latency_s * (0.98 + 0.02 * index + (0.0 if reached else 2.0))
    cost = trial.cost.with_measured_latency(measured, (0.985 * measured, 1.012 * measured))
    holds = 1.012 * measured <= LIMIT_S
    return Finalist(trial.policy, cost, trial.cost.latency_s, trial.score, trial.score - 0.004, holds, "finalist")


def _recovered(best: Finalist) -> Finalist:
    return Finalist(
        best.policy,
        best.cost,
        best.predicted_latency_s,
        0.9885,
        0.9861,
        True,
        "recovered",
        (best.validation, best.test),
    )


def make_tables(policies: Sequence[Policy] = ()) -> Tables:
    """Cost tables in which costs add up exactly: a layer's time is its share of the dense latency, less what its choices save."""
    domains = (
        *(Domain(name, "prune", (None, *(Prune(k) for k in range(width - 8, 0, -8)))) for name, width in GROUPS.items() if width > 8),
        *(Domain(name, "quantize", (None, Quantize(8, 8))) for name in LAYERS),
    )  # fmt: skip
    share = 0.1 / len(domains)
    saved = [[share * i / len(d) for i in range(len(d))] for d in domains]
    loss = tuple(tuple(0.01 * (1 + j) * i**2 for i in range(len(d))) for j, d in enumerate(domains))
    dense = Cost(latency_s=0.1, size_bytes=1_085_000.0, macs=68.4e6, source={"latency_s": "predicted"})
    changed = {
        metric: tuple(tuple(value * (1 - gain / 0.1) for gain in row) for row in saved)
        for metric, value in (("latency_s", 0.1), ("size_bytes", 1_085_000.0), ("macs", 68.4e6))
    }
    seconds = [0.001 * (1 + i) for i in range(len(LAYERS))]
    layers_s = {Policy().digest: tuple(seconds)}
    for policy in policies:
        touched = {target for target, _ in policy}
        layers_s[policy.digest] = tuple(
            s * (0.5 if name in touched else 1.0) for name, s in zip(LAYERS, seconds, strict=True)
        )
    return Tables(domains, loss, (Anchor((0,) * len(domains), dense, changed),), tuple(LAYERS), layers_s)


def write_run(folder: Path, trials: Sequence[Trial], summary: Summary | None, **config: object) -> RunDir:
    """What a search leaves in `folder`; one that has not ended where there is no summary."""
    run = RunDir.create(folder, {"model": None, "budget": ["50ms"], "seed": 0, **config})
    for trial in trials:
        run.append(trial)
    dense = Finalist(Policy(), DENSE, 0.0989, 0.9911, 0.9889, False, "dense")
    reference = Reference(dense, {"latency_s": LIMIT_S}, "accuracy")
    run.write_progress(
        Progress(
            "search", len(trials), 2 * len(trials), began=0.0, updated=10.0, ended=bool(summary), reference=reference
        )
    )
    finalists = summary.finalists if summary else ()
    run.write_tables(make_tables([f.policy for f in finalists]))
    if summary is not None:
        run.write_front(trials)
        run.write_summary(summary)
        for finalist in finalists:
            run.write_model(finalist, f"onnx of {finalist.policy.digest}".encode())
        if summary.best is not None:
            run.best.write(summary.best, b"onnx", make_certificate(summary), model_digest="m", device_digest="d")
    return run
