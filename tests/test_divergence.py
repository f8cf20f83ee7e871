"""How far outputs are apart, which of them are logits, and what each single choice costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import images, make
from torch import Tensor

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.evaluate.data import Data
from automc.evaluate.divergence import distillation_loss, divergence, sensitivities
from automc.evaluate.score import Score, load_score, outputs_are_logits
from automc.job import Silent
from automc.policy import Prune, Quantize
from automc.space import Domain, SearchSpace
from automc.tracing.trace import trace

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
    assert divergence(reference, outputs, logits=True) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)
    assert divergence(reference, reference, logits=True) == 0.0


def test_other_outputs_are_compared_by_their_relative_error() -> None:
    reference = torch.randn(4, 3, 5)
    mean = torch.full_like(reference, float(reference.mean()))
    assert divergence(reference, mean, logits=False) == pytest.approx(1.0, rel=1e-5)


def test_a_shift_of_all_outputs_is_an_error_of_a_regression_and_none_of_logits() -> None:
    reference = torch.randn(8, 3)
    assert divergence(reference, reference + 1, logits=True) == pytest.approx(0.0, abs=1e-6)
    assert divergence(reference, reference + 1, logits=False) == pytest.approx(1 / float(reference.var(correction=0)))


def test_logits_of_many_positions_are_compared_position_by_position() -> None:
    reference, outputs = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    each = [divergence(reference[:, :, i], outputs[:, :, i], logits=True) for i in range(5)]
    assert divergence(reference, outputs, logits=True) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("logits", [True, False])
def test_descending_on_the_distillation_loss_approaches_the_target(logits: bool) -> None:
    target, outputs = torch.randn(8, 3), torch.zeros(8, 3, requires_grad=True)
    assert float(distillation_loss(target, target, logits=logits)) == pytest.approx(0.0, abs=1e-6)
    before = distillation_loss(outputs, target, logits=logits)
    before.backward()
    assert outputs.grad is not None
    assert distillation_loss(outputs - 0.1 * outputs.grad, target, logits=logits) < before


def test_the_temperature_softens_both_sides() -> None:
    outputs, target = torch.randn(8, 3), torch.randn(8, 3)
    loss = float(distillation_loss(outputs, target, logits=True, temperature=4.0))
    assert loss == pytest.approx(16 * divergence(target / 4, outputs / 4, logits=True), rel=1e-4)


class Counter(Silent):
    def __init__(self) -> None:
        self.total: float | None = None

    def stage(self, name: str, total: float | None) -> None:
        self.total = total


def test_stronger_choices_cost_more_and_dense_nothing() -> None:
    curves = sensitivities(stitcher(), SPACE, (images(64),), limit_s=60.0, logits=True, observer=Silent())
    assert [len(curve) for curve in curves] == [5, 2, 1]
    assert all(curve[0] == 0.0 for curve in curves)
    assert (np.diff(curves[0]) >= 0).all()
    assert 0 < curves[1][1] < curves[0][4]


@pytest.mark.parametrize(("limit_s", "measured"), [(60.0, 5), (1e-9, 2)])
def test_what_takes_too_long_is_thinned_out_and_filled_in(limit_s: float, measured: int) -> None:
    counter = Counter()
    curves = sensitivities(stitcher(), SPACE, (images(64),), limit_s=limit_s, logits=True, observer=counter)
    assert counter.total == measured
    assert (np.diff(curves[0]) > 0).all()


OUTPUTS = torch.randn(4, 3)
CLASSES, VALUES = torch.tensor([0, 2, 1, 0]), torch.randn(4, 3)


@pytest.mark.parametrize(
    ("targets", "outputs", "expected"),
    [
        (CLASSES, OUTPUTS, True),
        (VALUES, OUTPUTS, False),
        (VALUES.round().long(), OUTPUTS, False),
        (CLASSES + 1, OUTPUTS, False),
        (CLASSES, torch.randn(4, 1), False),
        (CLASSES, torch.randn(4), False),
        (CLASSES, torch.randn(4, 3, 5), False),
        (None, OUTPUTS, False),
    ],
)
def test_the_targets_of_an_own_score_tell_logits_from_values(
    targets: Tensor | None, outputs: Tensor, expected: bool
) -> None:
    batches = [torch.randn(4, 2)] if targets is None else [(torch.randn(4, 2), targets)]
    data = Data(None, batches, batches, None, "data")
    own = Score("accuracy", lambda model, loader: 1.0)  # a name proves nothing
    assert outputs_are_logits(data, own, outputs) is expected


def test_the_built_in_accuracy_scores_logits_at_every_position() -> None:
    data = Data(None, [], [], None, "data")
    assert load_score(None).logits
    assert not Score("accuracy", lambda model, loader: 1.0).logits
    assert outputs_are_logits(data, load_score(None), torch.randn(4, 3, 5, 5))
    assert not outputs_are_logits(data, load_score(None), torch.randn(4))


def test_logits_that_are_no_numbers_do_not_count_as_equal() -> None:
    reference = torch.randn(4, 3)
    assert math.isnan(divergence(reference, reference * math.nan, logits=True))
