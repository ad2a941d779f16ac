"""The closed form of a model that has memorised its images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.gaussian_mixture import GaussianMixture

from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.given_model import GivenModel, empirical_score
from diffusion_privacy.diffusion.sde import DDPM, VE, VP
from diffusion_privacy.errors import InputError


@pytest.mark.parametrize("sde", [VP(), VE(sigma_max=5.0), DDPM()], ids=lambda s: type(s).__name__)
def test_it_is_the_score_of_the_empirical_measure(sde):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (7, 3, 2, 1)).astype(np.float32)
    t = jnp.asarray([0.05, 0.3, 0.7, 1.0])
    x = jnp.asarray(rng.standard_normal((4, 3, 2, 1)), jnp.float32)
    ours, oracle = empirical_score(images, sde), GaussianMixture(images).score(sde)
    np.testing.assert_allclose(ours(x, t), oracle(x, t), rtol=2e-4, atol=2e-4)


def test_another_set_of_as_many_images_needs_no_other_program():
    traced = []

    @jax.jit
    def call(score, x, t):
        traced.append(x.shape)
        return score(x, t)

    for seed in range(2):
        images = np.random.default_rng(seed).uniform(-1, 1, (5, 4, 4, 1))
        call(empirical_score(images, VP()), jnp.zeros((2, 4, 4, 1)), jnp.full(2, 0.5))
    assert len(traced) == 1


def test_its_mean_is_not_rounded_on_an_accelerator():
    """The default there keeps ten bits or fewer of every image, which the score divides by σ²."""
    score = empirical_score(np.zeros((3, 4), np.float32), VP())
    program = jax.make_jaxpr(score)(jnp.ones((2, 4)), jnp.ones(2))
    found = [e.params["precision"] for e in program.jaxpr.eqns if e.primitive.name == "dot_general"]
    highest = jax.lax.Precision.HIGHEST
    assert found
    assert all(p in (highest, (highest, highest)) for p in found)


@pytest.mark.parametrize(
    ("score", "chain", "named"),
    [
        (lambda x, t: -x, VP(), r"model.chain: expected a diffusion.chain.Chain\(sde, steps\), got VP"),
        (np.zeros(3), Chain(VP(), 5), r"model.score: expected a function score\(x, t\), got ndarray"),
    ],
)
def test_what_is_no_model_is_refused_at_once(score, chain, named):
    with pytest.raises(InputError, match=named):
        GivenModel(score, chain)
