"""Which side of the budget a measured model is on."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch

from automc.budget import Budget
from automc.certify import MOST_REPEATS, Candidate, Certified, Certifier, Failed, settled
from automc.devices.cpu import Cpu
from automc.devices.measure import Measurement
from automc.devices.probe import conv_model
from automc.devices.unmeasured import Unmeasured
from automc.errors import MissingError
from automc.policy import Policy, Prune
from automc.prepare import Prepared
from automc.protocols import Costs
from automc.result import Certificate, Finalist
from automc.space import Codes, Domain, SearchSpace
from automc.trial import Cost

DENSE = (0.100,) * 12
UNSURE = tuple(0.048 + 0.0005 * i for i in range(12))


class Bare(Certifier):
    """Models are their files, and score 1."""

    def __init__(self, device: Any, dense: bytes, predictor: Any = None) -> None:
        prepared = SimpleNamespace(
            device=device, dense_onnx=dense, example=(torch.ones(1, 8, 14, 14),), build=lambda model: model,
            predictor=predictor, space=SPACE, joules=None,
        )  # fmt: skip
        self.prepared, self.budget, self.batch_size, self.seed = cast(Prepared, prepared), Budget.parse("80%"), 1, 0
        self._judge = cast(Any, SimpleNamespace(divergence=lambda model: 0.0, worth=lambda score, away: score))
        self._dense_energy = None
        cost = Cost(latency_s=0.1) if predictor is None else predictor.predict(SPACE.dense[None])[0]
        self.dense = Finalist(Policy(), cost, None, 1.0, None, False, "dense")

    def scores(self, onnx: bytes) -> tuple[float, float | None]:
        return 1.0, None


SPACE = SearchSpace((Domain("a", "prune", (None, Prune(4), Prune(6))),))


def candidate(keep: int, model: bytes) -> Candidate:
    return Candidate(Policy.of([("a", Prune(keep))]), cast(Any, model))


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automc.certify.verify", lambda *arguments: 0.0)
    monkeypatch.setattr("automc.certify._macs", lambda *arguments: 1.0)


class Elsewhere(Unmeasured):
    """A machine that is not at hand."""

    threads = 1

    def absent(self) -> MissingError:
        return MissingError("not at hand")

    def environment(self) -> dict[str, str]:
        return {"processor": "another"}


class Priced:
    """0.1 s less 0.03 s per code, within a tenth, by a noisy profile of another day."""

    report = SimpleNamespace(noise_floor=0.02)
    origin: ClassVar = {
        "noisy": "true",
        "notes": "not measured, priced by a profile",
        "measured_at": "2026-01-01T00:00:00",
    }

    def predict(self, codes: Codes) -> Costs:
        seconds = 0.1 - 0.03 * codes.sum(1).astype(np.float64)
        return Costs(seconds, 0.9 * seconds, 1.1 * seconds, seconds, seconds)


def test_what_cannot_be_measured_is_certified_as_what_it_is_a_prediction(unverified: None) -> None:
    [found] = Bare(Elsewhere(), conv_model(8, 8), Priced()).certify([candidate(4, conv_model(8, 8))])
    assert isinstance(found, Certified)
    told = found.certificate
    assert (told.source, told.holds, told.rounds_s, told.noise_floor) == ("predicted", True, {}, 0.02)
    assert (told.latency_s, *told.latency_interval_s) == pytest.approx((0.07, 0.063, 0.077))
    assert (told.dense_latency_s, *told.dense_latency_interval_s) == pytest.approx((0.1, 0.09, 0.11))
    assert told.environment == {"processor": "another", **Priced.origin}
    assert Certificate.from_json(told.to_json()) == told
    assert not found.finalist.noisy


class Picky(Cpu):
    """Fails where it measures what it loads."""

    def __init__(self, refused: bytes) -> None:
        super().__init__(1)
        self.refused, self.calls = refused, 0

    def measure(self, models: Any, inputs: Any, rounds: int = 12, **options: Any) -> Measurement:
        self.calls += 1
        if self.refused in models.values():
            raise RuntimeError("no kernel")
        values = {name: (0.1 if name == "dense" else 0.05,) * rounds for name in models}
        return Measurement(values)


def test_a_finalist_that_cannot_be_measured_costs_the_others_nothing(unverified: None) -> None:
    good, better, bad, dense = conv_model(8, 8), conv_model(8, 24), conv_model(8, 16), conv_model(8, 32)
    tried = [candidate(4, good), candidate(6, bad), candidate(2, better)]
    first, failed, last = Bare(Picky(bad), dense).certify(tried)
    assert isinstance(failed, Failed)
    assert (failed.candidate, failed.reason) == (tried[1], "RuntimeError: no kernel")
    for found in (first, last):
        assert isinstance(found, Certified)
        assert (found.certificate.latency_s, found.finalist.holds) == (0.05, True)


def test_all_that_can_be_measured_is_measured_at_once(unverified: None) -> None:
    device = Picky(b"")
    found = Bare(device, conv_model(8, 8)).certify([candidate(4, conv_model(8, 16)), candidate(6, conv_model(8, 24))])
    assert device.calls == 1
    assert all(isinstance(one, Certified) for one in found)


def test_a_dense_model_that_cannot_be_measured_ends_the_search(unverified: None) -> None:
    dense = conv_model(8, 8)
    with pytest.raises(RuntimeError, match="no kernel"):
        Bare(Picky(dense), dense).certify([candidate(4, conv_model(8, 16))])


def rounds(noisy: bool = False, **models: Sequence[float]) -> Measurement:
    return Measurement({"dense": DENSE, **{name: tuple(values) for name, values in models.items()}}, noisy)


def half(measured: Measurement) -> float:
    return 0.5 * measured.median_s("dense")


def test_what_is_clear_is_not_measured_again() -> None:
    measured = rounds(fast=(0.040,) * 12, slow=(0.060,) * 12)
    found = settled(measured, ["fast", "slow"], half, lambda names, time: rounds())
    assert found == {"fast": measured, "slow": measured}


def test_only_what_may_be_on_either_side_is_measured_on() -> None:
    asked: list[tuple[list[str], int]] = []

    def again(names: Sequence[str], time: int) -> Measurement:
        asked.append((list(names), time))
        return rounds(unsure=(0.049,) * 40)

    found = settled(rounds(fast=(0.040,) * 12, unsure=UNSURE), ["fast", "unsure"], half, again)
    assert asked == [(["unsure"], 1)]
    assert len(found["unsure"].rounds_s["unsure"]) == len(UNSURE) + 40
    assert len(found["unsure"].rounds_s["dense"]) == 2 * len(DENSE)
    assert found["unsure"].interval_s("unsure")[1] <= half(found["unsure"])


def test_what_stays_at_the_limit_is_left_undecided() -> None:
    times: list[int] = []

    def again(names: Sequence[str], time: int) -> Measurement:
        times.append(time)
        return rounds(unsure=UNSURE)

    found = settled(rounds(unsure=UNSURE), ["unsure"], half, again)
    assert times == list(range(1, MOST_REPEATS + 1))
    assert found["unsure"].interval_s("unsure")[1] > half(found["unsure"])


def test_quiet_rounds_replace_disturbed_ones() -> None:
    found = settled(
        rounds(noisy=True, unsure=UNSURE), ["unsure"], half, lambda names, time: rounds(unsure=(0.045,) * 12)
    )
    assert not found["unsure"].noisy
    assert found["unsure"].rounds_s["unsure"] == (0.045,) * 12


def test_without_a_limit_of_latency_nothing_is_undecided() -> None:
    measured = rounds(unsure=UNSURE)
    assert settled(measured, ["unsure"], lambda _: float("inf"), lambda names, time: rounds()) == {"unsure": measured}
