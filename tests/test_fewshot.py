"""A new device from few measurements: known devices help where they are alike, and where they do not it claims nothing."""

from __future__ import annotations

import numpy as np
import pytest

from automc.errors import InputError
from automc.predict.fewshot import FewShot, Floats, Prior

RNG = np.random.default_rng(0)
FEATURES = RNG.integers(0, 2, (400, 24)).astype(np.float64)
BASES = RNG.normal(0, 0.3, (2, 24))


def latency_s(mix: Floats, scale: float = 1e-3) -> Floats:
    """(400,) latencies of a device between two kinds of devices."""
    return np.asarray(scale * np.exp(FEATURES @ (mix @ BASES)), dtype=np.float64)


PRIOR = Prior.of(FEATURES, np.stack([latency_s(RNG.normal(0, 1, 2), scale) for scale in np.logspace(-4, -1, 8)]))


def test_a_device_of_a_known_kind_needs_fewer_measurements_than_it_has_coefficients() -> None:
    truth = latency_s(np.array([0.7, -0.4]), 0.02)
    found = FewShot.fit(PRIOR, FEATURES[:10], truth[:10])
    np.testing.assert_allclose(found.predict(FEATURES[10:]), truth[10:], rtol=0.05)
    assert found.may_claim


def test_a_device_like_none_forbids_a_claim() -> None:
    strange = 1e-3 * np.exp(RNG.normal(0, 1.0, 400))
    found = FewShot.fit(PRIOR, FEATURES[:15], strange[:15])
    assert found.error > 0.3
    assert not found.may_claim


def test_the_error_is_that_of_measurements_left_out() -> None:
    truth = latency_s(np.array([0.7, -0.4])) * np.exp(RNG.normal(0, 0.05, 400))
    found = FewShot.fit(PRIOR, FEATURES[:12], truth[:12])
    unseen = np.log(found.predict(FEATURES[12:]) / truth[12:])
    assert found.error == pytest.approx(float(np.sqrt(np.mean(unseen**2))), rel=0.5)


def test_too_little_is_refused() -> None:
    with pytest.raises(InputError, match="at least three"):
        FewShot.fit(PRIOR, FEATURES[:2], np.ones(2))
    with pytest.raises(InputError, match="positive"):
        FewShot.fit(PRIOR, FEATURES[:3], np.zeros(3))
    with pytest.raises(InputError, match="two devices"):
        Prior.of(FEATURES, np.ones((1, 400)))
