"""ODE likelihood against the closed form; Hutchinson's estimate; bits per dimension."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.gaussian_mixture import GaussianMixture

from diffusion_privacy.diffusion.likelihood import (
    LikelihoodConfig,
    bits_per_dim,
    dequantise,
    log_likelihood,
)
from diffusion_privacy.diffusion.sde import DDPM, VE, VP, SubVP
from diffusion_privacy.errors import InputError

PROCESSES = [VP(), SubVP(), VE(), DDPM()]


def mixture(dim, std=0.4):
    """Centred, because the prior at t = 1 is off by α(1)·mean to first order: see the test with a matched prior."""
    means, weights = 0.7 * np.random.default_rng(dim).normal(size=(4, dim)), np.array([0.4, 0.3, 0.2, 0.1])
    return GaussianMixture(means - weights @ means, std, weights)


def evaluate(model, sde, x, config, **options):
    """Compiled likelihood of the exact score."""
    run = jax.jit(lambda x: log_likelihood(model.score(sde), sde, x, keys(len(x)), config, **options))
    return run(x)


def keys(count, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize(("dim", "solver", "calls"), [(2, "rk4", 160), (64, "rk4", 160), (64, "adams", 80)])
def test_exact_divergence_gives_the_closed_form_within_a_thousandth_nat_per_dimension(sde, dim, solver, calls):
    """In float32, as it is run. The prior's own mismatch at t = 1 is part of the error."""
    model = mixture(dim)
    x = model.sample(jax.random.key(1), 6)
    got = evaluate(model, sde, x, LikelihoodConfig(solver=solver, divergence="exact", chunk=16))
    want = model.log_prob(x, jnp.full(6, sde.t_min), sde)
    np.testing.assert_array_less(np.abs(got.nats - want) / dim, 1e-3)
    assert jnp.all(got.network_calls == calls)
    assert jnp.all(got.probe_stderr == 0)
    assert got.bits_per_dim is None


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VP(), VE()], ids=repr)
def test_adaptive_and_float64_agree_with_the_closed_form_at_any_start_time(sde):
    model = mixture(3)
    with jax.enable_x64(True):
        t = jnp.array([sde.t_min, 0.1, 0.4, 0.8])
        x = sde.alpha(t)[:, None] * model.sample(jax.random.key(1), 4) + 0.5 * sde.sigma(t)[:, None]
        config = LikelihoodConfig(solver="adaptive", divergence="exact", rtol=1e-8, atol=1e-8)
        got = evaluate(model, sde, x, config, t=t)
        want = model.log_prob(x, t, sde)
        assert got.nats.dtype == jnp.float64
        # What is left is the prior's mismatch at t = 1, of order α(1)² = 4e-5 or 1/σ_max² = 4e-4.
        np.testing.assert_allclose(got.nats, want, atol=1e-3)
        assert got.network_calls[0] > got.network_calls[3]


@pytest.mark.slow
@pytest.mark.parametrize("process", [VP, VE])
def test_without_the_mismatch_of_the_prior_an_uncentred_mixture_agrees_too(process):
    """What the default prior N(0, prior_std² I) leaves out is the whole gap to the closed form, and it exceeds 1e-3."""
    model = GaussianMixture(0.7 + 0.2 * np.random.default_rng(0).normal(size=(3, 5)), 0.4)

    class Matched(process):
        def prior_logp(self, z):
            return model.log_prob(z, jnp.ones(z.shape[0], z.dtype), process())

    x = model.sample(jax.random.key(1), 6)
    config = LikelihoodConfig(divergence="exact")
    want = model.log_prob(x, jnp.full(6, process().t_min), process())
    np.testing.assert_array_less(np.abs(evaluate(model, Matched(), x, config).nats - want) / 5, 1e-3)
    assert np.max(np.abs(evaluate(model, process(), x, config).nats - want)) / 5 > 1e-3


def test_a_wrong_score_is_noticed():
    sde, model = VP(), mixture(8)
    score = model.score(sde)
    x = model.sample(jax.random.key(1), 4)
    config = LikelihoodConfig(divergence="exact")
    wrong = jax.jit(lambda x: log_likelihood(lambda x, t: 1.02 * score(x, t), sde, x, keys(4), config).nats)(x)
    want = model.log_prob(x, jnp.full(4, sde.t_min), sde)
    assert np.all(np.abs(wrong - want) / 8 > 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_states_its_error(probe):
    """500 images share one x: |z| < 4.5 has a false-alarm rate of 7e-6; the stated error is right within 20 %."""
    sde, model, n = VP(), mixture(12), 500
    x = jnp.broadcast_to(model.sample(jax.random.key(1), 1), (n, 12))
    config = LikelihoodConfig(solver="heun", steps=30, probe=probe, probes=4)
    got = evaluate(model, sde, x, config)
    exact_config = LikelihoodConfig(solver="heun", steps=30, divergence="exact")
    exact = evaluate(model, sde, x[:1], exact_config).nats[0]
    spread = np.std(got.nats, ddof=1)
    assert abs(np.mean(got.nats) - exact) / (spread / np.sqrt(n)) < 4.5
    stated = np.sqrt(np.mean(np.square(got.probe_stderr)))
    assert 0.8 < stated / spread < 1.25


def test_the_stated_error_is_that_of_the_mean_over_probes():
    """Two probes of which the first is that of a run with one: their mean is off by half of their difference."""
    slope = jnp.eye(3) + 0.5 * jnp.ones((3, 3))

    def found(probes):
        config = LikelihoodConfig(solver="heun", steps=2, probe="gaussian", probes=probes)
        run = jax.jit(lambda x: log_likelihood(lambda x, t: -x @ slope, VP(), x, keys(4), config))
        return run(jnp.ones((4, 3)))

    one, two = found(1), found(2)
    assert np.all(np.asarray(two.probe_stderr) > 0.01)
    np.testing.assert_allclose(two.probe_stderr, np.abs(two.nats - one.nats), rtol=2e-3, atol=1e-4)
    assert np.all(np.isnan(np.asarray(one.probe_stderr)))


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_result_of_a_row_does_not_depend_on_the_batch():
    sde, model = VP(), mixture(4)
    x = model.sample(jax.random.key(1), 5)
    config = LikelihoodConfig(solver="adaptive", probes=2)
    run = jax.jit(lambda x, keys: log_likelihood(model.score(sde), sde, x, keys, config))
    together, alone = run(x, keys(5)), run(x[3:4], keys(5)[3:4])
    np.testing.assert_allclose(alone.nats[0], together.nats[3], rtol=1e-4)
    assert abs(int(alone.network_calls[0]) - int(together.network_calls[3])) <= 12


def test_bits_of_a_uniform_image_are_the_bits_of_its_grey_levels():
    """A density constant over the cells of L levels costs log2 L bits a value."""
    levels, dim = 17, 9
    width = levels * 2 / (levels - 1)
    nats = jnp.array([-dim * math.log(width)])
    np.testing.assert_allclose(bits_per_dim(nats, dim, levels), math.log2(levels), rtol=1e-6)


def test_dequantised_values_fill_their_cells_and_no_more():
    levels = 5
    grid = jnp.linspace(-1, 1, levels)
    x = jnp.broadcast_to(grid[:, None, None, None], (levels, 8, 8, 2))
    y = dequantise(x, keys(levels), levels)
    index = (y + 1) * (levels - 1) / 2
    np.testing.assert_array_equal(jnp.round(index), (x + 1) * (levels - 1) / 2)
    offset = np.asarray(index - jnp.round(index)).ravel()
    assert offset.min() < -0.48
    assert offset.max() > 0.48


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_bits_per_dim_adds_the_cell_volume_to_the_density_of_the_dequantised_image():
    sde, levels = VP(), 17
    model = GaussianMixture(np.zeros((1, 4, 4, 1)), 0.5)
    x = jnp.round(jax.random.uniform(jax.random.key(0), (3, 4, 4, 1)) * 16) / 8 - 1
    config = LikelihoodConfig(divergence="exact")
    got = evaluate(model, sde, x, config, levels=levels)
    y = dequantise(x, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys(3)), levels)
    want = model.log_prob(y, jnp.full(3, sde.t_min), sde)
    np.testing.assert_allclose(got.nats, want, rtol=1e-3)
    np.testing.assert_allclose(got.bits_per_dim, -(want / 16 + math.log(1 / 8)) / math.log(2), rtol=1e-3)


@pytest.mark.parametrize("field", ["solver", "divergence", "probe", "steps", "probes", "rtol"])
def test_wrong_settings_name_the_field(field):
    with pytest.raises(InputError, match=f"likelihood.{field} must be"):
        LikelihoodConfig(**{field: -1})
