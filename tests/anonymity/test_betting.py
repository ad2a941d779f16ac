"""Betting limits: they err as seldom as they say, on draws as awkward as importance weights."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.anonymity import betting
from diffusion_privacy.anonymity.intervals import upper_limit
from diffusion_privacy.errors import InputError

RUNS = 100
LAWS = {
    "log-normal, no variance to speak of": lambda r, n: np.exp(3 * r.standard_normal(n) - 4.5),
    "infinite variance, mean 1": lambda r, n: r.pareto(1.2, n) * 0.2,
    "rare hits": lambda r, n: (r.random(n) < 0.01) * 100.0,
    "constant": lambda r, n: np.ones(n),
    # A tenth of the draws comes from a stratum that holds all the mass.
    "strata": lambda r, n: np.where(np.arange(n) < n // 10, 10 * r.exponential(size=n), 0.0),
}


@pytest.mark.parametrize("law", LAWS)
def test_lower_limits_err_at_most_at_their_rate(law) -> None:
    """Mean 1, error .1, 100 runs: above 23 errors (4.5 standard deviations from 10) once in 20,000 tests at most."""
    rng = np.random.default_rng(0)
    wrong = sum(betting.lower_mean(LAWS[law](rng, 60), 0.1) > 1 + 1e-12 for _ in range(RUNS))
    assert wrong <= 23


def test_a_planted_fault_breaks_the_coverage() -> None:
    """Draws that are 0 forgotten: the limit is one of the mean of the others."""
    rng = np.random.default_rng(1)
    samples = [LAWS["strata"](rng, 60) for _ in range(100)]
    assert sum(betting.lower_mean(y[y > 0], 0.1) > 1 for y in samples) > 40


@pytest.mark.parametrize(("rate", "n"), [(0.5, 1), (0.1, 4), (0.9, 7)])
def test_the_capital_at_the_mean_is_1_on_average(rate, n) -> None:
    """Draws of 1/rate or 0, of mean 1: E K(1) over the binomial law. Above 1, Markov would give another error."""
    capital = [betting._log_capital(np.full(k, -np.log(rate)), n - k) for k in range(n + 1)]
    assert np.sum(stats.binom.pmf(np.arange(n + 1), n, rate) * np.exp(capital)) == pytest.approx(1, rel=1e-9)


def test_limits_approach_the_mean() -> None:
    rng = np.random.default_rng(2)
    y = rng.exponential(size=20_000)
    assert 0.95 < betting.lower_mean(y, 0.05) < y.mean()
    x = (rng.random(20_000) < 1e-3).astype(float)
    assert x.mean() < betting.upper_mean(x, 0.05) < 2.2e-3


def test_extremes_are_close_to_the_exact_limits() -> None:
    assert betting.lower_mean(np.zeros(10), 0.05) == 0
    assert 0.999 * 0.025**0.1 <= betting.lower_mean(np.ones(10), 0.05) < 0.05**0.1
    for n in (5, 100):
        assert upper_limit(0, n, 0.95) < betting.upper_mean(np.zeros(n), 0.05) <= 1 - 0.025 ** (1 / n) + 1e-9
    far = betting.log_lower_mean(np.array([-800.0, -801.0, -np.inf]), 0.05)
    assert far == pytest.approx(betting.log_lower_mean(np.array([0.0, -1.0, -np.inf]), 0.05) - 800)


@pytest.mark.parametrize("bound", [0.9, 0.05, 2e-3, 1e-5])
def test_the_number_of_zeros_is_the_smallest_that_does(bound) -> None:
    """Also where a limit of 1e-5 used to be lost in the root's tolerance."""
    count = betting.zeros_needed(bound, 0.05)
    assert betting.upper_mean(np.zeros(count), 0.05) <= bound
    assert count == 1 or betting.upper_mean(np.zeros(count - 1), 0.05) > bound
    assert 0.8 < count / np.ceil(np.log(0.025) / np.log1p(-bound)) <= 1


def test_a_bound_too_small_to_look_for_still_has_a_number() -> None:
    assert betting.zeros_needed(1e-12, 0.05) == pytest.approx(-np.log(0.025) * 1e12, rel=1e-3)


@pytest.mark.timeout(60)
def test_a_million_zeros_and_one_hit_have_a_limit() -> None:
    """A poor one, since no stake is so small. The search for it used to go on for ever: gains were cut at 600 nats."""
    logs = np.full(1_000_000, -np.inf)
    logs[0] = 0.0
    assert -1000 < betting.log_lower_mean(logs, 0.05) < np.log(1e-6)


def test_what_is_no_draw_is_refused() -> None:
    for values, error in (([], 0.05), ([1.0, np.nan], 0.05), ([-1.0], 0.05), ([1.0], 0.0), ([np.inf], 0.05)):
        with pytest.raises(InputError):
            betting.lower_mean(np.array(values), error)
    with pytest.raises(InputError):
        betting.upper_mean(np.array([1.1]), 0.05)
    for bound, error in ((0.0, 0.05), (1.0, 0.05), (0.1, 1.0)):
        with pytest.raises(InputError, match="bound, error"):
            betting.zeros_needed(bound, error)
