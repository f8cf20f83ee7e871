"""How far outputs are apart, and what each single choice costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import images, make

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.evaluate.divergence import divergence, sensitivities
from automc.job import Silent
from automc.policy import Prune, Quantize
from automc.space import Domain, SearchSpace
from automc.trace import trace

SPACE = SearchSpace(
    (
        Domain("a1.0", "prune", (None, Prune(9), Prune(6), Prune(3), Prune(1))),
        Domain("b2.0", "quantize", (None, Quantize(8, 8))),
        Domain("head.2", "quantize", (None,)),
    )
)


def stitcher() -> Stitcher:
    found = trace(make("residual"), (images(4),))
    return Stitcher(found, calibrate(found, [(images(64),)], 64), (images(32),))


def test_the_divergence_of_logits_is_that_of_kullback_and_leibler() -> None:
    reference, outputs = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p, q = np.array([0.5, 0.5]), np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    assert divergence(reference, outputs) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)
    assert divergence(reference, reference) == 0.0


def test_other_outputs_are_compared_by_their_relative_error() -> None:
    reference = torch.randn(4, 3, 5)
    assert divergence(reference, torch.full_like(reference, float(reference.mean()))) == pytest.approx(1.0, rel=0.1)


class Counter(Silent):
    def __init__(self) -> None:
        self.total: float | None = None

    def stage(self, name: str, total: float | None) -> None:
        self.total = total


def test_stronger_choices_cost_more_and_dense_nothing() -> None:
    curves = sensitivities(stitcher(), SPACE, (images(64),), limit_s=60.0, observer=Silent())
    assert [len(curve) for curve in curves] == [5, 2, 1]
    assert all(curve[0] == 0.0 for curve in curves)
    assert (np.diff(curves[0]) >= 0).all()
    assert 0 < curves[1][1] < curves[0][4]


@pytest.mark.parametrize(("limit_s", "measured"), [(60.0, 5), (1e-9, 2)])
def test_what_takes_too_long_is_thinned_out_and_filled_in(limit_s: float, measured: int) -> None:
    counter = Counter()
    curves = sensitivities(stitcher(), SPACE, (images(64),), limit_s=limit_s, observer=counter)
    assert counter.total == measured
    assert (np.diff(curves[0]) > 0).all()
