"""The oracle itself, against sums written out in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.gaussian_mixture import GaussianMixture

from diffusion_privacy.diffusion.sde import DDPM, VE, VP, SubVP


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(sigma_max=5.0), DDPM()], ids=repr)
def test_score_is_the_gradient_of_the_density_written_out(sde):
    rng = np.random.default_rng(0)
    mixture = GaussianMixture(rng.normal(size=(5, 3, 2)), 0.3, np.arange(1.0, 6))
    with jax.enable_x64(True):
        x, t = jnp.asarray(rng.normal(size=(4, 3, 2))), jnp.array([0.001, 0.1, 0.5, 1.0])

        def density(x, t):
            alpha, var = sde.alpha(t), sde.sigma(t) ** 2 + 0.09 * sde.alpha(t) ** 2
            square = jnp.sum((x - alpha * mixture.means) ** 2, (1, 2))
            logs = jnp.log(jnp.arange(1.0, 6) / 15) - square / (2 * var) - 3 * jnp.log(2 * jnp.pi * var)
            return jax.nn.logsumexp(logs)

        want, grad = jax.vmap(jax.value_and_grad(density))(x, t)
        np.testing.assert_allclose(mixture.log_prob(x, t, sde), want, rtol=1e-10)
        np.testing.assert_allclose(mixture.score(sde)(x, t), grad, rtol=1e-8)
        np.testing.assert_allclose(mixture.posterior(x, t, sde).sum(1), 1, rtol=1e-12)


def test_atoms_keep_their_digits_in_float32():
    """ε = −σ·score of the memoriser near an atom at small σ, where ‖x‖² − 2x·m + ‖m‖² has lost all digits."""
    rng = np.random.default_rng(1)
    mixture, sde = GaussianMixture(rng.normal(size=(20, 64))), VP()
    noise = rng.normal(size=(20, 64)).astype(np.float32)
    t = np.full(20, 1e-3, np.float32)
    sigma = np.sqrt(-np.expm1(-(0.1 * 1e-3 + 0.5 * 19.9 * 1e-6)))
    x = (mixture.means * np.sqrt(1 - sigma**2) + sigma * noise).astype(np.float32)
    eps = -sigma * mixture.score(sde)(jnp.asarray(x), jnp.asarray(t))
    assert eps.dtype == jnp.float32
    np.testing.assert_allclose(eps, noise, atol=2e-3)


def test_ball_probability_and_draws():
    """2,000 draws: |z| < 4.5 has a false-alarm rate of 7e-6."""
    mixture = GaussianMixture(np.random.default_rng(2).normal(size=(3, 4)), 0.4, np.array([0.5, 0.3, 0.2]))
    p = mixture.ball_probability(mixture.means[0], 0.8)
    draws = mixture.sample(jax.random.key(0), 2000)
    hit = np.mean(np.linalg.norm(draws - mixture.means[0], axis=1) < 0.8)
    assert abs(hit - p) / np.sqrt(p * (1 - p) / 2000) < 4.5
    assert GaussianMixture(mixture.means).ball_probability(mixture.means[1], 1e-3) == pytest.approx(1 / 3)
