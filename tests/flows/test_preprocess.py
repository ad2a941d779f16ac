"""Dequantisation keeps the grey level; the maps invert and count every term."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.flows.objective import standard_normal_logp
from diffusion_privacy.flows.preprocess import Preprocess

ROUNDING = 0 if jax.default_backend() == "cpu" else 2e-7
"""Of white, which an accelerator makes by a product with 1/255."""


def stored(levels: int) -> np.ndarray:
    return (2 * np.arange(levels) / (levels - 1) - 1).astype(np.float32)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_values_stay_in_their_grey_level(levels):
    pre = Preprocess((levels,), "affine", levels)
    x = jnp.asarray(stored(levels))
    for seed in range(20):
        v = pre.dequantise(jax.random.key(seed), x)
        np.testing.assert_array_equal(jnp.floor(v), np.arange(levels))
        np.testing.assert_allclose(pre.quantise(v), x, atol=2e-7)


def test_the_largest_draw_stays_in_its_grey_level(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, 1 - 2**-24, dtype))
    v = Preprocess((256,), "affine", 256).dequantise(jax.random.key(0), jnp.asarray(stored(256)))
    np.testing.assert_array_equal(jnp.floor(v), np.arange(256))


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("kind", ["affine", "logit", "ink", "none"])
def test_maps_invert_and_count_their_logdet(kind):
    with jax.enable_x64(True):
        pre = Preprocess((3,), kind, 17)
        v = jnp.asarray([0.01, 8.3, 16.99])  # for ink: black, grey, white
        y, logdet = pre.forward(v)
        np.testing.assert_allclose(pre.inverse(y), v, atol=1e-9)
        jacobian = jax.jacrev(lambda v: pre.forward(v)[0])(v)
        np.testing.assert_allclose(logdet, np.linalg.slogdet(jacobian)[1], atol=1e-9)


@pytest.mark.parametrize("kind", ["affine", "logit"])
def test_probabilities_of_grey_levels_sum_to_the_mass_the_map_reaches(kind):
    # One number, base density N(0, 1): Σ_v ∫ p(v + U) dU is the Gaussian mass of the map's image.
    levels = 4
    pre = Preprocess((1,), kind, levels)
    v = (jnp.arange(levels * 2000) + 0.5)[:, None] / 2000
    y, logdet = pre.forward(v)
    total = float(jnp.sum(jnp.exp(standard_normal_logp(y) + logdet)) / 2000)
    edge = math.sqrt(3) if kind == "affine" else math.log(0.95 / 0.05)
    assert total == pytest.approx(math.erf(edge / math.sqrt(2)), abs=1e-4)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_ink_makes_a_black_pixel_standard_normal_and_keeps_every_level():
    pre = Preprocess((1,), "ink", 256)
    v = (jnp.arange(100_000) + 0.5)[:, None] / 100_000
    y, logdet = pre.forward(v)
    # The density of y given black is that of N(0, 1) cut off above: uniform v costs log(1 − 10⁻³) and nothing else.
    np.testing.assert_allclose(standard_normal_logp(y) + logdet, math.log(1 - 1e-3), atol=1e-4)
    # Close to the ends of each level, where black meets grey and grey meets white.
    ends = jnp.concatenate([jnp.arange(256) + 1e-3, jnp.arange(256) + 1 - 1e-3])[:, None]
    np.testing.assert_array_equal(jnp.floor(pre.inverse(pre.forward(ends)[0])), jnp.floor(ends))
    rising = jnp.sort(jnp.concatenate([v, ends]), axis=0)
    assert bool(jnp.all(jnp.diff(pre.forward(rising)[0][:, 0]) >= 0))
    # Beyond the last level, where draws may land, white stays white; the darkest draw is black.
    ends = pre.quantise(pre.inverse(jnp.asarray([[90.0], [-90.0]])))
    np.testing.assert_allclose(ends, [[1.0], [-1.0]], rtol=0, atol=ROUNDING)


def test_quantise_clips_what_left_the_range():
    pre = Preprocess((2,), "affine", 256)
    np.testing.assert_allclose(pre.quantise(jnp.asarray([-40.0, 1e9])), [-1.0, 1.0], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("levels", [17, 256])
def test_compiled_images_stay_within_their_range(levels):
    # `Records` refuses a pixel of 1 + 1e-7, which the rounding of a compiled quotient can give.
    pre = Preprocess((levels,), "ink", levels)
    x = jax.jit(pre.quantise)(jnp.arange(levels) + 0.5)
    assert -1 <= float(jnp.min(x)) < float(jnp.max(x)) <= 1
    np.testing.assert_allclose(x, stored(levels), atol=2e-7)


@pytest.mark.parametrize("fields", [{"kind": "cube"}, {"levels": 1}, {"alpha": 0.5}, {"kind": "ink", "levels": 7}])
def test_refusals(fields):
    with pytest.raises(ValueError):
        Preprocess((2,), **fields)
