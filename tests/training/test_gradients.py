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


def cell_errors(bits: int, offset: float) -> np.ndarray:
    """Relative errors of the probabilities of grid cells around 0 under ``offset``, from every value that the float32
    noise takes there; its uniforms are multiples of 2^-24 there."""
    u = (np.arange(3 * 2**22, 2**24) * 2.0**-24).astype(np.float32)
    unit = -np.asarray(jax.jit(lambda v: jax.scipy.special.ndtri(0.5 * v))(u))
    step, reach = 2.0**-bits, int(0.2 * 2**bits)
    edges = (np.arange(-reach, reach + 2) - 0.5) * step
    found = np.zeros(2 * reach + 1)
    for sign in (-1, 1):
        place = np.rint(np.asarray(rng.add(jnp.float32(offset), sign * unit, 1.0, bits)) / step).astype(int) + reach
        inside = (place >= 0) & (place < found.size)
        found += np.bincount(place[inside], minlength=found.size) * 2.0**-25
    wanted = np.diff(special.ndtr((edges - offset) / (1 + 2.0**-22)))
    return found / wanted - 1


@pytest.mark.slow
def test_cells_of_training_tell_a_hundredth_of_what_fine_ones_do():
    """What a cell tells is about the square of its error, and there are steps times parameters of them: 10¹⁰ cells with
    an error of 10⁻⁵ are a nat or so, with 3·10⁻⁷ they are none."""
    coarse, fine = (np.sqrt(np.mean(cell_errors(bits, 0.0371) ** 2)) for bits in (rng.GRID_BITS, 8))
    assert 1e10 * coarse**2 < 5e-3
    assert 1e10 * fine**2 > 0.5
