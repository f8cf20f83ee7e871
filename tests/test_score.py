"""The score, built in or a user's, and what is said where it cannot be had."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_data import write_python
from torch import Tensor

from automc.errors import InputError
from automc.evaluate.score import Score, accuracy, guess_warning, load_score


def one_hot(x: Tensor) -> Tensor:
    """(batch,) -> logits (batch, 4) that say the number itself."""
    return torch.nn.functional.one_hot(x.long(), 4).float()


def test_accuracy_is_the_share_that_is_right_over_uneven_batches() -> None:
    loader = [(torch.tensor([0.0, 1, 2]), torch.tensor([0, 1, 3])), (torch.tensor([3.0]), torch.tensor([3]))]
    assert accuracy(one_hot, loader) == 0.75
    score = load_score(None)
    assert score.name == "accuracy"
    assert score(one_hot, loader) == 0.75


def test_accuracy_counts_pixels_too() -> None:
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 1] = 1
    targets = torch.ones(2, 4, 4).long()
    targets[0, :2] = 0
    assert accuracy(lambda x: logits, [(torch.zeros(2), targets)]) == 0.75


@pytest.mark.parametrize(
    ("targets", "message"),
    [(torch.zeros(3), "integer class targets, not torch.float32"), (torch.zeros(2).long(), r"targets \(2,\)"),
     (torch.zeros(3, 1).long(), r"targets \(3, 1\)"), (["a", "b", "c"], "not list")],
)  # fmt: skip
def test_accuracy_refuses_targets_that_are_no_classes(targets: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        accuracy(one_hot, [(torch.zeros(3), targets)])


def test_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to score"):
        accuracy(one_hot, [])


@pytest.mark.parametrize("value", ["None", "float('nan')", "'high'", "float('inf')"])
def test_a_score_has_to_be_a_number(tmp_path: Path, value: str) -> None:
    path = write_python(tmp_path, f"def quality(model, loader): return {value}\n")
    score = load_score(f"{path}:quality")
    assert score.name == "quality"
    with pytest.raises(InputError, match="quality returned"):
        score(len, [])


def test_a_score_may_be_a_tensor(tmp_path: Path) -> None:
    path = write_python(tmp_path, "import torch\ndef quality(model, loader): return torch.tensor(-0.5)\n")
    value = load_score(f"{path}:quality")(len, [])
    assert value == -0.5
    assert isinstance(value, float)
    assert not math.isnan(value)


def test_a_score_that_is_no_function_is_refused() -> None:
    with pytest.raises(InputError, match="'f1' is not a score"):
        load_score("f1")


def test_an_accuracy_that_guessing_would_reach_is_doubted() -> None:
    top_1, logits = load_score(None), torch.zeros(2, 20)
    assert "3.33 % of the validation samples right, no more than guessing among its 20 classes" in str(
        guess_warning(top_1, 0.0333, logits)
    )
    assert guess_warning(top_1, 0.05, logits)
    assert guess_warning(top_1, 0.0, {"logits": logits, "other": torch.zeros(2)})
    assert guess_warning(top_1, 0.051, logits) is None
    assert guess_warning(top_1, 1.0, torch.zeros(2, 1)) is None
    assert guess_warning(Score("loss", lambda *_: -3.0), -3.0, logits) is None
