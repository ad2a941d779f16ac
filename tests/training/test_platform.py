"""Another library for convolutions gives the same numbers; a misspelt one is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.networks.unet import UNet
from diffusion_privacy.training import convolutions
from diffusion_privacy.training.platform import CONVOLUTIONS, compiler_options


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


ON_A_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="convolutions are written out for CPUs alone")


def small_unet(channels):
    net = UNet(channels=channels, channel_mult=(1, 2), blocks_per_level=1)
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.full(2, 0.5)
    return net, jax.tree.map(lambda p: p + 0.02, jax.jit(net.init)(jax.random.key(1), x, t)), x, t


@ON_A_CPU
def test_networks_change_their_gradients_in_a_loop_alone():
    # Two convolutions took 45 times as long where the gradient in a loop is the one that autodiff writes.
    net, params, x, t = small_unet(4)

    def gradient(params):
        return jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, x, t) ** 2)))(params)

    outside = gradient(params)
    with convolutions.for_training():
        assert "custom_vjp" not in str(jax.make_jaxpr(net.apply)(params, x, t))
    with convolutions.for_training(in_loop=True):
        assert str(jax.make_jaxpr(net.apply)(params, x, t)).count("custom_vjp_call") >= 8
        inside = gradient(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), inside, outside)


def convolutions_in(net, params, x, t):
    return str(jax.make_jaxpr(net.apply)(params, x, t)).count("conv_general_dilated[")


@ON_A_CPU
def test_wide_networks_are_evaluated_by_tiles_and_trained_without():
    net, params, x, t = small_unet(40)
    by_tiles = convolutions_in(net, params, x, t)
    out, back = jax.jit(lambda x: jax.jvp(lambda x: net.apply(params, x, t), (x,), (jnp.cos(x),)))(x)
    with convolutions.for_training():
        plain = convolutions_in(net, params, x, t)
        out_plain, back_plain = jax.jit(lambda x: jax.jvp(lambda x: net.apply(params, x, t), (x,), (jnp.cos(x),)))(x)
    # Two in each of eight blocks, and the one that doubles; stem, head, the one that halves and 1x1 stay as they are.
    assert plain - by_tiles == 17
    np.testing.assert_allclose(out, out_plain, atol=1e-5 * np.std(out_plain))
    np.testing.assert_allclose(back, back_plain, atol=1e-5 * np.std(back_plain))
    assert convolutions_in(*small_unet(16)) == plain
