"""Which side of the budget a measured model is on."""

from __future__ import annotations

from collections.abc import Sequence

from automc.certify import MOST_REPEATS, settled
from automc.devices.measure import Measurement

DENSE = (0.100,) * 12
UNSURE = tuple(0.048 + 0.0005 * i for i in range(12))


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
