"""Networks by name; MLP, classifier and embedder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.weights import apply, random_params

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.build import NETWORKS, build
from diffusion_privacy.networks.layers import group_count, lecun_normal


def test_every_network_is_built_by_name():
    assert set(NETWORKS) == {"unet", "mlp", "classifier", "embedder", "autoencoder"}
    assert build("unet", channel_mult=[1, 2]).channel_mult == (1, 2)
    assert build("classifier", num_outputs=4).num_outputs == 4


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("unett", {}, "one of unet, mlp"),
        ("unet", {"chanels": 3}, "network.chanels .* channels, channel_mult"),
        ("mlp", {"parent": None}, "network.parent"),
        ("classifier", {}, "network.num_outputs must be given"),
        ("mlp", {"dtype": "float16"}, "network.dtype"),
        ("mlp", {"hidden": "256"}, "network.hidden must be a whole number, got '256'"),
        ("mlp", {"hidden": 256.0}, "network.hidden must be a whole number"),
        ("mlp", {"depth": True}, "network.depth must be a whole number"),
        ("mlp", {"dropout": None}, "network.dropout must be a number"),
        ("mlp", {"skip": 1}, "network.skip must be True or False"),
        ("unet", {"channel_mult": 2}, "network.channel_mult must be a list"),
        ("unet", {"dtype": 32}, "network.dtype must be a text"),
    ],
)
def test_mistakes_name_the_field_in_one_line(name, fields, message):
    with pytest.raises(InputError, match=message) as error:
        build(name, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 4, 2)])
def test_mlp_keeps_the_shape_and_treats_rows_alone(shape):
    net = build("mlp", hidden=16, depth=1, num_classes=2, dropout=0.3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    t, label = jnp.array([0.0, 0.4, 1.0]), jnp.array([0, 1, 2])
    params = random_params(net, x, t, label)
    out = apply(net)(params, x, t, label)
    assert out.shape == shape
    np.testing.assert_allclose(apply(net)(params, x[1:2], t[1:2], label[1:2])[0], out[1], rtol=1e-5, atol=1e-5)
    assert jnp.abs(apply(net)(params, x, t)[0] - out[0]).max() > 1e-4
    keys = jax.random.split(jax.random.key(2), 3)
    assert jnp.abs(apply(net)(params, x, t, label, keys) - out).max() > 1e-4


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_a_narrow_mlp_with_a_skip_tells_noise_of_more_dimensions_than_it_is_wide():
    """Noise of 32 dimensions through 4 units: without the skip the best linear answer leaves 28/32 of it."""
    x = jax.random.normal(jax.random.key(0), (256, 32))
    t = jnp.ones(256)

    def reached(skip):
        net = build("mlp", hidden=4, depth=1, skip=skip)
        params = net.init(jax.random.key(1), x, t)

        def loss(params):
            return jnp.mean((net.apply(params, x, t) - x) ** 2)

        optimizer = optax.adam(0.05)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=200))((params, optimizer.init(params)))
        return float(loss(params))

    assert reached(True) < 0.05
    assert reached(False) > 0.7


def test_mlp_starts_at_zero():
    net = build("mlp", hidden=8, depth=1)
    x, t = jnp.ones((2, 3)), jnp.ones(2)
    assert jnp.all(apply(net)(jax.jit(net.init)(jax.random.key(0), x, t), x, t) == 0)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 28, 28, 3), (1, 33, 20, 2), (1, 128, 128, 1)])
def test_classifier_and_embedder_fit_any_size(shape):
    for net, width in ((build("classifier", num_outputs=3), 3), (build("embedder", dim=5), 5)):
        out, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros(shape))
        assert out.shape == (shape[0], width)
        assert out.dtype == jnp.float32


def test_embeddings_are_unit_vectors_and_rows_stand_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), jnp.float32)
    net = build("embedder", dim=5, channels=8)
    params = random_params(net, x)
    out = apply(net)(params, x)
    np.testing.assert_allclose(jnp.linalg.norm(out, axis=1), 1.0, rtol=1e-5)
    assert jnp.abs(out[0] - out[1]).max() > 1e-3
    np.testing.assert_allclose(apply(net)(params, x.at[1:].set(5.0))[0], out[0], rtol=1e-4, atol=1e-5)


def test_embedding_gradient_is_finite_where_direction_is_undefined():
    net = build("embedder", dim=3, channels=4)
    x = jnp.zeros((1, 4, 4, 1))
    params = jax.tree.map(jnp.zeros_like, random_params(net, x))
    grad = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, x))))(params)
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grad))


def test_classifier_refuses_vectors():
    with pytest.raises(InputError, match="B, H, W, C"):
        build("classifier", num_outputs=2).init(jax.random.key(0), jnp.zeros((2, 5)))


@pytest.mark.parametrize("shape", [(40, 30), (2, 2, 3, 4)])
def test_flat_draws_give_the_initial_weights_of_flax(shape):
    key = jax.random.key(5)
    want = jax.nn.initializers.lecun_normal()(key, shape)
    np.testing.assert_allclose(lecun_normal(key, shape), want, rtol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (6, 1), (8, 2), (18, 2), (32, 8), (48, 4), (128, 32)])
def test_groups_divide_the_channels_and_hold_more_than_one(channels, groups):
    assert group_count(channels) == groups
    assert channels % groups == 0


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        ("mlp", {"hidden": 0}, "hidden >= 1 and depth >= 0, got 0 and 3"),
        ("mlp", {"depth": -1}, "got 256 and -1"),
        ("unet", {"channels": 0}, "at least 1 .* got 0"),
        ("unet", {"channel_mult": ()}, r"at least 1 .* \(\)"),
        ("unet", {"blocks_per_level": 0}, "at least 1"),
        ("unet", {"norm_groups": -1}, "at least 0"),
    ],
)
def test_networks_without_width_are_refused(name, fields, named):
    with pytest.raises(InputError, match=named):
        build(name, **fields).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))
