"""Prior matching against scipy's distributions; coordinates that carry no record."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import decoding, noise


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0, 30.0])
def test_lower_tail_of_normal_plus_laplace(scale):
    for x in (0.0, 0.3, 2.0, 5.0, 3 * scale + 1.0):
        # F(−x) = ½∫₀^∞ e^{−v} (Φ(−x − bv) + Φ(−x + bv)) dv
        reference = integrate.quad(
            lambda v, x=x: 0.5 * np.exp(-v) * (stats.norm.cdf(-x - scale * v) + stats.norm.cdf(-x + scale * v)),
            0,
            80,
            points=[x / scale] if x / scale < 80 else None,
            limit=400,
        )[0]
        assert float(decoding.normal_plus_laplace_cdf(jnp.asarray(x), scale)) == pytest.approx(reference, rel=2e-4)


@pytest.mark.parametrize(("mechanism", "unit"), [("gaussian", noise.unit_gaussian), ("laplace", noise.unit_laplace)])
@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_noised_prior_is_the_prior_again(mechanism, unit, scale):
    z = jax.random.normal(jax.random.key(0), (40_000,)) + scale * unit(jax.random.key(1), 40_000)
    out = np.asarray(decoding.match_prior(z, mechanism, scale))
    assert np.isfinite(out).all()
    assert stats.kstest(out, "norm").pvalue > 1e-6  # false alarm 1e-6


def test_laplace_map_is_odd_increasing_and_finite_far_out():
    x = jnp.linspace(-200.0, 200.0, 4001)
    out = np.asarray(decoding.match_laplace(x, 2.0))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, -out[::-1], atol=3e-5)
    assert (np.diff(out) >= -1e-5).all()


def test_metric_noise_has_no_matching():
    with pytest.raises(InputError, match="prior matching"):
        decoding.match_prior(jnp.zeros(2), "metric", 1.0)


def test_coarse_selection_carries_only_the_chosen_coordinates():
    selection = decoding.CoarseSelection((0, 3), 5)
    z = jnp.arange(10.0).reshape(2, 5)
    np.testing.assert_array_equal(selection.take(z), [[0.0, 3.0], [5.0, 8.0]])
    whole = selection.complete(jax.random.key(0), jnp.asarray([[7.0, 8.0], [9.0, 10.0]]))
    np.testing.assert_array_equal(whole[:, jnp.asarray([0, 3])], [[7.0, 8.0], [9.0, 10.0]])
    assert np.abs(np.asarray(whole)[:, [1, 2, 4]]).max() < 6
    for indices in ((), (3, 0), (0, 0), (5,), (-1,)):
        with pytest.raises(InputError, match=r"selection\.indices"):
            decoding.CoarseSelection(indices, 5)
    with pytest.raises(InputError, match=r"selection\.dim"):
        selection.take(jnp.zeros((2, 4)))
