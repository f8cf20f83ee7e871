"""Numbers as people read them."""

from __future__ import annotations

import pytest

from automc import wording
from automc.trial import Cost


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (4.21, "4.2 s"), (57, "57 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_are_read_at_a_glance(seconds: float, shown: str) -> None:
    assert wording.duration(seconds) == shown


def test_numbers_carry_their_units() -> None:
    cost = Cost(latency_s=0.0431, latency_interval_s=(0.0428, 0.0435))
    assert wording.latency(cost) == "43.1 ms (42.8 to 43.5)"
    assert wording.latency(Cost(latency_s=0.0431)) == "43.1 ms"
    assert wording.interval(Cost(latency_s=8.7e-7, latency_interval_s=(8.61e-7, 8.84e-7))) == "861.0 to 884.0 ns"
    assert wording.latency(Cost()) == wording.quantity("macs", None) == wording.relative(None, 1.0) == "–"
    assert wording.relative(0.1, 0.047) == "-53 %"
    assert wording.score("accuracy", 0.9889) == "98.89 %"
    assert wording.score_change("accuracy", 0.9889, 0.9861) == "-0.28 points"
    assert wording.score("mAP", 0.41237) == "0.4124"


def test_a_simulated_latency_has_no_interval() -> None:
    cost = Cost(latency_s=0.0431, latency_interval_s=(0.0431, 0.0431), source={"latency_s": "simulated"})
    assert wording.interval(cost) == "–"
    assert wording.latency(cost) == "43.1 ms"
    assert wording.known(cost, "latency_s") == "43.1 ms simulated"
    assert wording.known(cost, "energy_j") == "–"
