"""Exact limits against published values, the binomial law itself, and their promised coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusion_privacy.anonymity.intervals import clopper_pearson, lower_limit, outwards, rate, upper_limit
from diffusion_privacy.errors import InputError


def test_known_values() -> None:
    # No hit: (1 - U)^n = tail. All hits: L^n = tail. 10 of 100: scipy's binomtest(...).proportion_ci(method="exact").
    np.testing.assert_allclose(clopper_pearson(0, 30_000, 0.95), (0.0, 1 - 0.025 ** (1 / 30_000)), rtol=1e-10)
    np.testing.assert_allclose(clopper_pearson(16, 16, 0.9), (0.05 ** (1 / 16), 1.0), rtol=1e-12)
    exact = stats.binomtest(10, 100).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(clopper_pearson(10, 100, 0.95), (exact.low, exact.high), rtol=1e-10)
    np.testing.assert_allclose(clopper_pearson(10, 100, 0.95), (0.0490047, 0.1762226), atol=5e-8)
    # "0 of 16 hits only says h <= .171" and "30,000 samples without a hit give 1.0e-4" (one-sided, 95 %).
    assert upper_limit(0, 16, 0.95) == pytest.approx(0.171, abs=5e-4)
    assert upper_limit(0, 30_000, 0.95) == pytest.approx(1.0e-4, abs=5e-7)
    assert lower_limit(20, 20, 0.95) == pytest.approx(0.05 ** (1 / 20))


@given(st.floats(-1e9, 1e9), st.integers(1, 6))
def test_a_limit_in_a_sentence_is_never_narrower_than_it_is(limit: float, digits: int) -> None:
    low, high = (float(outwards(limit, direction, digits)) for direction in ("down", "up"))
    assert low <= limit <= high
    assert high - low <= 10.0 ** (1 - digits) * abs(limit) * (1 + 1e-9)
    assert outwards(float("inf"), "up") == "inf"


def test_limits_are_where_the_tail_probability_equals_the_allowance() -> None:
    k = np.arange(1, 40)
    lower, upper = clopper_pearson(k, 40, 0.99)
    np.testing.assert_allclose(stats.binom.sf(k - 1, 40, lower), 0.005, rtol=1e-9)
    np.testing.assert_allclose(stats.binom.cdf(k, 40, upper), 0.005, rtol=1e-9)
    np.testing.assert_allclose(stats.binom.sf(k - 1, 40, lower_limit(k, 40, 0.99)), 0.01, rtol=1e-9)
    np.testing.assert_allclose(stats.binom.cdf(k, 40, upper_limit(k, 40, 0.99)), 0.01, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 7, 60])
def test_coverage_is_never_below_the_level(n: int) -> None:
    """Computed, not simulated: the binomial sum over the counts whose interval holds p."""
    k = np.arange(n + 1)
    lower, upper = clopper_pearson(k, n, 0.9)
    for p in np.linspace(0.001, 0.999, 97):
        held = (lower <= p) & (p <= upper)
        assert stats.binom.pmf(k, n, p)[held].sum() >= 0.9 - 1e-12


def test_vector_equals_scalars_and_rate_carries_both() -> None:
    lower, upper = clopper_pearson([0, 3, 10], [10, 10, 10], 0.8)
    for i, k in enumerate((0, 3, 10)):
        assert clopper_pearson(k, 10, 0.8) == (lower[i], upper[i])
        measured = rate(k, 10, 0.8)
        assert (measured.value, measured.lower, measured.upper) == (k / 10, lower[i], upper[i])
    assert isinstance(upper_limit(0, 4), float)


@pytest.mark.parametrize(
    ("hits", "n", "level", "field"),
    [(3, 2, 0.9, "hits"), (-1, 2, 0.9, "hits"), (0, 0, 0.9, "hits"), (1, 2, 1.0, "level"), (0.5, 2, 0.9, "hits")],
)
def test_impossible_counts_are_named(hits: float, n: int, level: float, field: str) -> None:
    with pytest.raises(InputError, match=rf"^{field}: .*expected") as caught:
        clopper_pearson(hits, n, level)
    assert "\n" not in str(caught.value)
