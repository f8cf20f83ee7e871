"""What a compressed model is worth: what searches go by, and what trainings, their rounds and versions of a model are chosen by.

An accuracy on a few hundred samples is known to a point or so; how far a model's outputs are from the dense model's tells models apart
with less noise, so it counts too. Where the samples that guide a search were among those that the dense model was trained on, it counts
most: on them the dense model is right nearly always, and so is whatever imitates it, also where that does worse on new ones. It is taken
on inputs that the dense model has not seen as they are, which random changes give; in a search, where it has to cost nothing, on those that are scored.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from automc.evaluate.data import Data, gather
from automc.evaluate.divergence import divergence
from automc.evaluate.score import Score

__all__ = ["GAIN", "Judge", "price_of_a_nat", "worth"]

GAIN = 0.002
"""A trained model has to be worth so much more than the untrained one to take its place; less is noise."""
NAT_HELD_OUT, NAT_SEEN = 0.1, 1.0
"""What the first nats of divergence cost in shares of right answers: on samples that are new to the dense model, and on such as it may know."""
_SAMPLES, _MOST_BYTES = 512, 1 << 26
_BATCH = 64
_SEED = 0


def price_of_a_nat(data: Data, score: Score, *, logits: bool) -> float | None:
    """What `worth` takes a nat of divergence for; None where the score has a scale of its own, and counts alone."""
    if not (logits and score.logits):
        return None
    return NAT_SEEN if data.is_seen else NAT_HELD_OUT


def worth(score: float, divergence: float, price: float | None) -> float:
    """Share of right answers less what the divergence, in nats, costs: never more than `price`, however far the outputs are."""
    return score if price is None else score - price * -math.expm1(-divergence)


class Judge:
    """Examines models against the dense one, all on the same inputs.

    Args:
        score: of a model on a split, higher is better. The built-in accuracy counts together with the divergence; any other score
            has a scale of its own and counts alone.
        logits: the outputs are logits of classes.
    """

    def __init__(self, teacher: nn.Module, data: Data, score: Score, *, logits: bool) -> None:
        self._teacher, self._data, self._score, self._logits = teacher, data, score, logits

    def divergence(self, model: nn.Module) -> float:
        """From the dense model, on changed validation inputs; see `evaluate.divergence` for the unit."""
        with torch.no_grad():
            found = [
                (len(inputs[0]), divergence(reference, model(*inputs), logits=self._logits))
                for inputs, reference in self._reference
            ]
        return sum(count * value for count, value in found) / sum(count for count, _ in found)

    def worth(self, score: float, divergence: float) -> float:
        """As the function `worth`, at the price for these data and this score."""
        return worth(score, divergence, price_of_a_nat(self._data, self._score, logits=self._logits))

    def examine(self, model: nn.Module) -> dict[str, float]:
        """{"score": on the validation samples, "divergence", "worth"}.

        Raises:
            InputError: the score is not a finite number.
        """
        with torch.no_grad():
            score = float(self._score(model, self._data.validation))
        away = self.divergence(model)
        return {"score": score, "divergence": away, "worth": self.worth(score, away)}

    def __getstate__(self) -> dict[str, Any]:
        """Without what another process finds out again as quickly as it can be sent."""
        return {name: value for name, value in self.__dict__.items() if name != "_reference"}

    @cached_property
    def _reference(self) -> list[tuple[tuple[Tensor, ...], Any]]:
        """Batches of inputs, and what the dense model puts out for them."""
        example = gather(self._data.validation, 1)
        bytes_each = sum(tensor.numel() * tensor.element_size() for tensor in example)
        inputs = gather(self._data.validation, max(_BATCH, min(_SAMPLES, _MOST_BYTES // bytes_each)))
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(_SEED)
            changed = self._data.changed(inputs)
            batches = list(zip(*(tensor.split(_BATCH) for tensor in changed), strict=True))
            return [(batch, self._teacher(*batch)) for batch in batches]
