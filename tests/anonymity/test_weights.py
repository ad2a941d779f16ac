"""Means of skewed weights: the interval, and the conditions under which it is quoted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from diffusion_privacy.anonymity.weights import MAX_PARETO_K, pareto_k, weighted_mean


def lognormal(rng, n, sigma):
    """Log-weights of mean 1."""
    return sigma * rng.standard_normal(n) - sigma**2 / 2


def test_the_mean_is_the_mean_at_any_scale() -> None:
    rng = np.random.default_rng(0)
    log_terms, hit = lognormal(rng, 500, 0.7), rng.random(500) < 0.3
    near = weighted_mean(log_terms, hit, 0.95)
    expected = np.mean(np.where(hit, np.exp(log_terms), 0))
    assert near.log_value == pytest.approx(np.log(expected))
    assert near.hits == hit.sum()
    f = np.where(hit, np.exp(log_terms), 0)
    assert near.ess == pytest.approx(f.sum() ** 2 / (f**2).sum())
    assert near.log_stderr == pytest.approx(f.std(ddof=1) / np.sqrt(500) / expected)
    assert near.max_share == pytest.approx(f.max() / f.sum())
    far = weighted_mean(log_terms - 300, hit, 0.95)
    assert far.log_value == pytest.approx(near.log_value - 300)
    assert far.lower == pytest.approx(near.lower * np.exp(-300))
    assert far.upper == pytest.approx(near.upper * np.exp(-300))
    assert (far.pareto_k, far.reliable) == (pytest.approx(near.pareto_k), near.reliable)


def test_terms_of_undetected_draws_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    log_terms, hit = lognormal(rng, 300, 0.5), rng.random(300) < 0.5
    other = np.where(hit, log_terms, 5000.0)
    assert weighted_mean(other, hit, 0.9) == weighted_mean(log_terms, hit, 0.9)


def test_the_interval_holds_the_mean_leans_right_and_grows_with_the_level() -> None:
    rng = np.random.default_rng(2)
    log_terms, hit = lognormal(rng, 400, 1.0), np.ones(400, bool)
    wide, narrow = (weighted_mean(log_terms, hit, level) for level in (0.99, 0.8))
    value = np.exp(narrow.log_value)
    assert wide.lower < narrow.lower < value < narrow.upper < wide.upper
    assert narrow.upper - value > value - narrow.lower


def test_equal_weights_leave_the_error_of_the_count() -> None:
    """Every draw detected: the lower limit is the exact one of n of n, whether weights agree exactly or to rounding."""
    exact = float(stats.beta.ppf(0.025, 200, 1))
    rounding = 1e-6 * np.random.default_rng(3).standard_normal(200)
    for log_terms in (np.zeros(200), rounding):
        mean = weighted_mean(log_terms, np.ones(200, bool), 0.95)
        assert mean.lower == pytest.approx(exact, rel=1e-5)
        assert mean.upper == pytest.approx(1.0, rel=1e-5)
        assert mean.reliable
    half = weighted_mean(np.zeros(200), np.arange(200) < 100, 0.95)
    assert half.lower < 0.435
    assert half.upper > 0.565


def test_no_hit_gives_no_interval() -> None:
    mean = weighted_mean(np.zeros(128), np.zeros(128, bool), 0.95)
    assert mean.log_value == -np.inf
    assert np.isnan(mean.lower)
    assert np.isnan(mean.upper)
    assert not mean.reliable
    assert "none of 128" in mean.reasons[0]


def test_every_limit_is_named_when_it_is_broken() -> None:
    few = weighted_mean(np.zeros(1000), np.arange(1000) < 60, 0.95)
    assert not few.reliable
    assert "effective sample size 60" in few.reasons[0]
    rng = np.random.default_rng(4)
    heavy = weighted_mean(np.log(rng.pareto(0.9, 5000) + 1), np.ones(5000, bool), 0.95)
    assert not heavy.reliable
    assert any("Pareto" in reason for reason in heavy.reasons)
    spike = weighted_mean(np.r_[np.zeros(4999), np.log(1500.0)], np.ones(5000, bool), 0.95)
    assert any("one path carries 23%" in reason for reason in spike.reasons)
    fine = weighted_mean(lognormal(rng, 2000, 0.5), np.ones(2000, bool), 0.95)
    assert fine.reliable
    assert fine.reasons == ()


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.9])
def test_the_tail_index_of_a_generalised_pareto_is_found(k) -> None:
    """Tail of 948 points: standard error (1 + k)/√948 = .06 at most; beyond 3.5 of them once in 2,000."""
    sample = stats.genpareto.rvs(k, size=100_000, random_state=5)
    assert pareto_k(sample) == pytest.approx(k, abs=3.5 * (1 + k) / np.sqrt(948) + 0.01)


def test_the_tail_index_of_degenerate_samples() -> None:
    assert pareto_k(np.ones(24)) == np.inf
    assert pareto_k(np.full(1000, 0.3)) == -1.0
    assert pareto_k(np.r_[np.ones(998), 2.0, 3.0]) == np.inf
    uniform = np.random.default_rng(6).random(5000)
    assert pareto_k(uniform) < 0
    assert pareto_k(uniform) == pytest.approx(pareto_k(1e-200 * uniform))
    assert MAX_PARETO_K <= 0.5


@pytest.mark.parametrize(
    ("sigma", "rate", "n"), [(0.3, 0.2, 1000), (0.8, 0.5, 1000), (1.0, 0.9, 500), (1.2, 1.0, 2000)]
)
def test_reliable_intervals_cover(sigma, rate, n) -> None:
    """Of 500 samples. At a true coverage of .95 fewer than 93 % cover once in 40 tests of this kind; the envelope is
    wider than nominal, which makes it rarer."""
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(500):
        mean = weighted_mean(lognormal(rng, n, sigma), rng.random(n) < rate, 0.95)
        if mean.reliable:
            covered.append(mean.lower <= rate <= mean.upper)
    assert len(covered) > 300
    assert np.mean(covered) >= 0.93


def test_a_plain_normal_interval_would_fail_where_ours_covers() -> None:
    """The reason for the envelope: 60 draws of log-normal weights with σ = 1.5 (few and skewed, not reliable)."""
    rng = np.random.default_rng(8)
    ours, normal = [], []
    for _ in range(1000):
        log_terms = lognormal(rng, 60, 1.5)
        mean = weighted_mean(log_terms, np.ones(60, bool), 0.95)
        value = np.exp(mean.log_value)
        ours.append(mean.lower <= 1 <= mean.upper)
        normal.append(abs(value - 1) <= 1.96 * mean.log_stderr * value)
    assert np.mean(normal) < 0.85
    assert np.mean(ours) > 0.93


def test_the_interval_is_the_wider_of_the_log_normal_and_of_halls() -> None:
    """Both written out: Hall's limits are where t + g t²/3 + g² t³/27 + g/6 meets the quantile, g = skewness/√n."""
    rng = np.random.default_rng(9)
    for sigma in (0.3, 1.5):
        f = np.exp(lognormal(rng, 60, sigma))
        found = weighted_mean(np.log(f), np.ones(60, bool), 0.95)
        mean, error = f.mean(), f.std(ddof=1) / np.sqrt(60)
        g = np.mean((f - mean) ** 3) / f.std(ddof=1) ** 3 / np.sqrt(60)
        quantile = stats.t.ppf(0.975, max(f.sum() ** 2 / np.sum(f**2) / 8, 2.0))

        def met(t, at, g=g):
            return t + g * t**2 / 3 + g**2 * t**3 / 27 + g / 6 - at

        hall = [mean - optimize.brentq(met, -1e4, 1e4, args=(at,)) * error for at in (quantile, -quantile)]
        normal = mean * np.exp(np.array([-1, 1]) * quantile * error / mean)
        assert found.lower == pytest.approx(max(min(hall[0], normal[0]), 0.0), rel=1e-6)
        assert found.upper == pytest.approx(max(hall[1], normal[1]), rel=1e-6)
