"""A record's gradient stays in its ball however many numbers it has; what a noised sum gives out is a coarse grid."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from diffusion_privacy.training import gradients, platform, rng

CLIP = 0.5


def norm_after(value: float, shape: tuple[int, ...], options: dict | None) -> float:
    """‖clip(g)‖ in float64 of a gradient of equal numbers, clipped as a step does it: among others, compiled."""
    many = jax.jit(jax.vmap(lambda g: gradients.clip_one({"w": g}, CLIP)[0]["w"]), compiler_options=options)
    clipped = np.asarray(many(jnp.full((2, *shape), value, jnp.float32)), np.float64)
    return math.sqrt(np.sum(clipped[0] ** 2))


@pytest.mark.parametrize("library", ["default", "ynnpack"])
def test_a_million_equal_numbers_stay_in_the_ball(library):
    """As a layer has them whose inputs are all alike: a sum in the order of memory would round all of them the same
    way, and come out too small. XLA sums them otherwise; this watches that it goes on doing so."""
    norm = norm_after(0.83, (1500, 1500), platform.compiler_options(library))
    assert CLIP * (1 - 2 * gradients.CLIP_MARGIN) < norm <= CLIP


def noised(total: np.ndarray, scale: float) -> np.ndarray:
    keys = jax.random.key_data(jax.random.split(jax.random.key(4), 1))
    return np.asarray(gradients.noised_mean({"w": jnp.asarray(total, jnp.float32)}, keys, scale, 4)["w"])


def test_noised_sums_lie_on_a_coarse_grid_and_others_are_left_alone():
    total = np.random.default_rng(0).standard_normal(1000)
    cells = noised(total, 1.5) * 4 / 2.0**-rng.GRID_BITS
    np.testing.assert_array_equal(cells, np.rint(cells))
    assert np.std(cells * 2.0**-rng.GRID_BITS - total) == pytest.approx(1.5, rel=0.1)
    np.testing.assert_array_equal(noised(total, 0.0), total.astype(np.float32) / 4)


def distance_of_cells(bits: int, offset: float) -> float:
    """Chi-square distance from the normal law of the cells that noise of scale 1 falls into under ``offset``, over
    cells within 4.9 of it: from every float32 value that `rng.unit_gaussian` takes down to uniforms of 2^-22."""
    reach = 9 * 2**bits

    @jax.jit
    def places(u):
        unit = jax.scipy.special.ndtri(0.5 * u)
        both = jnp.stack([rng.add(jnp.float32(offset), sign * unit, 1.0, bits) for sign in (-1.0, 1.0)])
        return jnp.rint(both * 2.0**bits).astype(jnp.int32) + reach

    found = np.zeros(2 * reach + 1)
    for octave in range(22):
        # The uniforms in (2^-(octave + 1), 2^-octave] are alike in probability and 2^-(24 + octave) apart.
        u = (np.arange(2**23, 2**24) * 2.0 ** -(24 + octave)).astype(np.float32)
        found += np.bincount(np.asarray(places(u)).ravel(), minlength=found.size) * 2.0 ** -(25 + octave)
    cells = np.arange(-reach, reach + 1) * 2.0**-bits
    # On the side of the tail, where differences of probabilities keep their digits.
    near, far = (-(abs(cells - offset) + side * 2.0 ** -(bits + 1)) / (1 + 2.0**-22) for side in (-1, 1))
    wanted = special.ndtr(near) - special.ndtr(far)
    inside = abs(cells - offset) < 4.9
    return float(np.sum((found - wanted)[inside] ** 2 / wanted[inside]))


@pytest.mark.slow
def test_cells_tell_a_thousandth_of_what_fine_ones_do():
    """The count behind docs/limits.md: 3.4e-12 on the grid in use and 4.1e-9 on one of 2^-8 σ, at the largest of four
    places that were counted; another processor's last digits move it."""
    assert distance_of_cells(rng.GRID_BITS, 1.7) < 1e-11
    assert distance_of_cells(8, 1.7) > 1e-9
