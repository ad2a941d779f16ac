"""Every bijection of the package in one table, each held to the same contract."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.flows.actnorm import ActNorm, ClassGaussian
from diffusion_privacy.flows.bijection import Bijection, bind, size
from diffusion_privacy.flows.chain import Chain, Flatten, Split, Stack, latent_sizes
from diffusion_privacy.flows.cinn import FlowConfig, build
from diffusion_privacy.flows.coupling import Affine, Coupling, coupling
from diffusion_privacy.flows.mixing import Mixing, Permutation, permutations
from diffusion_privacy.flows.spline import Spline
from diffusion_privacy.flows.squeeze import Squeeze
from diffusion_privacy.flows.subnets import ConvNet, DenseNet

K = 3
IMAGE, VECTOR = (4, 2, 3), (5,)


def conv(kind: str) -> Coupling:
    return coupling(kind, IMAGE, ConvNet(4), K, 1.5, Spline(4, 3.0))


def dense(kind: str) -> Coupling:
    return coupling(kind, VECTOR, DenseNet(6), K, 1.5, Spline(4, 3.0))


def small_flow(**changes: object) -> Bijection:
    config = FlowConfig((4, 4, 1), K, depths=(1, 2), dense_depth=1, conv_width=4, dense_width=6)
    return build(dataclasses.replace(config, **changes))


TABLE: dict[str, Callable[[], Bijection]] = {
    "actnorm-image": lambda: ActNorm(IMAGE),
    "actnorm-vector": lambda: ActNorm(VECTOR),
    "class-gaussian": lambda: ClassGaussian(VECTOR, K),
    "checkerboard": lambda: Squeeze(IMAGE, "checkerboard"),
    "haar": lambda: Squeeze(IMAGE, "haar"),
    "flatten": lambda: Flatten(IMAGE),
    "permutation": lambda: Permutation(IMAGE, 7),
    "lu": lambda: Mixing(IMAGE, "lu"),
    "orthogonal": lambda: Mixing(VECTOR, "orthogonal"),
    "glow-conv": lambda: conv("glow"),
    "rnvp-conv": lambda: conv("rnvp"),
    "gin-conv": lambda: conv("gin"),
    "spline-conv": lambda: conv("spline"),
    "glow-dense": lambda: dense("glow"),
    "rnvp-dense": lambda: dense("rnvp"),
    "gin-dense": lambda: dense("gin"),
    "spline-dense": lambda: dense("spline"),
    "stack": lambda: Stack(dense("glow"), 3, 1),
    "stack-scan": lambda: Stack(dense("glow"), 3, 1, scan=True),
    "split": lambda: Split((2, 2, 4), Chain((Squeeze((2, 2, 3)), Flatten((1, 1, 12))))),
    "cinn": lambda: small_flow(),
    "cinn-everything": lambda: small_flow(
        splits=(True,), squeeze="haar", mixing="lu", actnorm=True, class_latents=True, scan=True
    ),
    "cinn-spline-orthogonal": lambda: small_flow(coupling="spline", mixing="orthogonal", dense_depth=0),
}
CONDITIONAL = [name for name in TABLE if any(s in name for s in ("conv", "dense", "class", "stack", "cinn"))]


def random_params(bijection: Bijection, seed: int = 0, scale: float = 0.3):
    """Parameters away from the identity start, drawn on the host: compiled draws would take most of the time here."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        # Kernels keep the size of their input; everything else is `scale`.
        fan_in = math.prod(leaf.shape[-4:-1]) if "kernel" in jax.tree_util.keystr(path) else scale**-2
        return jnp.asarray(generator.normal(size=leaf.shape) / math.sqrt(fan_in), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(bijection.init, jax.random.key(0)))


def measure(bijection: Bijection, seed: int = 0) -> dict[str, float]:
    """Largest violations of the contract at one record, at the data and after release noise of 3 prior deviations."""
    d = size(bijection.shape)
    x = jax.random.normal(jax.random.key(seed + 2), bijection.shape)
    noise = 3.0 * jax.random.normal(jax.random.key(seed + 3), bijection.out_shape)
    cond = jnp.asarray([0.2, -1.0, 0.7], x.dtype)
    flow = bind(bijection, random_params(bijection, seed))
    inverse = fast_jit(lambda z: flow.inverse(z, cond))

    @fast_jit
    def forward(x):
        jacobian, (z, logdet) = jax.jacrev(lambda v: (flow.forward(v, cond)[0], flow.forward(v, cond)), has_aux=True)(x)
        return z, logdet, jacobian.reshape(d, d)

    def errors(x, z, logdet, jacobian, suffix):
        back, inverse_logdet = inverse(z)
        again, *_ = forward(back)
        return {
            f"round trip{suffix}": np.max(np.abs(back - x)) / (1 + np.max(np.abs(x))),
            f"round trip back{suffix}": np.max(np.abs(again - z)) / (1 + np.max(np.abs(z))),
            f"logdet{suffix}": abs(logdet - np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]),
            f"inverse logdet{suffix}": abs(logdet + inverse_logdet),
        }

    z, *rest = forward(x)
    far, _ = inverse(z + noise)
    return errors(x, z, *rest, "") | errors(far, *forward(far), " at release noise")


def fast_jit(fn):
    """Compiled without optimisation: these programs run once, and the compiler would take most of the time."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def check(bijection: Bijection, tolerance: float) -> None:
    for name, error in measure(bijection).items():
        assert error < tolerance, f"{name}: {error:.2g}"


@pytest.mark.parametrize("name", TABLE)
def test_inverse_and_logdet_float64(name):
    with jax.enable_x64(True):
        check(TABLE[name](), 1e-9)


@pytest.mark.parametrize("name", TABLE)
def test_inverse_and_logdet_float32(name):
    check(TABLE[name](), 1e-4)


def test_the_check_rejects_a_logdet_that_counts_one_position():
    class Faulty(ActNorm):
        def _logdet(self, params, x):
            return jnp.sum(params["log_scale"])

    with pytest.raises(AssertionError, match="logdet"):
        check(Faulty(IMAGE), 1e-4)


def test_the_check_rejects_an_inverse_with_the_halves_in_the_wrong_order():
    class Faulty(Coupling):
        def inverse(self, params, y, cond):
            return super().inverse({"first": params["second"], "second": params["first"]}, y, cond)

    with pytest.raises(AssertionError, match="round trip"):
        check(Faulty((4,), DenseNet(6), K), 1e-4)


@pytest.mark.parametrize("name", ["glow-conv", "gin-dense", "spline-conv", "lu", "cinn-everything"])
def test_a_batch_is_its_records(name):
    bijection = TABLE[name]()
    params = random_params(bijection)
    x = jax.random.normal(jax.random.key(5), (2, 3, *bijection.shape))
    cond = jax.random.normal(jax.random.key(6), (2, 3, K))
    alone = jax.vmap(jax.vmap(bijection.forward, (None, 0, 0)), (None, 0, 0))(params, x, cond)
    together = bijection.forward(params, x, cond)
    np.testing.assert_allclose(together[0], alone[0], atol=2e-5)
    np.testing.assert_allclose(together[1], alone[1], atol=2e-5)
    assert together[1].shape == (2, 3)
    back, logdet = bijection.inverse(params, together[0], cond)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(logdet, -together[1], atol=1e-4)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_condition_matters(name):
    bijection = TABLE[name]()
    flow = bind(bijection, random_params(bijection))
    x = jax.random.normal(jax.random.key(5), bijection.shape)
    one, other = jnp.eye(K)[0], jnp.eye(K)[1]
    z, _ = flow.forward(x, one)
    assert jnp.max(jnp.abs(z - flow.forward(x, other)[0])) > 1e-2
    assert jnp.max(jnp.abs(x - flow.inverse(z, other)[0])) > 1e-2


@pytest.mark.parametrize("name", ["glow-conv", "class-gaussian"])
def test_a_missing_condition_is_an_error(name):
    bijection = TABLE[name]()
    with pytest.raises(ValueError, match="condition"):
        bijection.forward(bijection.init(jax.random.key(0)), jnp.zeros(bijection.shape), None)


@pytest.mark.parametrize("name", [n for n in TABLE if n not in ("haar", "checkerboard", "split")])
def test_starts_as_a_permutation_of_its_input(name):
    # Zero-initialised heads: every learned layer is the identity at the start. Squeezes other than Haar only reorder.
    bijection = TABLE[name]()
    if "everything" in name:
        bijection = small_flow(splits=(True,), mixing="lu", actnorm=True, class_latents=True)
    x = jax.random.normal(jax.random.key(5), bijection.shape)
    z, logdet = bijection.forward(bijection.init(jax.random.key(0)), x, jnp.ones(K))
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
    y, logdet = bijection.forward(params, x, jnp.ones(K))
    assert logdet == 0.0
    assert jnp.max(jnp.abs(y - x)) > 0.1


def test_affine_stretches_by_at_most_the_clamp():
    raw = jnp.asarray([-1e6, 1e6, 0.0, 0.0])
    y, _ = Affine(0.8).forward(raw, jnp.ones(2), (2,))
    np.testing.assert_allclose(jnp.log(y), [-0.8, 0.8], atol=1e-5)


def test_mixing_logdet_and_orthogonality():
    mixing = Mixing((4,), "orthogonal")
    w = jax.jacrev(lambda v: mixing.forward(random_params(mixing, scale=2.0), v, None)[0])(jnp.zeros(4))
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
    y, slope = spline.forward(jnp.broadcast_to(params, (4, spline.num_parameters)), x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(slope, 0.0)
    edge = jnp.asarray([-2.0 + 1e-5, 2.0 - 1e-5])
    y, slope = spline.forward(jnp.broadcast_to(params, (2, spline.num_parameters)), edge)
    np.testing.assert_allclose(y, edge, atol=1e-4)
    np.testing.assert_allclose(slope, 0.0, atol=1e-2)


def test_spline_gradient_is_finite_far_outside():
    spline = Spline(5, 2.0)
    params = jax.random.normal(jax.random.key(0), (spline.num_parameters,))
    for method in (spline.forward, spline.inverse):
        gradient = jax.grad(lambda p, v, method=method: sum(method(p, v)), (0, 1))(params, jnp.asarray(1e30))
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradient)


def test_scan_is_the_unrolled_stack_gradients_included():
    # One parameter tree serves both forms; the scanned one has the explicit convolution gradient, as on a CPU.
    def loss(params, scan):
        layer = coupling("glow", IMAGE, ConvNet(4, explicit_gradient=scan), K, 1.5, Spline())
        stack = Stack(layer, 3, 11, scan)
        z, logdet = stack.forward(params, x, cond)
        back, _ = stack.inverse(params, z, cond)
        return jnp.sum(z**2) - jnp.sum(logdet) + jnp.sum(jnp.sin(back)), z

    params = random_params(Stack(conv("glow"), 3, 11))
    x, cond = jax.random.normal(jax.random.key(1), (2, *IMAGE)), jax.random.normal(jax.random.key(2), (2, K))
    (_, plain), plain_grad = jax.value_and_grad(loss, has_aux=True)(params, False)
    (_, scanned), scan_grad = jax.value_and_grad(loss, has_aux=True)(params, True)
    np.testing.assert_allclose(scanned, plain, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), scan_grad, plain_grad)


def test_latents_run_from_coarse_to_fine():
    flow = small_flow(splits=(True,), dense_depth=0)
    assert latent_sizes(flow) == (8, 8)
    # At the start the flow only reorders: the last 8 latents are exactly the channels that left first.
    x = jnp.arange(16.0).reshape(4, 4, 1)
    params = flow.init(jax.random.key(0))
    stage, _ = Chain(flow.layers[:2]).forward(params, x, jnp.ones(K))
    z, _ = flow.forward(params, x, jnp.ones(K))
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
        lambda: ActNorm((3,)).forward(ActNorm((3,)).init(jax.random.key(0)), jnp.zeros(4), None),
    ],
)
def test_impossible_shapes_and_names_are_refused(make):
    with pytest.raises(ValueError):
        make()
