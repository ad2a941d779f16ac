"""Another library for convolutions gives the same numbers; a misspelt one is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.flows.coupling import Coupling
from diffusion_privacy.flows.subnets import ConvNet
from diffusion_privacy.mechanisms import dp_gradient
from diffusion_privacy.networks.unet import UNet
from diffusion_privacy.stages import operations
from diffusion_privacy.training import convolutions, partition, sharding, steps
from diffusion_privacy.training import state as states
from diffusion_privacy.training.platform import CONVOLUTIONS, compiler_options
from diffusion_privacy.training.private_step import record_gradient
from diffusion_privacy.training.state import TrainConfig

ON_A_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="convolutions are written out for CPUs alone")


# jaxlib cannot store a program with oneDNN's calls.
@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache entry")
@pytest.mark.parametrize("library", CONVOLUTIONS)
@pytest.mark.parametrize("conv", [convolutions.plain, convolutions.explicit])
@pytest.mark.parametrize(("channels", "outputs"), [(5, 4), (64, 72)])
def test_libraries_agree_on_convolutions_their_gradients_and_those_of_every_record(library, conv, channels, outputs):
    def found(options):
        def loss(x, kernel):
            return jnp.mean(jnp.square(conv(x, kernel)))

        def everything(x, kernel):
            by_record = jax.vmap(jax.grad(lambda kernel, x: loss(x[None], kernel)), (None, 0))(kernel, x)
            return jax.value_and_grad(loss, argnums=(0, 1))(x, kernel), by_record, conv(x, kernel)

        return jax.tree.leaves(jax.jit(everything, compiler_options=options)(x, kernel))

    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (3, 7, 6, channels), float)
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, outputs), float)
        exact = [np.asarray(a) for a in found(None)]
    x, kernel = np.asarray(x, np.float32), np.asarray(kernel, np.float32)
    # Float32 rounds to this. Bfloat16, which such libraries offer too, would be off by a hundred times more.
    for a, b in zip(found(compiler_options(library)), exact, strict=True):
        assert np.max(np.abs(np.asarray(a) - b)) <= 2e-5 * np.sqrt(np.mean(b**2))


@ON_A_CPU
def test_the_default_sums_by_ynnpack_and_does_not_convolve_by_it():
    def program(fn, *shapes, library):
        lowered = jax.jit(fn).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
        return lowered.compile(compiler_options=CONVOLUTIONS[library]).as_text()

    def sums(x):
        return jnp.sum(x, axis=(0, 1, 2))

    shapes = (8, 16, 16, 64), (3, 3, 64, 64)
    if "__ynn_fusion" not in program(sums, shapes[0], library="ynnpack"):
        pytest.skip("this jaxlib has no YNNPACK")
    assert "__ynn_fusion" in program(convolutions.plain, *shapes, library="ynnpack")
    assert "__ynn_fusion" in program(sums, shapes[0], library="default")
    assert "__ynn_fusion" not in program(convolutions.plain, *shapes, library="default")


@ON_A_CPU
def test_a_mapped_program_has_xlas_own_choice_and_a_training_step_the_configs():
    mesh = sharding.data_mesh()
    x, kernel = jnp.zeros((8 * mesh.size, 16, 16, 64)), jnp.zeros((3, 3, 64, 64))

    def program(**library):
        specs = (sharding.SHARDED, sharding.REPLICATED)
        mapped = sharding.data_parallel(convolutions.plain, mesh, in_specs=specs, out_specs=sharding.SHARDED, **library)
        return mapped.lower(x, kernel).compile().as_text()

    alone = jax.jit(convolutions.plain).lower(x, kernel).compile()
    if "__ynn_fusion" not in alone.as_text():
        pytest.skip("this jaxlib has no YNNPACK")
    assert "__ynn_fusion" in program()
    assert "__ynn_fusion" not in program(convolutions=TrainConfig(steps=1, batch_size=1).convolutions)


@ON_A_CPU
def test_a_couplings_clamp_stands_alone_where_it_is_evaluated_and_the_map_is_the_same_where_it_trains():
    layer = Coupling((4, 4, 4), ConvNet(8))
    params = jax.tree.map(lambda leaf: leaf + 0.1, layer.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 4))

    def traced(direction):
        def both(x):
            return jax.jvp(lambda x: direction(params, x, None), (x,), (x,))

        return str(jax.make_jaxpr(both)(x)).count("optimization_barrier"), jax.jit(both)(x)

    for direction in (layer.forward, layer.inverse):
        evaluated, values = traced(direction)
        with convolutions.for_training():
            training, same = traced(direction)
        assert evaluated > 0
        assert training == 0
        for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(same), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_sums_by_the_default_library_are_exact_to_rounding():
    x = np.random.default_rng(0).normal(3.0, 1.0, (16, 32, 32, 24)).astype(np.float32)
    total = jax.jit(lambda x: jnp.sum(x, axis=(0, 1, 2)), compiler_options=compiler_options())(x)
    np.testing.assert_allclose(total, x.astype(float).sum(axis=(0, 1, 2)), rtol=1e-5)


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


def small_unet(channels, channel_mult=(1, 2)):
    net = UNet(channels=channels, channel_mult=channel_mult, blocks_per_level=1)
    rng = np.random.default_rng(0)
    x, t = jnp.asarray(rng.standard_normal((2, 8, 8, 1), np.float32)), jnp.full(2, 0.5)
    layout = jax.eval_shape(net.init, jax.random.key(1), x, t)
    # Drawn here: a network's own initial values take seconds to compile.
    return net, jax.tree.map(lambda p: 0.02 + 0.1 * rng.standard_normal(p.shape, np.float32), layout), x, t


@pytest.mark.slow
@pytest.mark.lightly_compiled
@ON_A_CPU
def test_networks_change_their_gradients_in_a_loop_alone():
    # Two convolutions took 45 times as long where the gradient in a loop is the one that autodiff writes.
    net, params, x, t = small_unet(4, (1,))

    def gradient(params):
        return jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, x, t) ** 2)))(params)

    outside = gradient(params)
    with convolutions.for_training():
        assert "custom_vjp" not in str(jax.make_jaxpr(net.apply)(params, x, t))
    with convolutions.for_training(in_loop=True):
        assert str(jax.make_jaxpr(net.apply)(params, x, t)).count("custom_vjp_call") >= 6
        inside = gradient(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), inside, outside)


def convolutions_in(net, params, x, t):
    return str(jax.make_jaxpr(net.apply)(params, x, t)).count("conv_general_dilated[")


@pytest.mark.slow
@pytest.mark.lightly_compiled
@ON_A_CPU
def test_wide_networks_are_evaluated_by_tiles_and_trained_so_in_a_loop():
    wide = small_unet(40)
    by_tiles = convolutions_in(*wide)
    with convolutions.for_training():
        plain = convolutions_in(*wide)
    with convolutions.for_training(in_loop=True):
        assert convolutions_in(*wide) == by_tiles
    # Two in each of eight blocks, and the one that doubles; stem, head, the one that halves and 1x1 stay as they are.
    assert plain - by_tiles == 17
    assert convolutions_in(*small_unet(12)) == plain
    net, params, x, t = small_unet(40, (1,))

    def out_and_derivative():
        return jax.jit(lambda p, x: jax.jvp(lambda x: net.apply(p, x, t), (x,), (jnp.cos(x),)))(params, x)

    by_tiles = out_and_derivative()
    with convolutions.for_training():
        plain = out_and_derivative()
    for a, b in zip(by_tiles, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.std(b))


@pytest.mark.slow
@pytest.mark.lightly_compiled
@ON_A_CPU
def test_a_function_that_was_evaluated_is_traced_again_for_training():
    net, params, x, t = small_unet(40, (1,))
    jitted = jax.jit(net.apply)
    plain = operations.count(lambda *args: net.apply(*args), params, x, t)
    for fn in (net.apply, jitted):
        by_tiles = str(jax.make_jaxpr(fn)(params, x, t)).count("conv_general_dilated[")
        jax.block_until_ready(jitted(params, x, t))
        assert operations.count(fn, params, x, t) == plain
        assert str(jax.make_jaxpr(fn)(params, x, t)).count("conv_general_dilated[") == by_tiles == 4


class Square:
    """A task whose loss is a network's mean square."""

    def __init__(self, net, t):
        self.net, self.t = net, t

    def loss(self, params, batch, key):
        del key
        out = self.net.apply(params, batch["image"], jnp.full(len(batch["image"]), self.t))
        return jnp.mean(out**2, axis=(1, 2, 3)), {}


@pytest.mark.slow
@pytest.mark.lightly_compiled
@ON_A_CPU
def test_gradients_by_weights_have_plain_convolutions_outside_of_a_loop():
    net, params, x, t = small_unet(40, (1,))
    task, key = Square(net, 0.5), jax.random.key(0)

    def loss(params, image, label):
        del label
        return task.loss(params, {"image": image[None]}, key)[0][0]

    rows = {"image": x}
    one = jax.tree.map(lambda a: a[0], rows)
    with convolutions.for_training():
        ahead = convolutions_in(net, params, x, t)
        alone = str(jax.make_jaxpr(jax.grad(loss))(params, x[0], 0)).count("conv_general_dilated[")
    assert alone > 2 * ahead
    by_record = str(jax.make_jaxpr(lambda p: record_gradient(task, p, one, key, 1))(params))
    clipped = str(jax.make_jaxpr(lambda p: dp_gradient.clipped_sum(loss, p, x, jnp.zeros(2), 1.0, 2))(params))
    assert by_record.count("conv_general_dilated[") == clipped.count("conv_general_dilated[") == alone
    mesh = sharding.data_mesh(jax.devices()[:1])
    for pieces in (1, 2):
        config = TrainConfig(steps=1, batch_size=2, micro_batches=pieces)
        start = states.TrainState(jnp.zeros((), jnp.int32), params, params, states.make_optimizer(config).init(params))
        step = steps.make_step(task, config, mesh, partition.of(start, (), mesh))
        totals = {"loss": jnp.zeros(()), "grad_norm": jnp.zeros(())}
        batch = (rows, jnp.ones(2), jnp.zeros(2, jnp.int32))
        program = str(step.trace(start, totals, jax.random.key_data(key), *batch).jaxpr)
        # By tiles, as in a loop, there are fewer than half of them.
        assert (program.count("conv_general_dilated[") >= alone) == (pieces == 1)


def test_an_unknown_library_is_named():
    with pytest.raises(InputError, match=r"training\.convolutions must be one of default, onednn, ynnpack"):
        TrainConfig(steps=1, batch_size=1, convolutions="fast")
