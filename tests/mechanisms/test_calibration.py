"""Calibration against Balle & Wang's condition, dp-accounting and the table of published values."""

from __future__ import annotations

import math

import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import calibration

dp_accounting = pytest.importorskip("dp_accounting")
hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")


@pytest.mark.parametrize(
    ("epsilon", "expected"), [(0.5, 7.03), (1, 3.731), (2, 1.994), (4, 1.081), (8, 0.600), (10, 0.500), (20, 0.290)]
)
def test_table_at_delta_1e_5(epsilon, expected):
    assert calibration.gaussian_multiplier(epsilon, 1e-5) == pytest.approx(expected, rel=2e-3)


@hypothesis.given(st.floats(0.01, 200.0), st.floats(-12.0, -1.5))
@hypothesis.settings(max_examples=60)
def test_calibration_is_sufficient_tight_and_agrees_with_dp_accounting(epsilon, log10_delta):
    delta = 10.0**log10_delta
    multiplier = calibration.gaussian_multiplier(epsilon, delta)
    assert calibration.log_gaussian_delta(multiplier, epsilon) <= math.log(delta)
    assert calibration.log_gaussian_delta(multiplier * (1 - 1e-4), epsilon) > math.log(delta)
    assert multiplier == pytest.approx(dp_accounting.get_sigma_gaussian(epsilon, delta), rel=1e-6)
    assert calibration.gaussian_epsilon(multiplier, delta) == pytest.approx(epsilon, rel=1e-6)
    # Rounded up: what is stated is met, to the last digit.
    stated = calibration.gaussian_epsilon(multiplier, delta)
    assert calibration.log_gaussian_delta(multiplier, stated) <= math.log(delta)


@pytest.mark.parametrize(
    ("epsilon", "delta", "exact", "most"),
    [
        (1e-12, 1e-15, 2436407769078.5399, 1.1),
        (1e-12, 1e-50, 12567213709096.957, 1.1),
        (1e-9, 1e-18, 5412217956.7954514, 1.001),
        (1e-6, 1e-10, 3062226.806319281, 1 + 1e-6),
        (1e-3, 1e-50, 14096.135517252585, 1 + 1e-8),
        (1.0, 1e-5, 3.7306316348159418, 1 + 1e-10),
        (8.0, 1e-15, 1.0192486860082061, 1 + 1e-10),
        (1000.0, 1e-5, 0.024581783351654279, 1 + 1e-10),
    ],
)
def test_rounding_never_takes_noise_away(epsilon, delta, exact, most):
    """Smallest multipliers of the double numbers ε and δ by 120 digits. A plain difference gave .1 % less for the first
    and two thirds for the second."""
    found = calibration.gaussian_multiplier(epsilon, delta)
    assert 1.0 <= found / exact <= most
    assert calibration.gaussian_epsilon(exact * (1 - 1e-12), delta) >= epsilon * (1 - 1e-15)


def test_classical_formula_fails_where_its_proof_ends():
    classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / 20
    assert math.exp(calibration.log_gaussian_delta(classical, 20)) == pytest.approx(1.5e-3, rel=0.05)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_unusable_epsilon_is_refused(epsilon):
    with pytest.raises(InputError, match="epsilon"):
        calibration.gaussian_multiplier(epsilon, 1e-5)
    with pytest.raises(InputError, match="epsilon"):
        calibration.laplace_multiplier(epsilon)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_delta_outside_the_unit_interval_is_refused(delta):
    with pytest.raises(InputError, match="delta"):
        calibration.gaussian_multiplier(1.0, delta)


@pytest.mark.parametrize("delta", [1 / 1000, 0.01])
def test_delta_not_below_one_over_n_is_refused(delta):
    with pytest.raises(InputError, match="1/n"):
        calibration.gaussian_multiplier(1.0, delta, records=1000)
    calibration.gaussian_multiplier(1.0, 0.9 / 1000, records=1000)
