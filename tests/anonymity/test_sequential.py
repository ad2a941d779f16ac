"""Sequential decisions: wrong as seldom as they say although one may look after every draw."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_privacy.anonymity import intervals, sequential
from diffusion_privacy.anonymity.sequential import ABOVE, BELOW, OPEN, decide, draws_to_decide, log_evidence

RUNS, LENGTH = 1000, 200
N = np.arange(1, LENGTH + 1)


def paths(rate: float, seed: int) -> np.ndarray:
    """``[RUNS, LENGTH]`` hits after each draw."""
    return np.cumsum(np.random.default_rng(seed).random((RUNS, LENGTH)) < rate, axis=1)


@pytest.mark.parametrize("gamma", [0.02, 0.3, 0.5, 0.9])
def test_looking_after_every_draw_errs_at_most_at_the_stated_rate(gamma) -> None:
    """At h = γ, the hardest null: false alarm of a test .05 plus 3.3 binomial standard errors, 5e-4 each."""
    bound = 0.05 + 3.3 * np.sqrt(0.05 * 0.95 / RUNS)
    table = decide(np.minimum(np.arange(LENGTH + 1), N[:, None]), N[:, None], gamma, gamma, 0.05)
    assert np.mean(np.any(table[N - 1, paths(gamma, 1)] == ABOVE, axis=1)) < bound
    assert np.mean(np.any(table[N - 1, paths(np.nextafter(gamma, 1), 2)] == BELOW, axis=1)) < bound


def test_a_planted_fault_errs_more_often() -> None:
    """The exact limit of a fixed number of draws, looked at after every fifth."""
    alarm = intervals.lower_limit(paths(0.3, 1)[:, ::5], N[::5], 0.95) > 0.3
    assert np.mean(np.any(alarm, axis=1)) > 0.12


def test_evidence_is_the_mixture_over_alternatives() -> None:
    """Against the integral by the midpoint rule in θ = sin² φ, where the Jeffreys density is flat."""
    gamma, hits, n = 0.2, 7, 15
    start = np.arcsin(np.sqrt(gamma))
    phi = start + (np.arange(20_000) + 0.5) / 20_000 * (np.pi / 2 - start)
    theta = np.sin(phi) ** 2
    ratio = (theta / gamma) ** hits * ((1 - theta) / (1 - gamma)) ** (n - hits)
    assert log_evidence(hits, n, gamma) == pytest.approx(np.log(np.mean(ratio)), abs=1e-6)
    assert log_evidence(0, 0, gamma) == pytest.approx(0, abs=1e-12)


def test_one_hit_refutes_a_rate_of_zero_and_nothing_proves_it() -> None:
    np.testing.assert_array_equal(decide([0, 1], [1000, 1000], 0.0, 0.5, 0.05), [BELOW, ABOVE])
    assert decide(0, 10**6, 0.0, 0.0, 0.05) == OPEN


def test_clear_cases_are_decided_and_close_ones_left_open() -> None:
    np.testing.assert_array_equal(decide([20, 0, 10], 20, 0.5, 0.5, 1e-3), [ABOVE, BELOW, OPEN])
    np.testing.assert_array_equal(decide(0, [100, 1500], 0.01, 0.01, 1e-3), [OPEN, BELOW])
    # Between γ and γ' both claims are true, and one is made.
    assert decide(300, 1000, 0.1, 0.6, 1e-3) in (ABOVE, BELOW)


@pytest.mark.parametrize(("gamma", "upper"), [(0.01, 0.2), (0.5, 0.5), (0.0, 0.3)])
def test_the_fewest_draws_are_the_fewest(gamma, upper) -> None:
    k, n = np.array([0, 0, 2]), np.array([0, 5, 9])
    up, down = draws_to_decide(k, n, gamma, upper, 1e-3, 10_000)
    np.testing.assert_array_equal(decide(k, n + down, gamma, upper, 1e-3)[:2], BELOW)
    late = np.where(down > 1, decide(k, n + down - 1, gamma, upper, 1e-3) == BELOW, False)
    assert not late[:2].any()
    np.testing.assert_array_equal(decide(k + up, n + up, gamma, upper, 1e-3), ABOVE)
    early = (up > 1) & (decide(k + up - 1, n + up - 1, gamma, upper, 1e-3) == ABOVE)
    assert not early.any()
    assert sequential.draws_to_decide(0, 0, gamma, upper, 1e-3, 3)[1] <= 3
