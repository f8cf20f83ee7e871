"""Narrowing: factorisations that gain nothing are not offered, and prices stay those of the same policies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic

from automc.aim import learn_aim
from automc.budget import Budget
from automc.errors import InputError
from automc.narrow import Narrowing, narrow
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.predict.predictor import LearnedPredictor
from automc.predict.profile import profile_model
from automc.protocols import Costs
from automc.space import Codes, Domain, SearchSpace

SPACE = SearchSpace(
    (
        Domain("a", "prune", (None, Prune(4), Prune(2))),
        Domain("a", "low_rank", (None, LowRank(9), LowRank(8, "tucker"), LowRank(2))),
        Domain("b", "low_rank", (None, LowRank(7))),
        Domain("b", "quantize", (None, Quantize(8, 8))),
    )
)


class Table:
    """Each choice adds seconds, bytes and MACs to a dense model of 1."""

    seconds = ((0, 0.5, 0.6), (0, 0.1, 0.0, -0.2), (0, 0.3), (0, 0.2))
    bytes = ((0, 0, 0), (0, -0.1, 0.2, -0.3), (0, 0.0), (0, -0.5))

    def predict(self, codes: Codes) -> Costs:
        seconds, size = (
            1.0 + sum((np.array(column)[of] for column, of in zip(table, codes.T, strict=False)), np.zeros(len(codes)))
            for table in (self.seconds, self.bytes)
        )
        return Costs(seconds, seconds * 0.5, seconds * 1.5, size, size)


class Listener:
    """An Observer that keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def stage(self, name: str, total: float | None) -> None: ...

    def advance(self, amount: float = 1.0, note: str = "") -> None: ...

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


def test_what_is_slower_alone_goes_and_its_number_is_said() -> None:
    listener = Listener()
    found = narrow(SPACE, Table(), Budget.parse("60%"), listener)
    assert [(d.target, d.knob, d.choices) for d in found.domains] == [
        ("a", "prune", (None, Prune(4), Prune(2))),  # slower too, and no factorisation
        ("a", "low_rank", (None, LowRank(2))),
        ("b", "quantize", (None, Quantize(8, 8))),
    ]
    assert listener.messages == ["3 of 4 factorisations are predicted to gain nothing and are not offered."]


@pytest.mark.parametrize("budget", ["1MB", "50%macs"])
def test_what_helps_a_limit_on_size_or_macs_stays(budget: str) -> None:
    found = narrow(SPACE, Table(), Budget.parse(budget), Listener())
    assert found.domains[1].choices == (None, LowRank(9), LowRank(2))


def test_nothing_is_said_where_nothing_goes() -> None:
    listener = Listener()
    small = SearchSpace(SPACE.domains[:1])
    assert narrow(small, Table(), None, listener) == small
    assert narrow(SearchSpace(()), Table(), None, listener) == SearchSpace(())
    assert not listener.messages


def test_codes_are_widened_to_those_of_the_same_policies() -> None:
    small = narrow(SPACE, Table(), None, Listener())
    codes = small.sample(50, np.random.default_rng(0))
    assert SPACE.decode(Narrowing.of(small, SPACE).widen(codes)) == small.decode(codes)
    with pytest.raises(InputError, match="shape"):
        Narrowing.of(small, SPACE).widen(np.zeros((1, len(SPACE)), dtype=np.int64))
    with pytest.raises(ValueError, match="lacks"):
        Narrowing.of(SPACE, small)


def test_a_narrowed_predictor_prices_the_same_policies_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path))
    graph, space, dense = synthetic.graph(), synthetic.space(), synthetic.build(Policy())
    device = synthetic.ClosedFormDevice()
    profile = profile_model(device, synthetic.build, graph, space, synthetic.inputs(), dense)
    wide = LearnedPredictor.fit(profile, graph, space, dense, synthetic.BATCH)
    dropped = Domain("a", "low_rank", (None, LowRank(12)))
    small = SearchSpace(tuple(dropped if (d.target, d.knob) == ("a", "low_rank") else d for d in space.domains[:-2]))
    learned = wide.narrowed(small)
    policies = small.decode(small.sample(20, np.random.default_rng(0)))
    np.testing.assert_array_equal(
        learned.predict(small.encode(policies)).latency_s, wide.predict(space.encode(policies)).latency_s
    )
    cost = learned.predict(small.encode(policies[:1]))[0]
    assert cost.latency_s is not None
    corrected, aim = learn_aim(
        learned, small, [(policies[0], cost.with_measured_latency(2 * cost.latency_s, (0, 1)))], 1
    )
    assert corrected.predict(small.encode(policies[:1])).latency_s[0] == pytest.approx(2 * cost.latency_s)
    assert aim.ratio["latency_s"] == pytest.approx(2.0)
