"""E6: limits that count models, not images. test_inherited_truth.py holds the inequality itself to closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_privacy.anonymity.inherited import images_needed, inherited, models_needed, pooled, pooled_copies
from diffusion_privacy.anonymity.intervals import upper_limit
from diffusion_privacy.errors import InputError

RUNS = 150


def below(confidence: float) -> float:
    """Five standard deviations below the least coverage allowed."""
    return confidence - 5 * np.sqrt(confidence * (1 - confidence) / RUNS)


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
    assert inherited(pooled(np.zeros(models - 1), np.ones(models - 1)), 1.0, 1e-5).upper > 0.01
    assert models_needed(0.01, 1.0, 0.02) is None


def test_the_spread_between_models_is_that_of_a_sample() -> None:
    assert pooled(np.array([1, 3]), np.array([10, 10])).spread == pytest.approx(0.1 * np.sqrt(2))
    assert np.isnan(pooled(np.array([1]), np.array([10])).spread)


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


def test_copies_are_bounded_by_their_images_though_records_differ() -> None:
    """Unequal hit probabilities, one record hit often: the limit of 2,000 experiments of 5 copies misses the mean rate
    in at most 2.5 % of them; 3.6 % is 3 standard errors above."""
    rng = np.random.default_rng(0)
    chances = np.concatenate([[0.5], np.full(39, 1e-3)])
    hits = (rng.random((2000, 5, 40)) < chances).sum(axis=2)
    upper = [pooled_copies(h, np.full(5, 40), 0.975).upper for h in hits]
    assert np.mean(np.array(upper) < chances.mean()) <= 0.036
    one = pooled_copies(np.zeros(5), np.full(5, 40), 0.975)
    assert one.upper == pytest.approx(1 - 0.025 ** (1 / 200))
    needed = images_needed(0.01, 1.0, 1e-5, confidence=0.975)
    for images, holds in ((needed, True), (needed - 1, False)):
        found = pooled_copies(np.zeros(1), np.array([images]), 0.975)
        assert (inherited(found, 1.0, 1e-5).upper <= 0.01) == holds
