"""The predictor on candidates that it never saw, network by network, and how many policies it prices a second.

    python benchmarks/predictor.py FOLDER [--networks PATH.py:resnet20@32 resnet18@224 mobilenet_v2@224 vit_tiny@224]

FOLDER holds the profiles of benchmarks/profiles.py, measured now where they are missing. Baselines on the same candidates: a
straight line on MACs, and the mean of what was learned from. Errors are of the measured latency of one batch, scaled by what the
models that both sessions know took in either; the noise floor is what the measurements themselves repeat to. What a search meets whose
profile is of another session is not scaled: the same predictor as it was fitted, and paced by what the dense model takes now.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import profiles
from numpy.typing import NDArray
from scipy.stats import kendalltau

from automc.predict.predictor import LearnedPredictor
from automc.predict.profile import Profile, ProfiledModel
from automc.protocols import Costs
from automc.space import SearchSpace

PRICED = 100_000
Latencies = NDArray[np.float64]


def main() -> None:
    """Print a line per network and estimator, then the rate of pricing."""
    parser = argparse.ArgumentParser(description=__doc__)
    profiles.add_arguments(parser)
    for case in profiles.cases(parser.parse_args()):
        predictor = LearnedPredictor.fit(case.profile, case.offered.graph, case.offered.space, case.dense_onnx, 1)
        known = case.profile.candidates
        unseen = case.only_unseen()
        codes = case.offered.space.encode(c.policy for c in unseen)
        seen = case.offered.space.encode(c.policy for c in known)
        truth = _measured(case.unseen, unseen) / case.drift
        line = np.polyfit(predictor.predict(seen).macs, _measured(case.profile, known), 1)
        costs = predictor.predict(codes)
        noise = 100 * case.unseen.noise_floor
        print(
            f"{case.name}: {len(known)} candidates to learn from, {len(unseen)} unseen, noise floor {noise:.1f} %, "
            f"second session {case.drift:.2f} x as slow"
        )
        _report("automc", costs.latency_s, truth)
        _report("line on MACs", np.polyval(line, costs.macs), truth)
        _report("mean", np.full(len(truth), _measured(case.profile, known).mean()), truth)
        _inside(costs, truth)
        now = truth * case.drift
        for name, session in (("as kept", predictor), ("paced", predictor.paced(case.unseen.latency_s(case.dense)))):
            costs = session.predict(codes)
            _report(name, costs.latency_s, now)
            _inside(costs, now)
        print(f"    priced {_rate(predictor, case.offered.space):,.0f} policies a second, none of them seen before")


def _measured(profile: Profile, candidates: Sequence[ProfiledModel]) -> Latencies:
    return np.array([profile.latency_s(c) for c in candidates])


def _report(name: str, predicted: Latencies, truth: Latencies) -> None:
    error = np.abs(predicted / truth - 1.0)
    tau = kendalltau(predicted, truth).statistic if np.ptp(predicted) else float("nan")
    print(
        f"    {name:<14} MAPE {100 * error.mean():5.1f} %, within 10 %: {100 * np.mean(error <= 0.1):3.0f} %, Kendall {tau:.2f}"
    )


def _inside(costs: Costs, truth: Latencies) -> None:
    share = np.mean((costs.latency_low_s <= truth) & (truth <= costs.latency_high_s))
    print(f"    {'':<14} inside the 95 % interval: {100 * share:.0f} %")


def _rate(predictor: LearnedPredictor, space: SearchSpace) -> float:
    codes = space.sample(PRICED, np.random.default_rng(3))
    start = time.perf_counter()
    predictor.predict(codes)
    return PRICED / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
