"""Counting samples: exact limits, and a sequence of samples that does not depend on how it is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import atom_models
from oracles.group_code import cyclic_orbit
from scipy import stats

from diffusion_privacy.anonymity import intervals, montecarlo
from diffusion_privacy.diffusion import chain as chains
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.training.sharding import data_mesh

KEY = jax.random.key(0)


def test_direct_limits_hold_the_memorisers_rate() -> None:
    """n = 10 atoms at q = 1/10 each. Limits at .9995: one of 10 fails with probability below .5 %."""
    chain, atoms = Chain(VP(), 20), cyclic_orbit(10, 6, seed=1)
    images = montecarlo.sample(chain, atom_models.atom_score(VP(), atoms), (6,), 4000, KEY)
    margins = montecarlo.margins(atom_models.nearest(atoms), images, 10)
    assert margins.shape == (4000, 10)
    hits = (margins > 0).sum(axis=0)
    # The cells cover the space: every image is one record.
    assert hits.sum() == 4000
    for count in hits:
        result = montecarlo.direct(int(count), 4000, steps=20, level=0.9995)
        assert result.estimate.lower <= 0.1 <= result.estimate.upper
        assert result.estimate.network_calls == 80_000


def test_limits_cover_at_their_level() -> None:
    """2,000 experiments of 300 draws at q = .02; Clopper-Pearson covers at least 95 %; 93.4 % is 3.3 sd below."""
    hits = np.random.default_rng(2).binomial(300, 0.02, 2000)
    table = {k: montecarlo.direct(int(k), 300, steps=5).estimate for k in np.unique(hits)}
    assert np.mean([table[k].lower <= 0.02 <= table[k].upper for k in hits]) >= 0.934


def test_a_detector_that_misses_widens_the_upper_limit_only() -> None:
    whole, half = (montecarlo.direct(3, 1000, tpr_lower=tpr, steps=5) for tpr in (1.0, 0.5))
    assert half.estimate.upper == pytest.approx(2 * whole.estimate.upper)
    assert half.estimate.lower == whole.estimate.lower
    assert half.estimate.value == pytest.approx(0.003)
    assert montecarlo.direct(900, 1000, tpr_lower=0.1, steps=5).estimate.upper == 1.0
    for tpr in (0.0, 1.1, -1.0):
        with pytest.raises(ValueError, match="tpr_lower must lie in"):
            montecarlo.direct(0, 10, tpr_lower=tpr, steps=5)


def test_no_hit_is_a_limit_and_not_a_zero() -> None:
    result = montecarlo.direct(0, 30_000, steps=5)
    assert result.estimate.lower == 0
    assert result.estimate.upper == pytest.approx(1 - 0.025 ** (1 / 30_000))
    assert result.estimate.value == 0
    assert "upper limit" in result.estimate.reasons[0]


@pytest.mark.parametrize(("bound", "tpr", "level"), [(1e-3, 1.0, 0.95), (1 / 1797, 0.8, 0.99), (0.3, 1.0, 0.95)])
def test_samples_needed_is_the_smallest_number_that_certifies(bound, tpr, level) -> None:
    n = montecarlo.samples_needed(bound, tpr_lower=tpr, level=level)
    assert montecarlo.direct(0, n, tpr_lower=tpr, steps=1, level=level).estimate.upper <= bound * (1 + 1e-9)
    assert montecarlo.direct(0, n - 1, tpr_lower=tpr, steps=1, level=level).estimate.upper > bound
    with pytest.raises(ValueError, match="bound must lie in"):
        montecarlo.samples_needed(0.0)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 400),
    st.floats(0.02, 0.98),
    st.floats(0.3, 1.0),
    st.sampled_from([0.8, 0.95, 0.995]),
)
def test_samples_needed_at_a_rate_is_the_first_of_a_scan(hits, misses, above, tpr, level) -> None:
    """Every N up to the answer, by the exact limit of `intervals`. None of them certifies but the last.

    ``above`` places the bound between the corrected rate and 1. The limit is no monotone function of N: each further
    hit raises it.
    """
    n = hits + misses
    rate = hits / n / tpr
    bound = rate + above * (1 - rate)
    if rate >= 1 or not rate < bound < 1:
        assert montecarlo.samples_needed_at_rate(min(rate, 0.99), n, n, tpr_lower=tpr) is None
        return
    found = montecarlo.samples_needed_at_rate(bound, hits, n, tpr_lower=tpr, level=level)
    assert found is not None
    if found > 200_000:
        return
    samples = np.arange(1, found + 1)
    expected = -(-samples * hits // n)
    certified = intervals.clopper_pearson(expected, samples, level)[1] / tpr <= bound
    assert np.flatnonzero(certified).tolist() == [found - 1]


def test_samples_needed_at_a_rate_against_the_normal_law() -> None:
    """3 hits in 10,000 and a bound of twice that: z²·b(1 − b)/(b − r)² samples to first order, z = 1.96."""
    b, r = 6e-4, 3e-4
    found = montecarlo.samples_needed_at_rate(b, 300, 1_000_000)
    assert found == pytest.approx(1.96**2 * b * (1 - b) / (b - r) ** 2, rel=0.2)
    # The detector sees half: the rate of its alarms is held against half of the bound.
    assert montecarlo.samples_needed_at_rate(2 * b, 300, 1_000_000, tpr_lower=0.5) == found
    # Close below the bound the law is exact to a percent, and the numbers are large.
    near = montecarlo.samples_needed_at_rate(b, 594, 1_000_000)
    assert near == pytest.approx(1.96**2 * b * (1 - b) / (b - 5.94e-4) ** 2, rel=0.01)


def test_no_number_of_samples_certifies_a_bound_that_the_rate_exceeds() -> None:
    assert montecarlo.samples_needed_at_rate(1e-3, 1, 1000) is None
    assert montecarlo.samples_needed_at_rate(1e-3, 9, 10_000, tpr_lower=0.9) is None
    assert montecarlo.samples_needed_at_rate(1e-3, 9, 10_000, tpr_lower=0.91) is not None
    # So close to the bound that nobody would draw as many.
    assert montecarlo.samples_needed_at_rate(0.5, 499_999_999, 10**9) is None
    for bound, hits, n, tpr in ((0.0, 1, 10, 1.0), (0.1, 0, 10, 1.0), (0.1, 11, 10, 1.0), (0.1, 1, 10, 0.0)):
        with pytest.raises(ValueError, match="expected bound in"):
            montecarlo.samples_needed_at_rate(bound, hits, n, tpr_lower=tpr)


@pytest.mark.slow
def test_samples_continue_and_do_not_depend_on_chunks_or_devices() -> None:
    chain = Chain(VP(), 8)
    score = atom_models.atom_score(VP(), cyclic_orbit(5, 4, seed=3), var=0.05)
    all_at_once = montecarlo.sample(chain, score, (4,), 21, KEY, mesh=data_mesh(jax.devices()[:1]))
    later = montecarlo.sample(chain, score, (4,), 9, KEY, first=12, chunk=2)
    np.testing.assert_allclose(all_at_once[12:], later, rtol=1e-4, atol=1e-5)
    assert len(np.unique(all_at_once[:, 0])) == 21


def test_the_prior_draw_is_the_noise_of_no_step(monkeypatch) -> None:
    chain, begun = Chain(VP(), 6), []

    def run(chain, score, keys, x, level):
        begun.append((keys, x))
        return x

    monkeypatch.setattr(chains, "run", run)
    montecarlo.sample_lanes((chain, (3,)), {"key": KEY, "score": None}, {"draw": jnp.arange(4)})
    [(keys, x)] = begun
    assert len(np.unique(x)) == 12
    for level in range(1, 7):
        noise = chains.step_noise(keys, jnp.full(4, level), (3,))
        assert not np.any(np.isclose(x, chain.sde.prior_std * noise))


@pytest.mark.slow
def test_samples_of_a_gaussian_are_normal() -> None:
    """Every step is linear under the score −x. Kolmogorov-Smirnov; false alarm 1e-4."""
    images = montecarlo.sample(Chain(VP(), 12), _minus, (2, 3), 1000, KEY)
    assert images.shape == (1000, 2, 3)
    chain = Chain(VP(), 12)
    a, c, b = chain.posterior
    var = 1.0
    for j in range(12, 0, -1):
        # Under this score the estimate of x_0 is α x.
        var = (a[j] + c[j] * chain.alpha[j]) ** 2 * var + b[j] ** 2
    assert stats.kstest(images.reshape(-1) / np.sqrt(var), "norm").pvalue > 1e-4


def _minus(x, t):
    return -x


def test_a_broken_model_is_not_a_clean_one() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        montecarlo.sample(Chain(VP(), 6), atom_models.BrokenScore(0.2), (3,), 10, KEY)
    images = np.zeros((5, 3), np.float32)
    images[3] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        montecarlo.margins(atom_models.blind, images, 1)
    with pytest.raises(FloatingPointError, match="not finite"):
        montecarlo.margins(lambda x, r: jnp.full(len(x), jnp.nan), images[:2], 2)
