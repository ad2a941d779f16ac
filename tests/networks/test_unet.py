"""U-Net: rows are independent, options change speed and not results, bad shapes are refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.unet import UNet

FIELDS = {"channels": 8, "channel_mult": (1, 2), "blocks_per_level": 1, "attention_levels": (1,), "head_channels": 8}


def noisy(params, seed=1):
    """Parameters away from their zero start, so that every path of the network matters."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def inputs():
    x = jax.random.normal(jax.random.key(0), (3, 8, 12, 2))
    t = jnp.array([0.1, 0.5, 0.9])
    label = jnp.array([0, 2, 3])
    return x, t, label


@pytest.fixture(scope="module")
def model(inputs):
    net = UNet(**FIELDS, num_classes=3)
    start = net.init(jax.random.key(1), *inputs)
    return net, start, noisy(start)


def test_output_starts_at_zero(model, inputs):
    net, start, params = model
    assert jnp.all(net.apply(start, *inputs) == 0)
    assert jnp.std(net.apply(params, *inputs)) > 0.1


def test_rows_do_not_depend_on_the_batch_around_them(model, inputs):
    net, _, params = model
    together = net.apply(params, *inputs)
    for i in range(3):
        alone = net.apply(params, *(v[i : i + 1] for v in inputs))
        np.testing.assert_allclose(alone[0], together[i], rtol=2e-5, atol=2e-5)
    x, t, label = inputs
    other = net.apply(params, x.at[1:].set(99.0), t, label)
    np.testing.assert_allclose(other[0], together[0], rtol=2e-5, atol=2e-5)


def test_time_and_class_matter_and_null_class_means_none(model, inputs):
    net, _, params = model
    x, t, label = inputs
    out = net.apply(params, x, t, label)
    assert jnp.all(jnp.abs(net.apply(params, x, t + 0.05, label) - out).max((1, 2, 3)) > 1e-3)
    unlabelled = net.apply(params, x, t)
    np.testing.assert_array_equal(unlabelled[2], out[2])
    assert jnp.abs(unlabelled[0] - out[0]).max() > 1e-3


def test_remat_changes_neither_values_nor_gradients(model, inputs):
    net, _, params = model
    remat = UNet(**FIELDS, num_classes=3, remat=True)

    def value(n):
        return jax.value_and_grad(lambda p: jnp.sum(n.apply(p, *inputs) ** 2))(params)

    (a, ga), (b, gb) = value(net), value(remat)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-3, atol=1e-3), ga, gb)


def test_bfloat16_computes_short_and_keeps_float32_outside(inputs):
    short = UNet(**FIELDS, num_classes=3, dtype="bfloat16")
    start = short.init(jax.random.key(1), *inputs)
    assert {p.dtype for p in jax.tree.leaves(start)} == {jnp.dtype("float32")}
    params = noisy(start)
    got, want = short.apply(params, *inputs), UNet(**FIELDS, num_classes=3).apply(params, *inputs)
    assert got.dtype == jnp.float32
    gap = jnp.sqrt(jnp.mean((got - want) ** 2) / jnp.mean(want**2))
    assert 1e-4 < gap < 0.1


def test_dropout_needs_keys_and_follows_them_not_the_batch(inputs):
    net = UNet(**FIELDS, num_classes=3, dropout=0.5)
    params = noisy(net.init(jax.random.key(1), *inputs))
    keys = jax.random.split(jax.random.key(3), 3)
    still = net.apply(params, *inputs)
    np.testing.assert_array_equal(still, net.apply(params, *inputs))
    dropped = net.apply(params, *inputs, keys)
    assert jnp.abs(dropped - still).max() > 1e-2
    alone = net.apply(params, *(v[1:2] for v in inputs), keys[1:2])
    np.testing.assert_allclose(alone[0], dropped[1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 8, 7, 1), (1, 9, 8, 1), (4, 8)])
def test_sizes_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(InputError, match="divisible by 2"):
        UNet(**FIELDS).init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))


def test_wrong_levels_and_unwanted_labels_are_refused():
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    with pytest.raises(InputError, match="attention_levels"):
        UNet(**{**FIELDS, "attention_levels": (2,)}).init(jax.random.key(0), x, t)
    with pytest.raises(InputError, match="num_classes"):
        UNet(**FIELDS).init(jax.random.key(0), x, t, jnp.zeros(1, int))
