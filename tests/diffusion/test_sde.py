"""Forward processes: marginals, coefficients and discrete schedules agree with each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.diffusion.likelihood import LikelihoodConfig, log_likelihood
from diffusion_privacy.diffusion.samplers import Sampler, sample
from diffusion_privacy.diffusion.sde import DDPM, SDES, VE, VP, SubVP, scored
from diffusion_privacy.errors import InputError

PROCESSES = [VP(), SubVP(), VE(), DDPM(), DDPM(num_steps=50, schedule="cosine")]


def test_every_name_constructs():
    assert {type(s) for s in PROCESSES} == set(SDES.values())


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_coefficients_are_the_derivatives_of_the_marginals(sde):
    """dα/dt = f α and dσ²/dt = 2 f σ² + g², by automatic differentiation."""
    with jax.enable_x64(True):
        # Inside the cells of the discrete schedules, where the interpolation is smooth.
        t = (jnp.array([0, 3, 11, 30, 48]) + 0.37) / 50
        drift, g = sde.coefficients(jnp.ones((5, 1)), t)
        d_alpha = jax.vmap(jax.grad(sde.alpha))(t)
        d_var = jax.vmap(jax.grad(lambda u: sde.sigma(u) ** 2))(t)
        np.testing.assert_allclose(d_alpha, drift[:, 0] * sde.alpha(t), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(d_var, 2 * drift[:, 0] * sde.sigma(t) ** 2 + g**2, rtol=1e-6)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_starts_at_the_data_and_ends_near_the_prior(sde):
    zero, one = jnp.zeros(1), jnp.ones(1)
    assert float(sde.sigma(zero)[0]) == 0
    assert float(sde.alpha(zero)[0]) == 1
    np.testing.assert_allclose(sde.sigma(one), sde.prior_std, rtol=1e-4)
    mean, std = sde.marginal(jnp.ones((1, 2, 2)), one * 0.5)
    np.testing.assert_allclose(mean, jnp.broadcast_to(sde.alpha(one * 0.5), (1, 2, 2)))
    np.testing.assert_allclose(std, sde.sigma(one * 0.5))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_discrete_marginals_are_cumulative_products(schedule):
    sde = DDPM(num_steps=40, schedule=schedule)
    product = 1.0
    with jax.enable_x64(True):
        t = jnp.arange(1, 41) / 40
        alpha, sigma = np.asarray(sde.alpha(t)), np.asarray(sde.sigma(t))
    for i, beta in enumerate(sde.betas):
        product *= 1 - beta
        np.testing.assert_allclose(alpha[i], np.sqrt(product), rtol=1e-6)
        np.testing.assert_allclose(sigma[i], np.sqrt(1 - product), rtol=1e-6)


def test_published_schedules():
    scaled = DDPM(schedule="scaled_linear", beta_min=0.00085, beta_max=0.012)
    np.testing.assert_allclose(scaled.betas[[0, -1]], [0.00085, 0.012])
    np.testing.assert_allclose(np.diff(np.sqrt(scaled.betas)), (0.012**0.5 - 0.00085**0.5) / 999)
    linear = DDPM()
    np.testing.assert_allclose([linear.betas[0], linear.betas[-1]], [1e-4, 0.02])
    # ᾱ at the middle of Nichol & Dhariwal's cosine schedule, eq. 17 without the clip that acts only at the end.
    grid = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(DDPM(schedule="cosine").alpha(jnp.array([0.5])) ** 2, grid, rtol=1e-5)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_prior_density_is_that_of_its_draws(sde):
    z = sde.prior_sample(jax.random.key(0), (4, 3))
    want = jax.scipy.stats.norm.logpdf(z, scale=sde.prior_std).sum(1)
    np.testing.assert_allclose(sde.prior_logp(z), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (VP, {"beta_max": -1.0}, "beta_max must be a finite number, at least 0, got -1.0"),
        (VP, {"beta_min": 0.0, "beta_max": 0.0}, "beta_max must be above 0"),
        (SubVP, {"t_min": 0.0}, r"t_min must be a number in \(0, 1\)"),
        (VE, {"sigma_max": 0.001}, "sigma_max must be a finite number above sigma_min = 0.01"),
        (VE, {"sigma_min": 0.0}, "sigma_min must be a finite number above 0"),
        # The rates of VP are T times those of a discrete schedule.
        (DDPM, {"beta_max": 20.0}, r"beta_max must be a share of variance per step, in \(0, 1\), got 20.0"),
        (DDPM, {"num_steps": 1}, "num_steps must be a whole number, at least 2"),
        (DDPM, {"num_steps": 100.0}, "num_steps must be a whole number, at least 2"),
        (DDPM, {"schedule": "squared"}, "schedule must be 'linear'"),
    ],
)
def test_fields_of_no_process_are_refused(kind, fields, named):
    with pytest.raises(InputError, match=named):
        kind(**fields)


def test_a_score_of_another_shape_is_refused_where_it_would_be_broadcast():
    x, t = jnp.ones((2, 3)), jnp.full(2, 0.5)
    assert scored(lambda x, t: -x, x, t).shape == (2, 3)
    with pytest.raises(InputError, match=r"score: expected .* of x, \(2, 3\), got \(2, 1\)"):
        scored(lambda x, t: -x[:, :1], x, t)
    column = lambda x, t: -x[:, :1]  # noqa: E731
    for sampler in (Sampler("ancestral", steps=2), Sampler("ddim", steps=2), Sampler("ode_heun", steps=2)):
        with pytest.raises(InputError, match="score: expected"):
            sample(column, VP(), sampler, jax.random.split(jax.random.key(0), 2), (3,))
    with pytest.raises(InputError, match="score: expected"):
        log_likelihood(column, VP(), x, jax.random.split(jax.random.key(0), 2), LikelihoodConfig(steps=1))
