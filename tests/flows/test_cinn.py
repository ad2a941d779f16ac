"""The paper's networks: sizes, order of latents, conditions at every resolution, refusals."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.flows.chain import Chain, Split, latent_sizes
from diffusion_privacy.flows.cinn import PRESETS, FlowConfig, build, table


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def couplings(subnet, c, k, kernel, width):
    """Parameters of one two-sided GLOW coupling, counted by hand."""
    layers = [(c // 2 + k, width), (width, width), (width, 2 * (c // 2))]
    return 2 * sum(a * b * kernel**2 + b for a, b in layers)


def test_mnist_network_has_the_papers_sizes():
    flow = build(PRESETS["mnist"])
    assert flow.shape == (28, 28, 1)
    assert flow.out_shape == (784,)
    shapes = jax.eval_shape(flow.init, jax.random.key(0))
    stages = 4 * couplings("conv", 4, 10, 3, 128) + 4 * couplings("conv", 16, 10, 3, 128)
    assert count(shapes) == stages + 2 * couplings("dense", 784, 10, 1, 392)


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize(
    ("name", "dims", "sizes"),
    [
        ("mnist", 784, (784,)),
        ("xray", 128 * 128, (128 * 128,)),
        ("celeba", 128 * 128 * 3, (1536, 1536, 3072, 6144, 12288, 24576)),
        ("digits", 64, (64,)),
    ],
)
def test_presets_map_records_onto_vectors_of_the_same_size(name, dims, sizes):
    flow = build(PRESETS[name])
    assert flow.out_shape == (dims,)
    assert latent_sizes(flow) == sizes
    # Shapes only: the large networks are traced, not run.
    params = jax.eval_shape(flow.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, *flow.shape), jnp.float32)
    cond = jax.ShapeDtypeStruct((2, PRESETS[name].cond_dim), jnp.float32)
    z, logdet = jax.eval_shape(flow.forward, params, x, cond)
    assert (z.shape, logdet.shape) == ((2, dims), (2,))
    back, _ = jax.eval_shape(flow.inverse, params, z, cond)
    assert back.shape == x.shape


def first_kernels(params) -> dict[str, jax.Array]:
    """The kernels into which a condition enters, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {path: leaf for path, leaf in found.items() if "_0']['kernel" in path}


def test_the_condition_enters_at_every_resolution_and_in_the_dense_blocks():
    config = dataclasses.replace(PRESETS["digits"], shape=(4, 4, 1), cond_dim=3, depths=(1, 1), conv_width=4)
    flow = build(dataclasses.replace(config, dense_depth=1, dense_width=6))
    params = jax.tree.map(lambda s: 0.2 * jnp.ones(s.shape), jax.eval_shape(flow.init, jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))

    gradient = jax.jit(jax.grad(lambda p: jnp.sum(flow.forward(p, x, jnp.ones((2, 3)))[0] ** 2)))(params)
    kernels = first_kernels(gradient)
    assert len(kernels) == 6
    for path, kernel in kernels.items():
        effect = np.moveaxis(np.abs(kernel[..., -3:, :]), -2, 0).reshape(3, -1).sum(axis=1)
        assert np.all(effect > 0), path


def test_scan_chooses_the_program_and_not_the_parameters():
    unrolled, scanned = (build(dataclasses.replace(PRESETS["mnist"], scan=scan)) for scan in (False, True))
    shapes = [jax.eval_shape(flow.init, jax.random.key(0)) for flow in (unrolled, scanned)]
    assert jax.tree.map(lambda s: s.shape, shapes[0]) == jax.tree.map(lambda s: s.shape, shapes[1])


def test_a_scanned_program_does_not_grow_with_depth():
    def lines(depth):
        flow = build(FlowConfig((4, 4, 1), 2, depths=(depth,), dense_depth=depth, conv_width=4, scan=True))
        params = jax.eval_shape(flow.init, jax.random.key(0))
        x, cond = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32), jax.ShapeDtypeStruct((2, 2), jnp.float32)
        loss = jax.grad(lambda p, x, c: jnp.sum(flow.forward(p, x, c)[0]))
        return len(jax.jit(loss).lower(params, x, cond).as_text().splitlines())

    assert lines(12) == lines(3)


def test_splits_are_nested_and_halve_the_channels():
    flow = build(FlowConfig((8, 8, 1), depths=(1, 1, 1), splits=(True, False), dense_depth=1))
    assert isinstance(flow, Chain)
    assert isinstance(flow.layers[-1], Split)
    assert latent_sizes(flow) == (32, 32)


def test_tables_follow_the_paper():
    flow = build(table(10, 2))
    assert flow.shape == flow.out_shape == (10,)
    params = jax.eval_shape(flow.init, jax.random.key(0))
    assert count(params) == 4 * couplings("dense", 10, 2, 1, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coupling": "nice"}, "coupling must be one of glow"),
        ({"conv_net": "nice"}, "conv_net must be one of paper, glow"),
        ({"conv_precision": "float16"}, "conv_precision must be one of"),
        ({"conv_precision": "bfloat16"}, "conv_precision needs conv_net = 'glow'"),
        ({"squeeze": "hex"}, "squeeze must be one of"),
        ({"mixing": "qr"}, "mixing must be one of"),
        ({"shape": (28, 30, 1)}, "divisible by 4"),
        ({"depths": (4, 0)}, "depths"),
        ({"splits": (True, True)}, "splits"),
        ({"clamp": 0.0}, "clamp"),
        ({"cond_dim": 0, "class_latents": True}, "class_latents"),
        ({"spline_bins": 1}, "spline"),
        ({"mixture_components": 1}, "mixture_components must be at least 2"),
        ({"conv_net": "glow", "conv_last": 2}, "conv_last must be 1 or 3"),
        ({"conv_last": 1}, "conv_last = 1 needs conv_net = 'glow'"),
        ({"shape": (5,)}, "images"),
        ({"shape": (1,), "depths": ()}, "two columns"),
        ({"shape": (5,), "depths": (), "dense_depth": 0}, "dense_depth"),
    ],
)
def test_a_config_that_is_no_flow_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        dataclasses.replace(PRESETS["mnist"], **changes)
    assert "\n" not in str(caught.value)
