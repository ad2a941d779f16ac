"""Predictions convert into each other; the loss has its known minimum; draws ignore the split of the batch."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.gaussian_mixture import GaussianMixture

from diffusion_privacy.diffusion.objective import (
    PREDICTIONS,
    denoising_loss,
    from_pair,
    normal_rows,
    score_fn,
    to_pair,
    to_score,
    training_times,
)
from diffusion_privacy.diffusion.sde import DDPM, VE, VP, SubVP
from diffusion_privacy.errors import InputError
from diffusion_privacy.tasks import Denoiser

PROCESSES = [VP(), SubVP(), VE(), DDPM()]


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_round_trips_through_the_pair(sde, prediction):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x0, eps = jnp.asarray(rng.normal(size=(2, 4, 3, 2)))
        t = jnp.array([0.002, 0.1, 0.6, 1.0])
        mean, sigma = sde.marginal(x0, t)
        x = mean + sigma[:, None, None] * eps
        output = from_pair(prediction, x0, eps, t, sde)
        got_x0, got_eps = to_pair(prediction, output, x, t, sde)
        np.testing.assert_allclose(got_x0, x0, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(got_eps, eps, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(to_score(prediction, output, x, t, sde), -eps / sigma[:, None, None], rtol=1e-6)


def test_v_is_that_of_the_paper_for_vp():
    t, x0, eps = jnp.array([0.4]), jnp.array([[2.0]]), jnp.array([[-1.0]])
    sde = VP()
    want = sde.alpha(t) * eps - sde.sigma(t) * x0
    np.testing.assert_allclose(from_pair("v", x0, eps, t, sde), want, rtol=1e-5)


def gaussian_apply(sde, prediction, std):
    """The exact denoiser of N(0, std² I) in each parametrisation."""
    mixture = GaussianMixture(np.zeros((1, 6)), std)

    def apply(params, x, t, label):
        del params, label
        score = mixture.score(sde)(x, t)
        _, eps = to_pair("score", score, x, t, sde)
        x0 = mixture.denoised(x, t, sde)
        return from_pair(prediction, x0, eps, t, sde)

    return apply


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sde", [VP(), VE(sigma_max=5.0)], ids=repr)
def test_exact_score_reaches_the_known_minimum(sde, prediction):
    """E(ε − ε̂)² = E_t[α² s²/(α² s² + σ²)] on N(0, s² I), and a scaled score exceeds it.

    4,096 x 6 draws with stratified times; |z| < 4.5 has a false-alarm rate of 7e-6 a case.
    """
    n, std = 4096, 0.5
    x0 = std * jax.random.normal(jax.random.key(1), (n, 6))
    position = jnp.arange(n)

    def loss(apply):
        args = (apply, None, sde, x0, jax.random.key(2), position)
        fn = jax.jit(lambda: denoising_loss(*args, batch_size=n, prediction=prediction))
        return np.asarray(fn(), np.float64)

    exact = loss(gaussian_apply(sde, prediction, std))
    t = jnp.linspace(sde.t_min, 1, 4001)
    signal = (sde.alpha(t) * std) ** 2
    minimum = float(np.mean(signal / (signal + sde.sigma(t) ** 2)))
    error = exact.std() / np.sqrt(n)
    assert abs(exact.mean() - minimum) < 4.5 * error + 1e-3 * minimum
    apply = gaussian_apply(sde, prediction, std)
    excess = loss(lambda p, x, t, c: 1.3 * apply(p, x, t, c)) - exact
    assert excess.mean() > 4.5 * excess.std() / np.sqrt(n)


def test_likelihood_weighting_is_half_g_squared_over_sigma_squared():
    sde, x0, key, position = VP(), jnp.ones((8, 2)), jax.random.key(0), jnp.arange(8)

    def apply(params, x, t, label):
        return jnp.zeros_like(x)

    simple, weighted = (
        denoising_loss(apply, None, sde, x0, key, position, batch_size=8, weighting=w) for w in ("simple", "likelihood")
    )
    t = training_times(sde, jax.random.split(key)[0], position, 8)
    g = sde.coefficients(x0, t)[1]
    np.testing.assert_allclose(weighted, (1 - sde.t_min) * 0.5 * (g / sde.sigma(t)) ** 2 * simple, rtol=1e-5)


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_times_are_stratified_and_in_range(sde):
    t = np.asarray(training_times(sde, jax.random.key(3), jnp.arange(64), 64))
    assert t.min() >= sde.t_min - 1e-7
    assert t.max() <= 1
    cells = np.floor((t - sde.t_min) / (1 - sde.t_min) * 64 * (1 - 1e-6))
    if not isinstance(sde, DDPM):
        # One time a cell of the rotated grid: gaps of exactly 1/64.
        np.testing.assert_allclose(np.diff(np.sort(t)), (1 - sde.t_min) / 64, rtol=1e-2)
        assert len(np.unique(cells)) >= 63
    else:
        np.testing.assert_allclose(t * sde.num_steps, np.round(t * sde.num_steps), atol=1e-3)


def test_discrete_times_cover_every_step_equally():
    sde = DDPM(num_steps=10)
    for seed in range(20):
        t = training_times(sde, jax.random.key(seed), jnp.arange(30), 30)
        counts = np.bincount(np.round(np.asarray(t) * 10).astype(int), minlength=11)
        assert counts[0] == 0
        assert np.all(np.abs(counts[1:] - 3) <= 1)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_losses_do_not_depend_on_the_split_of_the_batch():
    sde, key = VP(), jax.random.key(5)
    x0 = jax.random.normal(jax.random.key(6), (8, 3))

    def loss(rows):
        def apply(params, x, t, label):
            return jnp.tanh(x) * t[:, None]

        return denoising_loss(apply, None, sde, x0[rows], key, rows, batch_size=8)

    whole = loss(jnp.arange(8))
    parts = jnp.concatenate([loss(jnp.arange(3, 8)), loss(jnp.arange(3))])
    np.testing.assert_allclose(jnp.roll(parts, 3), whole, rtol=1e-6)


def test_flat_noise_equals_shaped_noise():
    key, like = jax.random.key(0), jnp.zeros((2, 3, 2))
    want = jnp.stack([jax.random.normal(jax.random.fold_in(key, i), (3, 2)) for i in (4, 9)])
    np.testing.assert_array_equal(normal_rows(key, jnp.array([4, 9]), like), want)


def test_score_function_is_a_pytree_of_its_parameters_and_repeats_the_label():
    sde = VP()

    def apply(params, x, t, label):
        return params * x + label[:, None]

    x, t = jnp.ones((3, 2)), jnp.full(3, 0.5)
    score = score_fn(apply, jnp.array(2.0), sde, "eps", label=jnp.array(1))
    np.testing.assert_allclose(score(x, t), -(2.0 + 1.0) / sde.sigma(t)[:, None] * x, rtol=1e-6)
    assert len(jax.tree.leaves(score)) == 2
    calls = jax.jit(lambda s: s(x, t))
    np.testing.assert_allclose(calls(score), score(x, t), rtol=1e-6)
    calls(score_fn(apply, jnp.array(5.0), sde, "eps", label=jnp.array(0)))
    assert calls._cache_size() == 1


def test_a_network_sees_inputs_at_unit_scale_under_every_process():
    class Echo(nn.Module):
        @nn.compact
        def __call__(self, x, t, label=None):
            return x

    sde = VE()
    got = Denoiser(Echo(), sde)({}, jnp.ones((1, 2)), jnp.ones(1))
    np.testing.assert_allclose(got, 1 / np.sqrt(1 + sde.prior_std**2), rtol=1e-5)


def test_unknown_choices_are_refused():
    with pytest.raises(InputError, match="prediction must be one of eps"):
        score_fn(lambda *a: a[1], None, VP(), "epsilon")
    with pytest.raises(InputError, match="weighting"):
        denoising_loss(
            lambda *a: a[1], None, VP(), jnp.ones((1, 2)), jax.random.key(0), jnp.arange(1), batch_size=1, weighting="x"
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_of_one_channel_too_few_is_refused_where_it_would_be_broadcast(prediction):
    grey = lambda params, x, t, label: x[..., :1]  # noqa: E731
    x, t = jnp.ones((2, 4, 4, 3)), jnp.full(2, 0.5)
    with pytest.raises(InputError, match=r"network: expected .* of x, \(2, 4, 4, 3\), got \(2, 4, 4, 1\)"):
        denoising_loss(grey, {}, VP(), x, jax.random.key(0), jnp.arange(2), batch_size=2, prediction=prediction)
    with pytest.raises(InputError, match="network: expected"):
        score_fn(grey, {}, VP(), prediction)(x, t)
