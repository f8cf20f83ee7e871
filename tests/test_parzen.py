"""The tabulated Parzen estimator against Optuna's own."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator

from automc.agents.parzen import TabulatedParzen


def test_the_sampler_takes_another_estimator() -> None:
    assert hasattr(optuna.samplers.TPESampler(), "_parzen_estimator_cls")


@pytest.mark.parametrize("trials", [0, 1, 2, 3, 12, 150])
def test_draws_and_densities_are_those_of_optuna(trials: int) -> None:
    rng = np.random.default_rng(trials)
    sizes = rng.integers(2, 12, size=9).tolist()
    space: dict[str, BaseDistribution] = {str(i): IntDistribution(0, n - 1) for i, n in enumerate(sizes)}
    seen = {str(i): rng.integers(0, n, size=trials).astype(float) for i, n in enumerate(sizes)}
    parameters = optuna.samplers.TPESampler(seed=0)._parzen_estimator_parameters
    theirs, ours = _ParzenEstimator(seen, space, parameters), TabulatedParzen(seen, space, parameters)
    expected = theirs.sample(np.random.RandomState(5), 24)
    drawn = ours.sample(np.random.RandomState(5), 24)
    assert all((drawn[name] == expected[name]).all() for name in space)
    np.testing.assert_allclose(ours.log_pdf(drawn), theirs.log_pdf(expected), rtol=1e-9)
