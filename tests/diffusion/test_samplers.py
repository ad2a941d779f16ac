"""Samplers: moments and component weights of known mixtures, orders, and independence of the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.gaussian_mixture import GaussianMixture

from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.samplers import SAMPLERS, Sampler, network_calls, sample, sample_counted
from diffusion_privacy.diffusion.sde import DDPM, VE, VP, SubVP
from diffusion_privacy.errors import InputError

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[0.8, 0.0, 0.3], [-0.6, 0.5, 0.0], [-0.2, -0.9, -0.6]])


def keys(count, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


def draw(model, sde, sampler, count, seed=0):
    """Compiled draws of the exact score."""
    shape = model.means.shape[1:]
    return jax.jit(lambda k: sample_counted(model.score(sde), sde, sampler, k, shape))(keys(count, seed))


CASES = [
    (Sampler("ancestral", steps=300, spacing="log_snr"), VP()),
    (Sampler("ancestral", steps=1000), DDPM()),
    (Sampler("euler_maruyama", steps=400, spacing="quadratic"), VP()),
    (Sampler("ddim", steps=60, spacing="log_snr"), VP()),
    (Sampler("ddim", steps=150, eta=0.5, spacing="log_snr"), SubVP()),
    (Sampler("predictor_corrector", steps=200, spacing="quadratic"), VP()),
    (Sampler("ode_heun", steps=40, spacing="log_snr"), SubVP()),
    (Sampler("ode_heun", steps=30, spacing="log_snr"), VE()),
    (Sampler("ode_adaptive"), VP()),
    (Sampler("ode_adaptive"), DDPM()),
]


STD, DRAWS = 0.15, 3000


def faults(x):
    """Names of the properties in which ``x[DRAWS, 3]`` differs from the mixture.

    Weights: chi-square with 2 degrees against 19, false-alarm rate 7.5e-5. Means (3 numbers) and the spread inside the
    components (its relative standard error is 1/√(2·3·DRAWS)): |z| > 5, 2e-6 together. Beyond chance, 3 % of the spread
    is allowed for the discretisation.
    """
    x = np.asarray(x, np.float64)
    nearest = np.argmin(np.sum((x[:, None] - MEANS) ** 2, axis=2), axis=1)
    counts, expected = np.bincount(nearest, minlength=3), DRAWS * WEIGHTS
    centre = WEIGHTS @ MEANS
    std = np.sqrt(WEIGHTS @ (MEANS - centre) ** 2 + STD**2)
    within = np.sqrt(np.mean((x - MEANS[nearest]) ** 2))
    wrong = {
        "weights": np.sum((counts - expected) ** 2 / expected) > 19,
        "mean": np.any(np.abs(x.mean(0) - centre) > std * (5 / np.sqrt(DRAWS) + 0.03)),
        "spread": abs(within / STD - 1) > 5 / np.sqrt(6 * DRAWS) + 0.03,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "sde"), CASES, ids=lambda v: getattr(v, "name", type(v).__name__))
def test_moments_and_weights_of_a_mixture(sampler, sde):
    x, calls = draw(GaussianMixture(MEANS, STD, WEIGHTS), sde, sampler, DRAWS)
    assert faults(x) == []
    expected = network_calls(sampler)
    assert expected is None or np.all(np.asarray(calls) == expected)


@pytest.mark.parametrize(
    ("std", "weights", "factor", "fault"),
    [(STD, WEIGHTS, 0.9, "spread"), (STD, WEIGHTS[::-1], 1.0, "weights"), (1.1 * STD, WEIGHTS, 1.0, "spread")],
)
def test_the_check_notices_a_planted_fault(std, weights, factor, fault):
    """A score 10 % too small, swapped weights, components 10 % too wide."""
    score, sampler = GaussianMixture(MEANS, std, weights).score(VP()), Sampler("ode_heun", steps=40, spacing="log_snr")
    x = jax.jit(lambda k: sample(lambda x, t: factor * score(x, t), VP(), sampler, k, (3,)))(keys(DRAWS))
    assert fault in faults(x)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_an_atom_model_returns_its_atoms_and_nothing_else(name):
    model = GaussianMixture(MEANS, 0.0, WEIGHTS)
    x, _ = draw(model, VP(), Sampler(name, steps=50, spacing="quadratic"), 64)
    gap = jnp.linalg.norm(x - MEANS[np.asarray(model.nearest(x))], axis=1)
    # Euler-Maruyama ends with a drift step, not at the model's mean: it stops within its last noise level.
    loose = name in ("euler_maruyama", "predictor_corrector")
    assert float(jnp.quantile(gap, 0.9)) < (0.1 if loose else 1e-3)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_an_image_does_not_depend_on_its_batch(name):
    model, sde = GaussianMixture(MEANS.reshape(3, 3, 1, 1), 0.2, WEIGHTS), VP()
    run = jax.jit(lambda k: sample(model.score(sde), sde, Sampler(name, steps=10, eta=0.0), k, (3, 1, 1)))
    together, part = run(keys(6)), run(keys(6)[2:4])
    assert together.shape == (6, 3, 1, 1)
    np.testing.assert_allclose(part, together[2:4], rtol=1e-4, atol=1e-5)
    assert jnp.abs(together[0] - together[1]).max() > 1e-3


def test_ddim_with_full_noise_is_the_ancestral_sampler():
    model, sde = GaussianMixture(MEANS, 0.2), VP()
    ddim, _ = draw(model, sde, Sampler("ddim", steps=12, eta=1.0), 8)
    ancestral, _ = draw(model, sde, Sampler("ancestral", steps=12), 8)
    np.testing.assert_allclose(ddim, ancestral, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_heun_of_the_flow_agrees_with_the_adaptive_solver():
    model, sde = GaussianMixture(MEANS, 0.2), VP()
    fixed, _ = draw(model, sde, Sampler("ode_heun", steps=80, spacing="log_snr"), 16)
    adaptive, calls = draw(model, sde, Sampler("ode_adaptive", rtol=1e-5, atol=1e-5), 16)
    # A draw between two basins may fall on either side.
    assert float(jnp.quantile(jnp.abs(fixed - adaptive).max(1), 0.8)) < 0.01
    assert len(np.unique(np.asarray(calls))) > 1


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["euler_maruyama", "ancestral"])
def test_stochastic_kernels_have_weak_order_one(kernel):
    """Variance of the chain on N(0, s²) by its exact recursion V ← m² V + s_j², without sampling noise."""
    sde, std, errors = VP(), 0.5, []
    model = GaussianMixture(np.zeros((1, 1)), std)
    with jax.enable_x64(True):
        for steps in (400, 800, 1600):
            chain = Chain(sde, steps, kernel)
            level = jnp.arange(1, steps + 1)
            slope = np.asarray(chain.model_mean(model.score(sde), jnp.ones((steps, 1)), level))[:, 0]
            var = sde.prior_std**2
            for j in range(steps, 0, -1):
                var = slope[j - 1] ** 2 * var + chain.kernel_std[j] ** 2
            errors.append(abs(var - std**2))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < 0.02
    assert np.all(np.abs(orders - 1) < 0.2), (orders, errors)


def test_clipping_keeps_images_in_range():
    model = GaussianMixture(3 * MEANS, 0.2)
    x, _ = draw(model, VP(), Sampler("ancestral", steps=10, clip_x0=True), 8)
    assert float(jnp.abs(x).max()) <= 1
    loose, _ = draw(model, VP(), Sampler("ancestral", steps=10), 8)
    assert float(jnp.abs(loose).max()) > 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "heun"}, "sampler.name must be one of ancestral, euler_maruyama"),
        ({"steps": 1}, "sampler.steps must be 2 or more"),
        ({"spacing": "cubic"}, "sampler.spacing"),
        ({"eta": 1.5}, "sampler.eta"),
        ({"name": "ode_heun", "clip_x0": True}, "sampler.clip_x0 must be False for 'ode_heun'"),
        ({"rtol": 0.0}, "sampler.rtol"),
    ],
)
def test_wrong_settings_name_the_field(fields, message):
    with pytest.raises(InputError, match=message):
        Sampler(**fields)


def test_network_calls_are_counted():
    assert network_calls(Sampler("ddim", steps=7)) == 7
    assert network_calls(Sampler("ode_heun", steps=7)) == 13
    assert network_calls(Sampler("predictor_corrector", steps=7, corrector_steps=2)) == 21
    assert network_calls(Sampler("ode_adaptive")) is None
