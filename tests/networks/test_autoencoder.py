"""Shapes, refusals, and that a record's loss and gradient are its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.build import build
from diffusion_privacy.tasks import AutoencoderTask

SMALL = {"channels": 8, "max_channels": 8, "latent_channels": 2}


@pytest.mark.parametrize(("halvings", "channels", "size"), [(0, 1, (5, 3)), (1, 3, (6, 10)), (3, 1, (8, 24))])
def test_every_size_that_the_factor_divides_comes_back(halvings, channels, size):
    network = build("autoencoder", halvings=halvings, image_channels=channels, **SMALL)
    x = jnp.zeros((2, *size, channels))
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    mean, log_variance = jax.eval_shape(lambda p: network.apply(p, x, method="encode"), params)
    assert mean.shape == log_variance.shape == (2, size[0] >> halvings, size[1] >> halvings, 2)
    z = jnp.zeros(mean.shape)
    assert jax.eval_shape(lambda p: network.apply(p, z, method="decode"), params).shape == x.shape


@pytest.mark.parametrize("shape", [(1, 12, 8, 1), (1, 8, 4, 1), (1, 8, 8, 3), (8, 8, 1)])
def test_other_images_are_refused(shape):
    network = build("autoencoder", halvings=3, **SMALL)
    with pytest.raises(InputError, match=r"\[B, H, W, 1\] with H and W divisible by 8"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))


def test_fields_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"autoencoder\.halvings: expected 0 or more, got -1"):
        jax.eval_shape(build("autoencoder", halvings=-1).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(InputError, match=r"network\.depth is not a field"):
        build("autoencoder", depth=3)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_loss_and_gradient_of_a_record_do_not_depend_on_its_batch():
    task = AutoencoderTask(build("autoencoder", halvings=1, **SMALL), std=0.2, kl_weight=0.7)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 4, 4, 1)).astype(np.float32)
    batch = {"image": images, "position": np.array([5, 7, 2])}
    params, key = task.init(jax.random.key(0), batch), jax.random.key(1)

    @jax.jit
    def third(params, batch):
        return jax.value_and_grad(lambda p: task.loss(p, batch, key)[0][2])(params)

    def among(others, positions):
        return third(params, {"image": np.concatenate([others, images[2:]]), "position": np.array(positions)})

    loss, gradient = third(params, batch)
    same, same_gradient = among(rng.uniform(-1, 1, (2, 4, 4, 1)).astype(np.float32), [0, 9, 2])
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), same_gradient, gradient)
    assert sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient)) > 0
    assert abs(float(among(images[:2], [5, 7, 3])[0]) - float(loss)) > 1e-4
