"""GroupNorm by one factor and one term a channel against flax's, values and derivatives."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.layers import GroupNorm


def inputs(shape=(2, 5, 4, 12)):
    keys = jax.random.split(jax.random.key(0), 5)
    x = 0.7 + 2 * jax.random.normal(keys[0], shape)
    params = {"scale": jax.random.normal(keys[1], shape[-1:]), "bias": jax.random.normal(keys[2], shape[-1:])}
    factor, term = (jax.random.normal(k, (shape[0], shape[-1])) for k in keys[3:])
    return x, params, factor, term


def of_flax(groups, dtype, x, params, factor, term):
    norm = nn.GroupNorm(groups, dtype=dtype, param_dtype=x.dtype).apply({"params": params}, x)
    return norm * (1 + factor[:, None, None]) + term[:, None, None]


def ours(groups, dtype, x, params, factor, term):
    return GroupNorm(groups, dtype).apply({"params": params}, x, factor, term)


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_values_and_both_kinds_of_derivatives_are_those_of_flax(groups):
    with jax.enable_x64(True):
        args = jax.tree.map(lambda a: a.astype(jnp.float64), inputs())
        direction = jax.tree.map(jnp.cos, args)
        out = {}
        for form in (of_flax, ours):

            def fn(*args, form=form):
                return jnp.sin(form(groups, jnp.float64, *args))

            value, pull = jax.vjp(fn, *args)
            out[form] = (value, pull(jnp.cos(value)), jax.jvp(fn, args, direction)[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), out[ours], out[of_flax])


def test_bfloat16_has_its_sums_in_float32():
    x, params, factor, term = inputs((2, 64, 64, 8))
    x, factor, term = (v.astype(jnp.bfloat16) for v in (x, 0.003 * factor, term))
    low = ours(2, jnp.bfloat16, x, params, factor, term)
    assert low.dtype == jnp.bfloat16
    high = ours(2, jnp.float32, x.astype(jnp.float32), params, factor.astype(jnp.float32), term.astype(jnp.float32))
    # Half a unit in the last place of the result: nothing from 16,384 numbers added up, nor from 1 + a small factor.
    np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=2**-8)


def test_an_image_is_normalised_alone_and_starts_at_mean_0_and_variance_1():
    x, *_ = inputs()
    params = GroupNorm(3, jnp.float32).init(jax.random.key(0), x)
    y = GroupNorm(3, jnp.float32).apply(params, x)
    grouped = np.asarray(y).reshape(2, 20, 3, 4)
    np.testing.assert_allclose(grouped.mean(axis=(1, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(grouped.var(axis=(1, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(GroupNorm(3, jnp.float32).apply(params, x[:1]), y[:1], atol=1e-6)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(InputError, match="12 channels cannot be normalised in 5 groups"):
        GroupNorm(5, jnp.float32).init(jax.random.key(0), jnp.zeros((1, 2, 2, 12)))


def test_parameters_are_float32_whatever_the_default_is():
    with jax.enable_x64(True):
        params = GroupNorm(3, jnp.float32).init(jax.random.key(0), jnp.zeros((1, 2, 2, 12), jnp.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_mean_of_a_hundred_deviations_costs_less_than_flax_loses():
    x = 100 + jax.random.normal(jax.random.key(0), (2, 16, 16, 8))
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    with jax.enable_x64(True):
        exact = np.asarray(ours(2, jnp.float64, x.astype(jnp.float64), params, None, None))
    lost = np.max(np.abs(np.asarray(ours(2, jnp.float32, x, params, None, None)) - exact))
    flax = nn.GroupNorm(2, dtype=jnp.float32).apply({"params": params}, x)
    assert lost < min(0.02, float(np.max(np.abs(np.asarray(flax) - exact))))
