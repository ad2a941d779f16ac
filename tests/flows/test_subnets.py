"""The explicit convolution gradient against autodiff, and the subnets' start."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_table import fast_jit

from diffusion_privacy.flows import cpu_convolutions, products
from diffusion_privacy.flows.subnets import ConvNet, DenseNet, GlowNet
from diffusion_privacy.training import convolutions, winograd

X = jax.random.normal(jax.random.key(0), (3, 5, 4, 2))


def gradients(conv, x, kernel):
    return fast_jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w))), (0, 1)))(x, kernel)


@pytest.mark.parametrize("side", [1, 3, 5])
def test_explicit_gradient_is_the_plain_one(side):
    kernel = jax.random.normal(jax.random.key(1), (side, side, 2, 7))
    np.testing.assert_allclose(convolutions.explicit(X, kernel), convolutions.plain(X, kernel), atol=1e-5)
    for a, b in zip(gradients(convolutions.explicit, X, kernel), gradients(convolutions.plain, X, kernel), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_explicit_gradient_per_example():
    # DP-SGD's form: one gradient a record.
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 4))
    per_example = [
        jax.vmap(lambda x, conv=conv: gradients(conv, x[None], kernel)[1])(X)
        for conv in (convolutions.explicit, convolutions.plain)
    ]
    np.testing.assert_allclose(per_example[0], per_example[1], atol=1e-4)
    np.testing.assert_allclose(per_example[0].sum(0), gradients(convolutions.plain, X, kernel)[1], atol=1e-3)


def test_vmapped_records_become_one_batched_convolution():
    net = ConvNet(4)
    params = net.init(jax.random.key(0), (5, 4, 2), 0, 3)
    text = str(jax.make_jaxpr(jax.vmap(lambda x: net.apply(params, x, None)))(X))
    assert text.count("conv_general_dilated[") == 3
    assert "feature_group_count=1" in text
    assert "feature_group_count=3" not in text


BY_SIZE = [
    (cpu_convolutions.from_thin, 3, 40),
    (cpu_convolutions.to_thin, 40, 3),
    (convolutions.tiled, 5, 6),
]


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize(("conv", "inputs", "outputs"), BY_SIZE)
@pytest.mark.parametrize("shape", [(2, 4, 6), (9, 3, 5), (5, 33, 37), (1, 1, 2)])
def test_convolutions_of_a_cpu_are_the_plain_one_with_its_gradients(conv, inputs, outputs, shape):
    # Odd sides, batches of more than one part with a filled one, and sides without an inner pixel.
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (*shape, inputs), float)
        kernel = jax.random.normal(jax.random.key(1), (3, 3, inputs, outputs), float)
        np.testing.assert_allclose(conv(x, kernel), convolutions.plain(x, kernel), atol=1e-12)
        for a, b in zip(gradients(conv, x, kernel), gradients(convolutions.plain, x, kernel), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)
        one = jax.vmap(lambda x: gradients(conv, x[None], kernel)[1])(x)
        np.testing.assert_allclose(one.sum(0), gradients(convolutions.plain, x, kernel)[1], atol=1e-11)


@pytest.mark.parametrize(
    ("batch", "side", "channels", "parts"),
    [(10, 4, 2, (2, 5)), (8, 32, 96, (1, 8)), (8, 32, 128, (2, 4)), (3, 64, 1024, (3, 1))],
)
def test_parts_of_a_batch_of_tiles_are_even_and_small_enough(batch, side, channels, parts):
    # Filled up to whole parts of the most there may be, 10 images would cost as much as 16.
    assert winograd._cut(jnp.zeros((batch, side, side, 1)), channels).shape[:2] == parts


def test_float32_loses_little_by_tiles():
    x = jax.random.normal(jax.random.key(0), (4, 14, 14, 128))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 128, 128))
    with jax.enable_x64(True):
        exact = np.asarray(convolutions.plain(x.astype(float), kernel.astype(float)))
    off = (convolutions.tiled(x, kernel) - exact) / np.std(exact)
    # Plain sums: 5e-7 and 5e-6; tiles that interpolate at 0, ±1, ±2 and infinity: 2.2e-6 and 4e-5.
    assert np.std(off) < 1.5e-6
    assert np.max(np.abs(off)) < 2e-5


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_one_record_that_is_not_finite_spoils_no_other():
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2)).at[0].set(jnp.nan)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 5))
    expected = convolutions.plain(x, kernel)
    np.testing.assert_allclose(winograd.convolve(x, kernel), expected, atol=1e-5)
    one = jax.vmap(lambda x: winograd.convolve(x[None], kernel)[0])
    np.testing.assert_allclose(one(x), expected, atol=1e-5)
    # One product of all records' tiles with one changed kernel.
    assert "f32[36,2,5]" in str(jax.make_jaxpr(one)(x))
    assert "f32[3,36,2,5]" not in str(jax.make_jaxpr(one)(x))


def test_changed_kernels_are_not_all_there_at_once():
    def chain(x, kernels):
        for kernel in kernels:
            x = winograd.convolve(x, kernel)
        return x

    layers, changed = 8, 36 * 64 * 64 * 4
    args = jnp.zeros((1, 4, 4, 64)), [jnp.zeros((3, 3, 64, 64))] * layers
    # Without the tie to the images all of them are made first.
    assert jax.jit(chain).lower(*args).compile().memory_analysis().temp_size_in_bytes < 3 * changed


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("cond_dim", [0, 2])
@pytest.mark.parametrize("grid", [(5, 4), (1, 2)])
def test_conv_net_by_products_is_the_plain_one(grid, cond_dim):
    plain, fast = ConvNet(40), ConvNet(40, convolutions="products")
    params = jax.tree.map(lambda p: p + 0.1, plain.init(jax.random.key(0), (*grid, 2), cond_dim, 3))
    x = jax.random.normal(jax.random.key(2), (3, *grid, 2))
    cond = jax.random.normal(jax.random.key(3), (3, cond_dim)) if cond_dim else None
    np.testing.assert_allclose(fast.apply(params, x, cond), plain.apply(params, x, cond), rtol=1e-5, atol=1e-4)

    def loss(net, params):
        return jnp.mean(jnp.sin(net.apply(params, x, cond) / 30))

    ours, theirs = (fast_jit(jax.grad(lambda p, n=n: loss(n, p)))(params) for n in (fast, plain))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


PRODUCTS = [(3, products.conv_from_thin), (3, products.conv_to_thin), (1, products.conv_point)]


def batch_first(conv, precision):
    return lambda x, kernel: conv(x.transpose(3, 1, 2, 0), kernel, precision).transpose(3, 1, 2, 0)


@pytest.mark.parametrize(("side", "conv"), PRODUCTS)
def test_matrix_products_are_the_plain_convolution_with_its_gradients(side, conv):
    with jax.enable_x64(True):
        x, kernel = X.astype(float), jax.random.normal(jax.random.key(1), (side, side, 2, 7))
        ours = batch_first(conv, "float32")
        np.testing.assert_allclose(ours(x, kernel), convolutions.plain(x, kernel), atol=1e-12)
        for a, b in zip(gradients(ours, x, kernel), gradients(convolutions.plain, x, kernel), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.mark.parametrize(("side", "conv"), PRODUCTS)
def test_bfloat16_rounds_operands_and_not_sums(side, conv):
    # With operands that bfloat16 holds, nothing is lost, in sums of some thousand terms either.
    x = jnp.round(8 * X) / 8
    kernel = jnp.round(8 * jax.random.normal(jax.random.key(1), (side, side, 2, 7))) / 8
    np.testing.assert_allclose(batch_first(conv, "bfloat16")(x, kernel), convolutions.plain(x, kernel), atol=1e-5)
    g = jax.grad(lambda k: jnp.sum(batch_first(conv, "bfloat16")(x, k)))(kernel)
    np.testing.assert_allclose(g, jax.grad(lambda k: jnp.sum(convolutions.plain(x, k)))(kernel), atol=1e-4)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_glow_net_by_products_is_the_plain_one():
    plain, fast = GlowNet(5), GlowNet(5, matrix_products=True)
    params = jax.tree.map(lambda p: p + 0.1, plain.init(jax.random.key(0), (5, 4, 2), 2, 3))
    cond = jax.random.normal(jax.random.key(2), (3, 2))
    np.testing.assert_allclose(fast.apply(params, X, cond), plain.apply(params, X, cond), atol=1e-5)
    one = jax.vmap(lambda x, c: fast.apply(params, x, c))(X, cond)
    np.testing.assert_allclose(one, plain.apply(params, X, cond), atol=1e-5)
    rounded = [GlowNet(5, "bfloat16", matrix_products=by).apply(params, X, cond) for by in (False, True)]
    for out in rounded:
        np.testing.assert_allclose(out, plain.apply(params, X, cond), rtol=0.05, atol=0.05)
        assert bool(jnp.any(jnp.abs(out - plain.apply(params, X, cond)) > 1e-4)), "nothing was rounded"


SUBNETS = [
    (ConvNet(4), (5, 4, 2)),
    (DenseNet(4), (6,)),
    (GlowNet(4), (5, 4, 2)),
    (GlowNet(4, "bfloat16", True), (5, 4, 2)),
]


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize(("net", "shape"), SUBNETS)
def test_subnets_start_at_zero_and_reach_every_parameter(net, shape):
    params = fast_jit(lambda key: net.init(key, shape, 2, 3))(jax.random.key(0))
    x, cond = jax.random.normal(jax.random.key(1), (2, *shape)), jnp.ones((2, 2))
    assert not jnp.any(net.apply(params, x, cond))
    moved = jax.tree.map(lambda p: p + 0.1, params)
    grad = fast_jit(jax.grad(lambda p: jnp.sum(net.apply(p, x, cond) ** 2)))(moved)
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grad))
