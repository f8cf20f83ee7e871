"""What trained models are chosen by."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from automc.evaluate.data import Data, TensorSplit
from automc.evaluate.score import Score, accuracy
from automc.evaluate.worth import Judge

ACCURACY = Score("accuracy", accuracy)


def noisy(inputs: Tensor) -> Tensor:
    return inputs + 0.1 * torch.randn_like(inputs)


def data() -> Data:
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    split = TensorSplit(x, x[:, :3].argmax(1), 30)
    return Data(split, split, split, None, "lines", augment=noisy)


def teacher() -> nn.Linear:
    """Right on every sample."""
    linear = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3, 6))
    return linear.requires_grad_(False)


def scaled(factor: float) -> nn.Linear:
    """As right as the teacher, and surer or less sure of it."""
    linear = teacher()
    linear.weight.mul_(factor)
    return linear


def judge(score: Score = ACCURACY) -> Judge:
    return Judge(teacher(), data(), score, logits=True)


def test_of_models_that_score_alike_the_nearer_to_the_dense_one_is_worth_more() -> None:
    near, far = judge().examine(scaled(1.1)), judge().examine(scaled(4.0))
    assert near["score"] == far["score"] == 1.0
    assert near["worth"] > far["worth"]
    assert judge().examine(teacher()) == {"score": 1.0, "divergence": 0.0, "worth": 1.0}


def test_what_the_dense_model_may_have_learned_by_heart_tells_less() -> None:
    held_out, seen = (
        Judge(teacher(), replace(data(), is_seen=known), ACCURACY, logits=True) for known in (False, True)
    )
    assert held_out.worth(0.9, 0.2) == pytest.approx(0.9 - 0.1 * (1 - math.exp(-0.2)))
    assert seen.worth(0.9, 0.2) == pytest.approx(0.9 - (1 - math.exp(-0.2)))
    assert seen.worth(0.9, math.inf) == pytest.approx(-0.1)


def test_a_score_of_the_users_own_counts_alone() -> None:
    own = judge(Score("own", lambda model, split: -20.0)).examine(scaled(4.0))
    assert own["divergence"] > 0.1
    assert own["worth"] == -20.0


def test_every_process_examines_on_the_same_inputs_and_leaves_chance_alone() -> None:
    first, model = judge(), scaled(2.0)
    torch.manual_seed(5)
    found = first.divergence(model)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert copy.deepcopy(first).divergence(model) == found
    assert "_reference" not in vars(copy.copy(first))
    plain = Judge(teacher(), replace(data(), augment=None), ACCURACY, logits=True)
    assert plain.divergence(model) != found
