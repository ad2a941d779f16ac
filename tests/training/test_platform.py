"""Another library for convolutions gives the same numbers; a misspelt one is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.unet import UNet
from diffusion_privacy.training import convolutions
from diffusion_privacy.training.platform import CONVOLUTIONS, compiler_options
from diffusion_privacy.training.state import TrainConfig


@pytest.mark.parametrize("conv", [convolutions.plain, convolutions.explicit])
def test_libraries_agree_on_a_convolution_and_its_gradients(conv):
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 5))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 5, 4))

    def loss(x, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel)))

    found = [
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), compiler_options=compiler_options(name))(x, kernel)
        for name in CONVOLUTIONS
    ]
    for a, b in zip(*(jax.tree.leaves(f) for f in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


SHAPES = [(3, 1, (5, 4)), (3, 2, (6, 4)), (3, 2, (5, 7)), (1, 1, (3, 3)), (1, 2, (5, 4))]


@pytest.mark.parametrize(("side", "stride", "grid"), SHAPES)
def test_explicit_gradients_are_the_plain_ones(side, stride, grid):
    def gradients(conv):
        return jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k, stride))), (0, 1)))(x, kernel)

    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, *grid, 3), float)
        kernel = jax.random.normal(jax.random.key(1), (side, side, 3, 4), float)
        for a, b in zip(gradients(convolutions.plain), gradients(convolutions.explicit), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="gradients are written out for CPUs alone")
def test_networks_change_their_gradients_in_a_loop_alone():
    # Two convolutions took 45 times as long where the gradient in a loop is the one that autodiff writes.
    net = UNet(channels=4, channel_mult=(1, 2), blocks_per_level=1)
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.full(2, 0.5)
    params = jax.tree.map(lambda p: p + 0.02, jax.jit(net.init)(jax.random.key(1), x, t))

    def gradient(params):
        return jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, x, t) ** 2)))(params)

    outside = gradient(params)
    assert "custom_vjp" not in str(jax.make_jaxpr(net.apply)(params, x, t))
    with convolutions.in_loop():
        assert str(jax.make_jaxpr(net.apply)(params, x, t)).count("custom_vjp_call") >= 8
        inside = gradient(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), inside, outside)
    jax.eval_shape(lambda x: jax.jvp(lambda x: net.apply(params, x, t), (x,), (x,)), x)


def test_an_unknown_library_is_named():
    with pytest.raises(InputError, match=r"training\.convolutions must be one of default, eigen"):
        TrainConfig(steps=1, batch_size=1, convolutions="fast")
