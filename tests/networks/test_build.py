"""Networks by name; MLP, classifier and embedder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.build import NETWORKS, build


def test_every_network_is_built_by_name():
    assert set(NETWORKS) == {"unet", "mlp", "classifier", "embedder"}
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
    ],
)
def test_mistakes_name_the_field_in_one_line(name, fields, message):
    with pytest.raises(InputError, match=message) as error:
        build(name, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 4, 2)])
def test_mlp_keeps_the_shape_and_treats_rows_alone(shape):
    net = build("mlp", hidden=16, depth=2, num_classes=2, dropout=0.3)
    x = jax.random.normal(jax.random.key(0), shape)
    t, label = jnp.array([0.0, 0.4, 1.0]), jnp.array([0, 1, 2])
    start = net.init(jax.random.key(1), x, t, label)
    assert jnp.all(net.apply(start, x, t, label) == 0)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), start)
    out = net.apply(params, x, t, label)
    assert out.shape == shape
    np.testing.assert_allclose(net.apply(params, x[1:2], t[1:2], label[1:2])[0], out[1], rtol=1e-5, atol=1e-5)
    assert jnp.abs(net.apply(params, x, t)[0] - out[0]).max() > 1e-4
    keys = jax.random.split(jax.random.key(2), 3)
    assert jnp.abs(net.apply(params, x, t, label, keys) - out).max() > 1e-4


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 28, 28, 3), (2, 33, 20, 1)])
def test_classifier_and_embedder_fit_any_size(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    classifier = build("classifier", num_outputs=3, channels=8)
    params = classifier.init(jax.random.key(1), x)
    assert jnp.all(classifier.apply(params, x) == 0)
    assert classifier.apply(params, x).shape == (2, 3)
    embedder = build("embedder", dim=5, channels=8)
    params = embedder.init(jax.random.key(1), x)
    out = embedder.apply(params, x)
    np.testing.assert_allclose(jnp.linalg.norm(out, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(embedder.apply(params, x[:1])[0], out[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_classifier_fits_128_pixels():
    x = jnp.zeros((1, 128, 128, 1))
    classifier = build("classifier", num_outputs=2, channels=8)
    assert classifier.apply(classifier.init(jax.random.key(1), x), x).shape == (1, 2)


def test_embedding_gradient_is_finite_where_direction_is_undefined():
    embedder = build("embedder", dim=3, channels=4)
    x = jnp.zeros((1, 8, 8, 1))
    params = jax.tree.map(jnp.zeros_like, embedder.init(jax.random.key(0), x))
    grad = jax.grad(lambda p: jnp.sum(embedder.apply(p, x)))(params)
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grad))


def test_classifier_refuses_vectors():
    with pytest.raises(InputError, match="B, H, W, C"):
        build("classifier", num_outputs=2).init(jax.random.key(0), jnp.zeros((2, 5)))
