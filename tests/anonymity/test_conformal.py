"""The conformal promise: exact by order statistics, by simulation, with ties, with a floor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusion_privacy.anonymity.conformal import conformal_count, conformal_rate, conformal_threshold
from diffusion_privacy.errors import InputError


@pytest.mark.parametrize(
    ("n", "rate", "k"), [(999, 1e-3, 1), (1000, 1e-3, 1), (1999, 1e-3, 2), (19, 0.05, 1), (99, 0.1, 10)]
)
def test_rank(n: int, rate: float, k: int) -> None:
    assert conformal_count(n, rate) == k
    scores = np.random.default_rng(0).permutation(n).astype(np.float32)
    threshold = conformal_threshold(scores, rate)
    assert np.sum(scores > threshold) == k - 1
    assert np.sum(scores <= threshold) == n + 1 - k == int(np.ceil((n + 1) * (1 - rate) - 1e-9))


@given(n=st.integers(20, 300), alpha=st.floats(0.05, 0.9), levels=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_rate_of_a_fresh_negative_never_exceeds_the_request(n: int, alpha: float, levels: int, seed: int) -> None:
    """Leave-one-out over n + 1 exchangeable scores, ties included: the promise counted exactly, no false alarm."""
    scores = np.random.default_rng(seed).integers(0, levels, n + 1).astype(np.float32)
    fired = [scores[i] > conformal_threshold(np.delete(scores, i), alpha) for i in range(n + 1)]
    assert np.mean(fired) <= alpha


def test_rate_and_interval_on_fresh_data() -> None:
    """2,000 calibrations of 199 uniform scores at α = .05: the rate given them is 1 − τ, Beta(10, 190).

    The mean is tested at five standard errors, the coverage of the 95 % interval at its exact binomial limit:
    false-alarm rates below 1e-6 and 1e-4.
    """
    rng = np.random.default_rng(1)
    rates, covered = [], 0
    for _ in range(2000):
        scores = rng.random(199)
        threshold = conformal_threshold(scores, 0.05)
        rates.append(1 - threshold)
        measured = conformal_rate(scores > threshold, threshold, 0.05, 0.95)
        covered += measured.lower <= 1 - threshold <= measured.upper
    assert np.mean(rates) == pytest.approx(10 / 200, abs=5 * stats.beta.std(10, 190) / np.sqrt(2000))
    assert stats.binom.cdf(covered, 2000, 0.95) > 1e-4


def test_one_rank_lower_would_break_the_promise() -> None:
    """Planted fault: the plain (1 − α) quantile of the negatives, k + 1 instead of k, has rate (k + 1)/(n + 1)."""
    rng = np.random.default_rng(2)
    plain = [1 - np.sort(rng.random(19))[-2] for _ in range(4000)]
    honest = [1 - conformal_threshold(rng.random(19), 0.05) for _ in range(4000)]
    tolerance = 5 * stats.beta.std(2, 18) / np.sqrt(4000)
    assert np.mean(plain) > 0.05 + tolerance
    assert np.mean(honest) < 0.05 + tolerance


def test_coverage_with_a_floor_and_with_ties() -> None:
    """The limits hold for 2,000 calibrations each when most negatives can never fire and when scores are few-valued.

    Both one-sided 97.5 % limits; exact binomial limit, false-alarm rate 1e-4 each.
    """
    rng = np.random.default_rng(3)
    for share in (0.01, 0.1):  # below and above α: the floor or the order statistic decides
        above = below = 0
        for _ in range(2000):
            u = rng.random(199)
            scores = np.where(u > 1 - share, u, -np.inf)
            threshold = conformal_threshold(scores, 0.05)
            truth = min(share, 1 - threshold)
            measured = conformal_rate(scores > threshold, threshold, 0.05, 0.95)
            above += truth > measured.upper
            below += truth < measured.lower
        assert max(above, below) <= stats.binom.ppf(1 - 1e-4, 2000, 0.025)
    missed = 0
    for _ in range(2000):
        scores = rng.integers(0, 20, 199).astype(float)
        threshold = conformal_threshold(scores, 0.07)
        missed += (19 - threshold) / 20 > conformal_rate(scores > threshold, threshold, 0.07, 0.95).upper
    assert missed <= stats.binom.ppf(1 - 1e-4, 2000, 0.025)


@pytest.mark.parametrize(("n", "rate"), [(998, 1e-3), (18, 0.05), (0, 0.5)])
def test_too_few_negatives_are_refused_with_the_number_needed(n: int, rate: float) -> None:
    needed = {1e-3: 999, 0.05: 19, 0.5: 1}[rate]
    with pytest.raises(InputError, match=f"^false_positive_rate: .*at least {needed} negatives, got {n}$"):
        conformal_threshold(np.zeros(n), rate)


def test_bad_scores_and_rates() -> None:
    with pytest.raises(InputError, match=r"negatives: .*NaN"):
        conformal_threshold(np.array([0.0, np.nan] * 50), 0.05)
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="strictly between 0 and 1"):
            conformal_count(100, rate)
