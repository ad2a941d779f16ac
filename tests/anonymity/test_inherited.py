"""E6 on trainings whose rates are closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.anonymity.inherited import inherited, models_needed, pooled
from diffusion_privacy.anonymity.intervals import upper_limit
from diffusion_privacy.errors import InputError

RUNS = 150


def gaussian_delta(epsilon: float, sensitivity: float, sigma: float) -> float:
    """δ(ε) of the Gaussian mechanism (Balle & Wang, arXiv 1805.06530, theorem 8)."""
    a, b = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    return float(stats.norm.cdf(a - b) - np.exp(epsilon) * stats.norm.cdf(-a - b))


def below(confidence: float) -> float:
    """Five standard deviations below the least coverage allowed."""
    return confidence - 5 * np.sqrt(confidence * (1 - confidence) / RUNS)


def test_a_private_mean_that_is_sampled_from() -> None:
    """Training releases mean + N(0, σ²); a draw is N(release, τ²); "the record" is a draw beyond c. With the record the
    mean is 1 higher. Limits from 60 models of 50 draws err at most once in 20; a bound without e^ε would err always.
    """
    sigma, tau, c, epsilon = 2.0, 0.5, 3.0, 0.8
    delta = gaussian_delta(epsilon, 1.0, sigma)
    total = np.hypot(sigma, tau)
    with_record, without = stats.norm.sf(c - 1, scale=total), stats.norm.sf(c, scale=total)
    assert with_record <= np.exp(epsilon) * without + delta
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(RUNS):
        release = sigma * rng.standard_normal((60, 1))
        hits = np.sum(release + tau * rng.standard_normal((60, 50)) > c, axis=1)
        covered += inherited(pooled(hits, np.full(60, 50)), epsilon, delta).upper >= with_record
    assert covered / RUNS >= below(0.95)


def test_randomised_response_attains_the_bound() -> None:
    """The record's atom is kept with probability e^ε/(1 + e^ε) and otherwise exchanged for its neighbour's, which the
    sampler draws once in n. The rates are in the ratio e^ε exactly: the limit covers, by little, and a limit that takes
    images of one model for independent trials does not."""
    epsilon, n, models, images = 1.0, 4, 40, 30
    keep = np.exp(epsilon) / (1 + np.exp(epsilon))
    truth, without = keep / n, (1 - keep) / n
    assert truth == pytest.approx(np.exp(epsilon) * without)
    rng = np.random.default_rng(1)
    honest, naive = 0, 0
    for _ in range(RUNS):
        holds = rng.random(models) < 1 - keep
        hits = rng.binomial(images, holds / n)
        honest += inherited(pooled(hits, np.full(models, images)), epsilon, 0.0).upper >= truth
        naive += np.exp(epsilon) * upper_limit(int(hits.sum()), models * images, 0.95) >= truth
    assert honest / RUNS >= below(0.95)
    assert naive / RUNS < below(0.95)


def test_no_hits_need_models_not_images() -> None:
    few = pooled(np.zeros(10), np.full(10, 10**6))
    assert few.upper > 0.2
    found = inherited(few, 1.0, 1e-5, steps=7)
    assert (found.lower, found.level, found.n) == (0.0, pytest.approx(0.9), 10)
    assert found.network_calls == 7 * 10**7
    assert found.value == pytest.approx(1e-5)
    assert found.upper == pytest.approx(np.e * few.upper + 1e-5)
    models = models_needed(0.01, 1.0, 1e-5)
    assert models is not None
    assert inherited(pooled(np.zeros(models), np.ones(models)), 1.0, 1e-5).upper <= 0.01
    assert models_needed(0.01, 1.0, 0.02) is None


def test_a_bound_of_one_says_so() -> None:
    for epsilon in (50.0, 1e6):
        found = inherited(pooled(np.ones(5), np.full(5, 10)), epsilon, 0.0)
        assert (found.upper, found.reliable) == (1.0, False)
        assert "too few models (5)" in found.reasons[0]
    assert inherited(pooled(np.full(5, 10), np.full(5, 10)), 0.0, 0.0).upper == 1.0


def test_nonsense_is_refused() -> None:
    for hits, images in (([3], [2]), ([], []), ([1, 1], [2]), ([0.5], [1]), ([0], [0]), ([np.nan], [1])):
        with pytest.raises(InputError, match="hits"):
            pooled(np.array(hits), np.array(images))
    fine = pooled(np.array([0, 1]), np.array([5, 5]))
    for epsilon, delta in ((-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0), (1.0, 1.0), (1.0, -0.1)):
        with pytest.raises(InputError, match="epsilon"):
            inherited(fine, epsilon, delta)
