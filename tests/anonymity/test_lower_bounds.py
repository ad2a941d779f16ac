"""E4 never proves a leak that is not there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from oracles import atom_models
from oracles.group_code import cyclic_orbit
from scipy import stats

from diffusion_privacy.anonymity import betting, lower_bounds, montecarlo, subspace
from diffusion_privacy.anonymity.lower_bounds import betting_lower, jensen, markov, thinned
from diffusion_privacy.anonymity.subspace import Mixture
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Estimate

RUNS, N = 400, 80
LOWER_BOUNDS = {"markov": markov, "jensen": jensen, "betting": betting_lower}


def draws(rng, sigma: float, rate: float, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """q = rate: log-normal weights of mean 1, detected by chance."""
    return sigma * rng.standard_normal(n) - sigma**2 / 2, rng.random(n) < rate


def errors(method, rng, sigma: float, rate: float, level: float) -> int:
    return sum(method(*draws(rng, sigma, rate), level).lower > rate for _ in range(RUNS))


CASES = [(m, s, r) for m in LOWER_BOUNDS for s, r in ((0.0, 0.5), (0.3, 0.95), (2.5, 0.6), (0.1, 0.04))]
cases = [pytest.param(*c, marks=pytest.mark.slow if c[0] == "betting" else []) for c in CASES]


@pytest.mark.parametrize(("method", "sigma", "rate"), cases)
def test_limits_err_at_most_at_their_rate(method, sigma, rate) -> None:
    """Level .8, so 1 in 10 on this side. Over 12 cases: more than 62 of 400 (4.5 standard deviations from 40) by chance
    in one case once in 20,000."""
    assert errors(LOWER_BOUNDS[method], np.random.default_rng(0), sigma, rate, 0.8) <= 62


def jensen_with(rate, mean, price):
    """Jensen's limit with one of its parts exchanged."""

    def faulty(log_weights, hit, level):
        k, part = hit.sum(), (1 - level) / 4
        lower = rate(k, hit.size, part) * np.exp(mean(log_weights[hit]) - price(part) / k)
        return lower_bounds.Estimate("faulty", 0.0, 0.0, lower, 1.0, level, k, k, True, 0)

    return faulty


def exact_rate(k, n, error):
    return stats.beta.ppf(error, k, n - k + 1)


@pytest.mark.parametrize(
    ("sigma", "fault"),
    [
        (0.0, (lambda k, n, error: k / n, np.mean, lambda error: 0.0)),
        (1.5, (exact_rate, lambda log_w: np.log(np.mean(np.exp(log_w))) + 1.0, lambda error: -np.log(error))),
        (0.5, (lambda k, n, error: 1.0, np.mean, lambda error: -np.log(error))),
    ],
    ids=["no limits at all", "mean of weights by a wrong σ", "h forgotten"],
)
def test_planted_faults_break_the_coverage(sigma, fault) -> None:
    assert errors(jensen_with(*fault), np.random.default_rng(1), sigma, 0.5, 0.8) > 62
    right = jensen_with(exact_rate, np.mean, lambda error: -np.log(error))
    log_weights, hit = draws(np.random.default_rng(2), sigma, 0.5)
    assert right(log_weights, hit, 0.8).lower == pytest.approx(jensen(log_weights, hit, 0.8).lower)


def test_jensen_is_the_formula_and_lies_below_q() -> None:
    rng = np.random.default_rng(2)
    log_weights, hit = draws(rng, 1.5, 0.9, 5000)
    found = jensen(log_weights, hit)
    assert found.log_value == pytest.approx(np.log(hit.mean()) + log_weights[hit].mean())
    # E[log w | hit] = −σ²/2: the price of the inequality on log-normal weights.
    assert found.log_value == pytest.approx(np.log(0.9) - 1.125, abs=0.1)
    low = stats.beta.ppf(0.0125, hit.sum(), 5001 - hit.sum())
    assert found.lower == pytest.approx(low * np.exp(log_weights[hit].mean() - np.log(80) / hit.sum()), rel=1e-9)
    assert (found.upper, found.network_calls) == (1.0, 0)
    assert markov(log_weights, hit).lower == pytest.approx(0.025 * np.mean(np.exp(log_weights) * hit))


def test_betting_is_the_largest_on_ordinary_weights() -> None:
    log_weights, hit = draws(np.random.default_rng(3), 0.5, 0.9, 1000)
    lower = {name: method(log_weights, hit).lower for name, method in LOWER_BOUNDS.items()}
    assert lower["markov"] < lower["jensen"] < lower["betting"] < 0.9
    assert lower["betting"] > 0.8


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_betting_limit_errs_on_its_side_alone(level) -> None:
    """Half of what the level leaves, e: ten hits of weight 1 give between (e/2)^(1/10) and e^(1/10), as half of the
    capital is staked in full; draws without a hit are draws of 0."""
    error, hit = (1 - level) / 2, np.ones(10, bool)
    found = betting_lower(np.zeros(10), hit, level)
    assert 0.999 * (error / 2) ** 0.1 <= found.lower < error**0.1
    assert (found.value, found.level, found.n) == (pytest.approx(1.0), level, 10)
    hit[4:] = False
    assert betting_lower(np.zeros(10), hit, level).lower == pytest.approx(betting.lower_mean(1.0 * hit, error))


def two_rounds(mixture: Mixture) -> subspace.SubspaceResult:
    """Twice 100 paths that are all detected, of log-weights −1 in the first round and 0 in the second."""
    one = Estimate("subspace", 0.0, 0.1, 0.1, 0.9, 0.95, 200, 200.0, True, 200 * 14)
    terms = np.repeat([-1.0, 0.0], 100)
    return subspace.SubspaceResult(one, 0.1, 0.01, 200, mixture, (0.1,), terms, np.ones(200, bool))


def test_limits_from_paths_say_of_which_paths_they_are() -> None:
    """Jensen's of 75 of the first round, which no rule ended; the others of all, each at the level asked for."""
    found = lower_bounds.of_paths(two_rounds(Mixture((3, 5), (0.5, 1.0), (0.4, 0.4), 0.2)), 100, 0.8)
    at_first, error = np.exp(-1.0), 0.1
    mean = (1 + at_first) / 2
    assert [e.method for e in found] == ["markov", "jensen", "betting"]
    assert [e.value for e in found] == pytest.approx([mean, at_first, mean])
    assert [e.n for e in found] == [200, 75, 200]
    assert [e.network_calls for e in found] == [200 * 14, 75 * 14, 200 * 14]
    assert {e.level for e in found} == {0.8}
    rate = stats.beta.ppf(error / 2, 75, 1)
    jensens = rate * at_first * (error / 2) ** (1 / 75)
    bet = betting.lower_mean(np.repeat([at_first, 1.0], 100), error)
    assert [e.lower for e in found] == pytest.approx([error * mean, jensens, bet])
    assert all("paths of E2, drawn once for all" in e.reasons for e in found)


def test_jensen_claims_nothing_where_a_stratum_is_exhausted() -> None:
    """25 strata of two or so, of which 75 of 100 draws want a third once in five each: one of them in all but .4 %."""
    mixture = Mixture(tuple(range(1, 26)), (1.0,) * 25, (0.02,) * 24 + (0.5,), 0.02)
    assert lower_bounds.thinned(mixture.allocate(100), 75, seed=0) is None
    markovs, jensens, bet = lower_bounds.of_paths(two_rounds(mixture), 100, 0.8)
    assert (jensens.lower, jensens.upper, jensens.n, jensens.network_calls) == (0.0, 1.0, 0, 0)
    assert np.isnan(jensens.value), "no estimate was made; E2 has hits, and none of them was looked at"
    assert jensens.reasons[0] == "thinning left a stratum without paths: nothing is claimed"
    assert markovs.lower > 0
    assert bet.lower > markovs.lower


def test_thinned_strata_are_a_sample_of_the_mixture() -> None:
    """A tenth of 10,000 drawn from the first stratum, give or take 5 standard deviations (once in 2 million)."""
    counts = np.array([1400, 12_600])
    rows = thinned(counts, 10_000, seed=4)
    assert rows is not None
    assert len(np.unique(rows)) == 10_000
    assert abs(np.sum(rows < 1400) - 1000) < 5 * 30
    assert thinned(np.array([50, 50]), 100, seed=0) is None


def test_no_hit_proves_nothing_and_nonsense_is_refused() -> None:
    for method in LOWER_BOUNDS.values():
        found = method(np.zeros(20), np.zeros(20, bool))
        assert (found.value, found.lower, found.upper) == (0.0, 0.0, 1.0)
        assert found.reasons == ("no hit: nothing is proved",)
        for weights, hit, level in (
            (np.full(3, np.nan), np.ones(3, bool), 0.95),
            (np.zeros(3), np.ones(2, bool), 0.95),
            (np.zeros(3), np.ones(3), 0.95),
            (np.zeros(3), np.ones(3, bool), 1.0),
        ):
            with pytest.raises(InputError):
                method(weights, hit, level)


@pytest.mark.slow
def test_limits_from_guided_paths_stay_below_the_rate_and_direct_ones_above() -> None:
    """E4 <= q <= E1 in the limits, at level .8, over 150 runs of E2 on an orbit of 8 atoms (q = 1/8 exactly): each side
    errs at most once in 10; more than 29 of 150 by chance once in 10,000."""
    atoms = cyclic_orbit(8, 4, seed=0)
    chain, runs = Chain(VP(), 14), 150
    mixture = Mixture((4, 4, 7, 9), (0.5, 1.0, 0.75, 0.5), (0.2, 0.2, 0.25, 0.25), 0.1)
    score, detect = atom_models.atom_score(VP(), atoms), Partial(_first, atom_models.nearest(atoms))
    records = np.repeat(atoms[:1], runs, axis=0)
    results = subspace.estimate(
        chain, score, detect, records, [mixture] * runs, jax.random.key(0), draws=200, max_draws=200
    )
    found = [lower_bounds.of_paths(r, 200, 0.8) for r in results]
    # Not by saying nothing: Markov's is a tenth of the estimate.
    for i, (name, least) in enumerate((("markov", 0.01), ("jensen", 0.06), ("betting", 0.06))):
        assert found[0][i].method == name
        assert sum(f[i].lower > 1 / 8 for f in found) <= 29
        assert np.median([f[i].lower for f in found]) > least
    assert [e.n for e in found[0]] == [200, 150, 200]
    assert found[0][2].network_calls == 200 * 14
    hits = np.random.default_rng(5).binomial(400, 1 / 8, runs)
    assert sum(montecarlo.direct(int(k), 400, steps=14, level=0.8).estimate.upper < 1 / 8 for k in hits) <= 29


def _first(detect, x, record):
    return detect(x, jnp.zeros_like(record))
