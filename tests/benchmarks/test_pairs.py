"""The networks of the benchmarks are the same on both sides: the same number of weights and the same function."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pairs
from diffusion_privacy.interop import diffusers_unet, unet2d_config


@pytest.mark.parametrize(
    "pair", [pairs.PAPER, pairs.TINY, pairs.SMALL, pairs.LIKELIHOOD, pairs.AUDIT], ids=lambda p: p.name
)
def test_both_sides_have_the_stated_number_of_parameters(pair):
    layout = jax.eval_shape(pair.network().init, jax.random.key(0), jnp.zeros((1, *pair.shape)), jnp.ones(1))
    theirs = unet2d_config.UNet2DConfig(**pair.diffusers_fields()).shapes.values()
    assert pairs.count(layout) == sum(map(math.prod, theirs)) == pair.parameters


@pytest.mark.slow
def test_both_sides_are_the_same_function():
    pair = pairs.LIKELIHOOD
    net = pair.network()
    params = pairs.random_params(net, pair.shape)
    config = unet2d_config.UNet2DConfig(**pair.diffusers_fields())
    weights = diffusers_unet.convert(config, pairs.diffusers_weights(pair, params))
    x = jax.random.normal(jax.random.key(1), (2, *pair.shape))
    t = jnp.array([0.2, 0.7])
    ours = jax.jit(net.apply)(params, x, t)
    theirs = jax.jit(diffusers_unet.UNet2D(config, 1000).at_timestep)(weights, x, 1000 * t)
    assert jnp.std(ours) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * float(jnp.std(ours)))
