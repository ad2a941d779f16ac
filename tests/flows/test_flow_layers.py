"""What is special about single bijections, beside the contract that `test_bijection` holds them all to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_table import IMAGE, TABLE, K, conv, dense, fast_jit, random_params, small_flow

from diffusion_privacy.flows.actnorm import ActNorm, ClassGaussian
from diffusion_privacy.flows.bijection import bind
from diffusion_privacy.flows.chain import Chain, Flatten, Split, Stack, latent_sizes
from diffusion_privacy.flows.coupling import Affine, Coupling, coupling
from diffusion_privacy.flows.mixing import Mixing, permutations
from diffusion_privacy.flows.spline import Spline
from diffusion_privacy.flows.squeeze import Squeeze
from diffusion_privacy.flows.subnets import ConvNet, DenseNet


@pytest.mark.parametrize(
    "name", ["gin-conv", "spline-dense", "lu", pytest.param("cinn-everything", marks=pytest.mark.slow)]
)
def test_a_batch_is_its_records(name):
    bijection = TABLE[name]()
    params = random_params(bijection)
    x = jax.random.normal(jax.random.key(5), (2, 3, *bijection.shape))
    cond = jax.random.normal(jax.random.key(6), (2, 3, K))
    alone = fast_jit(jax.vmap(jax.vmap(bijection.forward, (None, 0, 0)), (None, 0, 0)))(params, x, cond)
    together = fast_jit(bijection.forward)(params, x, cond)
    np.testing.assert_allclose(together[0], alone[0], atol=2e-5)
    np.testing.assert_allclose(together[1], alone[1], atol=2e-5)
    assert together[1].shape == (2, 3)
    back, logdet = fast_jit(bijection.inverse)(params, together[0], cond)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(logdet, -together[1], atol=1e-4)


@pytest.mark.parametrize("name", ["glow-conv", "rnvp-dense", "spline-dense", "class-gaussian"])
def test_the_condition_matters(name):
    bijection = TABLE[name]()
    flow = bind(bijection, random_params(bijection))
    x = jax.random.normal(jax.random.key(5), bijection.shape)
    one, other = jnp.eye(K)[0], jnp.eye(K)[1]
    forward, inverse = fast_jit(flow.forward), fast_jit(flow.inverse)
    z, _ = forward(x, one)
    assert jnp.max(jnp.abs(z - forward(x, other)[0])) > 1e-2
    assert jnp.max(jnp.abs(x - inverse(z, other)[0])) > 1e-2


@pytest.mark.parametrize("name", ["glow-conv", "class-gaussian"])
def test_a_missing_condition_is_an_error(name):
    bijection = TABLE[name]()
    with pytest.raises(ValueError, match="condition"):
        bijection.forward(bijection.init(jax.random.key(0)), jnp.zeros(bijection.shape), None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glow-conv", "rnvp-dense", "gin-dense", "spline-dense", "lu", "orthogonal", "flow"])
def test_starts_as_a_permutation_of_its_input(name):
    # Zero-initialised heads: every learned layer is the identity at the start. Squeezes other than Haar only reorder.
    full = {"splits": (True,), "mixing": "lu", "actnorm": True, "class_latents": True, "scan": True}
    bijection = small_flow(**full) if name == "flow" else TABLE[name]()
    x = jax.random.normal(jax.random.key(5), bijection.shape)
    z, logdet = fast_jit(bijection.forward)(fast_jit(bijection.init)(jax.random.key(0)), x, jnp.ones(K))
    np.testing.assert_allclose(np.sort(z.ravel()), np.sort(x.ravel()), atol=1e-5)
    np.testing.assert_allclose(logdet, 0.0, atol=1e-4)


def test_haar_is_orthonormal_and_its_first_band_is_the_mean():
    squeeze = Squeeze((4, 4, 2), "haar")
    jacobian = jax.jacrev(lambda v: squeeze.forward({}, v, None)[0])(jnp.zeros((4, 4, 2))).reshape(32, 32)
    np.testing.assert_allclose(jacobian @ jacobian.T, np.eye(32), atol=1e-6)
    x = jax.random.normal(jax.random.key(0), (4, 4, 2))
    bands, _ = squeeze.forward({}, x, None)
    means = x.reshape(2, 2, 2, 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(bands[..., :2], 2 * means, atol=1e-6)


def test_checkerboard_takes_pixels_in_reading_order():
    x = jnp.arange(4.0).reshape(2, 2, 1)
    np.testing.assert_array_equal(Squeeze((2, 2, 1)).forward({}, x, None)[0].ravel(), [0, 1, 2, 3])


@pytest.mark.parametrize("make", [lambda: conv("gin"), lambda: dense("gin"), lambda: Stack(dense("gin"), 3, 0)])
def test_gin_keeps_volume_exactly(make):
    bijection = make()
    params = random_params(bijection, scale=1.0)
    x = jax.random.normal(jax.random.key(5), bijection.shape)
    y, logdet = fast_jit(bijection.forward)(params, x, jnp.ones(K))
    assert logdet == 0.0
    assert jnp.max(jnp.abs(y - x)) > 0.1


def test_affine_stretches_by_at_most_the_clamp():
    raw = jnp.asarray([-1e6, 1e6, 0.0, 0.0])
    y, _ = Affine(0.8).forward(raw, jnp.ones(2), (2,))
    np.testing.assert_allclose(jnp.log(y), [-0.8, 0.8], atol=1e-5)


def test_mixing_logdet_and_orthogonality():
    mixing = Mixing((4,), "orthogonal")
    w = fast_jit(jax.jacrev(lambda v: mixing.forward(random_params(mixing, scale=2.0), v, None)[0]))(jnp.zeros(4))
    np.testing.assert_allclose(w @ w.T, np.eye(4), atol=1e-5)


def test_permutations_are_fixed_by_their_seed_and_differ_by_layer():
    a, inverse = permutations(3, 2, 50)
    np.testing.assert_array_equal(a, permutations(3, 2, 50)[0])
    np.testing.assert_array_equal(np.take_along_axis(a, inverse, 1), np.tile(np.arange(50), (2, 1)))
    assert (a[0] != a[1]).any()
    assert (a[0] != permutations(4, 2, 50)[0][0]).any()


def test_spline_is_the_identity_outside_and_continuous_at_the_bound():
    spline = Spline(5, 2.0)
    params = jax.random.normal(jax.random.key(0), (spline.num_parameters,))
    x = jnp.asarray([-9.0, -2.0, 2.0, 9.0])
    forward = fast_jit(lambda v: spline.forward(jnp.broadcast_to(params, (v.size, spline.num_parameters)), v))
    y, slope = forward(x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(slope, 0.0)
    edge = jnp.asarray([-2.0 + 1e-5, 2.0 - 1e-5, 0.0, 0.0])
    y, slope = forward(edge)
    np.testing.assert_allclose(y[:2], edge[:2], atol=1e-4)
    np.testing.assert_allclose(slope[:2], 0.0, atol=1e-2)


def test_spline_gradient_is_finite_far_outside():
    spline = Spline(5, 2.0)
    params = jax.random.normal(jax.random.key(0), (spline.num_parameters,))
    for method in (spline.forward, spline.inverse):
        gradient = fast_jit(jax.grad(lambda p, v, method=method: sum(method(p, v)), (0, 1)))(params, jnp.asarray(1e30))
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradient)


@pytest.mark.slow
def test_scan_is_the_unrolled_stack_gradients_included():
    # One parameter tree serves both forms; the scanned one has the explicit convolution gradient, as on a CPU.
    def loss(params, scan):
        layer = coupling("glow", IMAGE, ConvNet(4, convolutions="explicit" if scan else "plain"), K, 1.5, Spline())
        stack = Stack(layer, 3, 11, scan)
        z, logdet = stack.forward(params, x, cond)
        back, _ = stack.inverse(params, z, cond)
        return jnp.sum(z**2) - jnp.sum(logdet) + jnp.sum(jnp.sin(back)), z

    params = random_params(Stack(conv("glow"), 3, 11))
    x, cond = jax.random.normal(jax.random.key(1), (2, *IMAGE)), jax.random.normal(jax.random.key(2), (2, K))
    (_, plain), plain_grad = fast_jit(jax.value_and_grad(lambda p: loss(p, False), has_aux=True))(params)
    (_, scanned), scan_grad = fast_jit(jax.value_and_grad(lambda p: loss(p, True), has_aux=True))(params)
    np.testing.assert_allclose(scanned, plain, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), scan_grad, plain_grad)


def test_latents_run_from_coarse_to_fine():
    flow = small_flow(splits=(True,), dense_depth=0)
    assert latent_sizes(flow) == (8, 8)
    # At the start the flow only reorders: the last 8 latents are exactly the channels that left first.
    x = jnp.arange(16.0).reshape(4, 4, 1)
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), jax.eval_shape(flow.init, jax.random.key(0)))
    stage, _ = fast_jit(Chain(flow.layers[:2]).forward)(params, x, jnp.ones(K))
    z, _ = fast_jit(flow.forward)(params, x, jnp.ones(K))
    np.testing.assert_array_equal(z[8:], stage[..., 2:].ravel())
    assert latent_sizes(small_flow()) == (16,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Squeeze((3, 4, 1)),
        lambda: Squeeze((4, 4, 1), "hexagons"),
        lambda: Mixing((3,), "qr"),
        lambda: Chain(()),
        lambda: Chain((ActNorm((3,)), ActNorm((4,)))),
        lambda: Stack(Flatten(IMAGE), 2, 0),
        lambda: Split((2, 2, 4), Flatten((2, 2, 4))),
        lambda: Coupling((1,), DenseNet(4)),
        lambda: coupling("nice", (4,), DenseNet(4), 0, 1.0, Spline()),
        lambda: ClassGaussian((4,), 0),
        lambda: Flatten((3, 1)).forward({}, jnp.zeros((3, 2)), None),
    ],
)
def test_impossible_shapes_and_names_are_refused(make):
    with pytest.raises(ValueError):
        make()
