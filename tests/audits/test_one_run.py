"""The one-run bound: the published formula, exact validity on randomised response, and what a Gaussian shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from diffusion_privacy.audits.one_run import audit_scores, epsilon_bound, flip_coins, p_value
from diffusion_privacy.errors import InputError


def by_the_letter(m, r, v, eps, delta):
    """The sums of appendix D, term by term."""
    q = math.exp(eps) / (1 + math.exp(eps))
    pmf = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    tail = sum(pmf[v:])
    slopes = [sum(pmf[max(v - i, 0) : v]) / i for i in range(1, m + 1)]
    return min(1.0, tail + 2 * m * delta * max(slopes, default=0.0) * (v > 0))


@pytest.mark.parametrize(("m", "r", "v"), [(10, 10, 8), (30, 12, 12), (30, 30, 17), (5, 3, 0)])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_p_value_is_the_published_sum(m, r, v, delta):
    for eps in (0.0, 0.5, 2.0):
        assert p_value(m, r, v, eps, delta) == pytest.approx(by_the_letter(m, r, v, eps, delta), rel=1e-9)


def test_worked_by_hand():
    """All of r right at δ = 0: P[W = r] = (e^ε/(1 + e^ε))^r = 5 % gives ε = logit(.05^(1/r))."""
    for r in (5, 50):
        bound = epsilon_bound(100, r, r)
        assert bound.lower == pytest.approx(max(special.logit(0.05 ** (1 / r)), 0.0), abs=1e-9)
        assert bound.ceiling == bound.lower
    assert epsilon_bound(100, 100, 50).lower == 0
    assert epsilon_bound(100, 0, 0).lower == 0


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("eps", [0.1, 1.0, 3.0])
def test_randomised_response_never_refutes_itself(eps, delta):
    """m bits, each true with probability e^ε/(1 + e^ε): V is binomial, so the chance of a bound above ε is a finite
    sum: at most 1 − confidence, exactly. At δ = 0 it is tight: .8 of ε at m = 2,000 for ε >= 1."""
    m, right = 400, 1 / (1 + math.exp(-eps))
    refuted = [v for v in range(m + 1) if p_value(m, m, v, eps, delta) < 0.05]
    exceeds = stats.binom.pmf(refuted, m, right).sum() if refuted else 0.0
    assert exceeds <= 0.05 + 1e-12
    if refuted:
        # One fewer right guess would not refute; the counts that do are all above it.
        assert refuted == list(range(refuted[0], m + 1))
        assert epsilon_bound(m, m, refuted[0], delta=delta).lower >= eps
        assert epsilon_bound(m, m, refuted[0] - 1, delta=delta).lower <= eps
    if delta == 0 and eps >= 1:
        usual = epsilon_bound(2000, 2000, round(2000 * right))
        assert 0.8 * eps < usual.lower < eps


def gaussian_delta(eps: float, sigma: float) -> float:
    """δ(ε) of the Gaussian mechanism of sensitivity 1 (Balle & Wang, arXiv 1805.06530, theorem 8)."""
    a, b = 0.5 / sigma, eps * sigma
    return float(stats.norm.cdf(a - b) - math.exp(eps) * stats.norm.cdf(-a - b))


def test_the_gaussian_mechanism_in_one_run():
    """5,000 orthogonal unit canaries in one sum with noise σ = .4: scores are coins + N(0, σ²).

    The true ε(1e-5) is about 15; the bound stays under it, and is not vacuous: above 2. 8 fixed runs; each may fail
    with probability at most 5 % by the theorem, far less here.
    """
    sigma, delta, m = 0.4, 1e-5, 5000
    true = next(e for e in np.arange(0.1, 30, 0.1) if gaussian_delta(e, sigma) <= delta)
    for seed in range(8):
        coins = flip_coins(m, seed)
        scores = coins + sigma * np.random.default_rng(100 + seed).normal(size=m)
        bound = audit_scores(scores, coins, [(250, 250)], delta=delta)
        assert 2.0 < bound.lower <= true
        assert bound.lower <= bound.ceiling
    shared = audit_scores(scores, coins, [(250, 250), (500, 500), (100, 0)], delta=delta)
    assert shared.confidence == 0.95
    assert shared.lower <= true


def test_no_signal_gives_no_bound():
    """Scores without the coins: a bound above 0 in at most 5 % of 300 runs (27 or fewer, binomial 1e-3)."""
    rng = np.random.default_rng(5)
    above = 0
    for seed in range(300):
        above += audit_scores(rng.normal(size=200), flip_coins(200, seed), [(30, 30), (100, 100)]).lower > 0
    assert above <= stats.binom.isf(1e-3, 300, 0.05)


def test_several_guesses_share_the_error():
    """All right: the better of the two, read at 97.5 % (closed form as above)."""
    found = audit_scores(-np.arange(40.0), np.arange(40) < 20, [(10, 10), (2, 2)])
    assert (found.guesses, found.correct, found.confidence) == (20, 20, 0.95)
    assert found.lower == pytest.approx(special.logit(0.025 ** (1 / 20)), abs=1e-9)


def test_guesses_are_counted_at_both_ends():
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    coins = np.array([True, False, True, True, False, False])
    bound = audit_scores(scores, coins, [(2, 2)])
    assert (bound.canaries, bound.guesses, bound.correct) == (6, 4, 3)
    assert 400 < flip_coins(1000, 0).sum() < 600


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: epsilon_bound(10, 12, 3), "guesses <= canaries"),
        (lambda: epsilon_bound(10, 8, 9), "right guesses <= guesses"),
        (lambda: epsilon_bound(10, 8, 3, delta=1.0), "δ in"),
        (lambda: p_value(10, 8, 3, -1.0), "one_run.epsilon"),
        (lambda: audit_scores(np.array([1.0, np.nan]), np.array([True, False]), [(1, 0)]), "canary 1 is NaN"),
        (lambda: audit_scores(np.zeros(3), np.zeros(3), [(1, 0)]), "coins bool"),
        (lambda: audit_scores(np.zeros(3), np.zeros(3, bool), [(2, 2)]), "sum to 1 … 3"),
        (lambda: audit_scores(np.zeros(3), np.zeros(3, bool), []), "one_run.guesses"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
