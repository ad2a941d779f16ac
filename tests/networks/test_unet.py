"""U-Net: rows are independent, options change cost and not results, bad shapes are refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.weights import apply, random_params

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.unet import UNet

FIELDS = {"channels": 8, "channel_mult": (1, 2), "blocks_per_level": 1, "attention_levels": (1,), "head_channels": 8}
TINY = {"channels": 4, "channel_mult": (1,), "blocks_per_level": 1, "attention_levels": (0,)}


@pytest.fixture(scope="module")
def inputs():
    x = jax.random.normal(jax.random.key(0), (3, 4 * 2 * 4 * 2)).reshape(3, 4, 8, 2)
    return x, jnp.array([0.1, 0.5, 0.9]), jnp.array([0, 2, 3])


@pytest.fixture(scope="module")
def model(inputs):
    net = UNet(**FIELDS, num_classes=3)
    return net, random_params(net, *inputs)


def test_output_starts_at_zero(inputs):
    x, t, _ = inputs
    start = jax.jit(UNet(**TINY).init)(jax.random.key(1), x, t)
    assert jnp.all(apply(UNet(**TINY))(start, x, t) == 0)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_rows_do_not_depend_on_the_batch_around_them(model, inputs):
    net, params = model
    together = apply(net)(params, *inputs)
    assert jnp.std(together) > 0.1
    alone = apply(net)(params, *(v[1:2] for v in inputs))
    np.testing.assert_allclose(alone[0], together[1], rtol=2e-5, atol=2e-5)
    turned = apply(net)(params, *(v[jnp.array([2, 0, 1])] for v in inputs))
    np.testing.assert_allclose(turned, together[jnp.array([2, 0, 1])], rtol=2e-5, atol=2e-5)
    x, t, label = inputs
    other = apply(net)(params, x.at[1:].set(99.0), t.at[1:].set(0.3), label)
    np.testing.assert_allclose(other[0], together[0], rtol=2e-5, atol=2e-5)


def test_time_and_class_matter_and_null_class_means_none(model, inputs):
    net, params = model
    x, t, label = inputs
    out = apply(net)(params, x, t, label)
    assert jnp.all(jnp.abs(apply(net)(params, x, t + 0.05, label) - out).max((1, 2, 3)) > 1e-3)
    unlabelled = apply(net)(params, x, t)
    np.testing.assert_allclose(unlabelled[2], out[2], rtol=1e-5, atol=1e-5)
    assert jnp.abs(unlabelled[0] - out[0]).max() > 1e-3


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients(inputs):
    x, t, _ = inputs
    params = random_params(UNet(**TINY), x, t)

    def value(net):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(net.apply(p, x, t) ** 2)))(params)

    (a, ga), (b, gb) = value(UNet(**TINY)), value(UNet(**TINY, remat=True))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-3, atol=1e-3), ga, gb)


def test_bfloat16_computes_short_and_keeps_float32_outside(inputs):
    x, t, _ = inputs
    short = UNet(**TINY, dtype="bfloat16")
    params = random_params(short, x, t)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    got, want = apply(short)(params, x, t), apply(UNet(**TINY))(params, x, t)
    assert got.dtype == jnp.float32
    gap = jnp.sqrt(jnp.mean((got - want) ** 2) / jnp.mean(want**2))
    assert 1e-4 < gap < 0.1


def test_dropout_needs_keys_and_follows_them_not_the_batch(inputs):
    x, t, _ = inputs
    net = UNet(**TINY, dropout=0.5)
    params = random_params(net, x, t)
    keys = jax.random.split(jax.random.key(3), 3)
    still = apply(net)(params, x, t)
    np.testing.assert_allclose(still, apply(UNet(**TINY))(params, x, t), rtol=1e-5, atol=1e-5)
    dropped = apply(net)(params, x, t, None, keys)
    assert jnp.abs(dropped - still).max() > 1e-2
    turn = jnp.array([2, 0, 1])
    turned = apply(net)(params, x[turn], t[turn], None, keys[turn])
    np.testing.assert_allclose(turned, dropped[turn], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 8, 7, 1), (1, 9, 8, 1), (4, 8)])
def test_sizes_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(InputError, match="divisible by 2"):
        jax.eval_shape(UNet(**FIELDS).init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 28, 28, 3), (1, 20, 12, 5)])
def test_any_divisible_size_fits(shape):
    net = UNet(channels=8, channel_mult=(1, 2, 2), attention_levels=(2,))
    out, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))
    assert out.shape == shape


def test_wrong_levels_and_unwanted_labels_are_refused():
    key, x, t = jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    with pytest.raises(InputError, match="attention_levels"):
        jax.eval_shape(UNet(**{**FIELDS, "attention_levels": (2,)}).init, key, x, t)
    with pytest.raises(InputError, match="num_classes"):
        jax.eval_shape(UNet(**FIELDS).init, key, x, t, jnp.zeros(1, int))
