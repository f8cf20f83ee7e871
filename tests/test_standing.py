"""What was measured beside a dense model of another speed is compared on one scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from automc.budget import Budget
from automc.certify import Certified
from automc.standing import Standing
from automc.trial import Cost


def _drifted(budget: str) -> tuple[Standing, Certified, Any]:
    """The dense model took 72 us and 720 uJ before the search, and takes half as much beside a finalist of 25 us and 250 uJ."""
    before, now = (SimpleNamespace(cost=Cost(latency_s=s, energy_j=10 * s)) for s in (72e-6, 36e-6))
    standing = SimpleNamespace(budget=Budget.parse(budget), dense=before)
    standing._is_absolute = lambda metric: Standing._is_absolute(cast(Standing, standing), metric)
    certificate = SimpleNamespace(dense_latency_s=36e-6, latency_s=25e-6, dense_energy_j=360e-6)
    finalist = SimpleNamespace(cost=Cost(latency_s=25e-6, energy_j=250e-6))
    return cast(Standing, standing), cast(Certified, SimpleNamespace(finalist=finalist, certificate=certificate)), now


@pytest.mark.parametrize("budget", ["50%", "50us", "50%size", "50%energy", "300uJ"])
def test_tables_are_on_the_scale_of_the_measurement(budget: str) -> None:
    standing, certified, now = _drifted(budget)
    told = Standing.comparable(standing, certified)
    assert Standing.pace(standing, now) * (told.latency_s or 0.0) == pytest.approx(25e-6)


@pytest.mark.parametrize(("budget", "joules"), [("50%energy", 500e-6), ("300uJ", 250e-6), ("50us", 500e-6)])
def test_shares_of_the_energy_drift_with_the_dense_model(budget: str, joules: float) -> None:
    standing, certified, _ = _drifted(budget)
    assert Standing.comparable(standing, certified).energy_j == pytest.approx(joules)
