"""The clipped norm never exceeds C in exact arithmetic, for any float32 input, compiled or not."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import clipping

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

EVERY_FLOAT = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True),
    st.sampled_from([3.4e38, -3.4e38, 1e38, 1e-38, 1e-45, -1e-45, 0.0, -0.0, math.inf, -math.inf, math.nan]),
)


def exact_norm_power(v: np.ndarray, norm: str) -> Fraction:
    """‖v‖₁ or ‖v‖₂², without rounding."""
    return sum((abs(Fraction(float(x))) if norm == "l1" else Fraction(float(x)) ** 2 for x in v), Fraction(0))


def within(v: np.ndarray, radius: float, norm: str) -> bool:
    limit = Fraction(radius)
    return exact_norm_power(v, norm) <= (limit if norm == "l1" else limit**2)


@hypothesis.given(
    st.lists(EVERY_FLOAT, min_size=1, max_size=40),
    st.sampled_from([1e-6, 0.1, 1.0, 28.0, 1e9]),
    st.sampled_from(clipping.NORMS),
)
@hypothesis.settings(max_examples=150)
def test_norm_bound_holds_for_any_floats(values, radius, norm):
    z = np.zeros(40, np.float32)  # one shape, one compilation
    z[: len(values)] = np.array(values, dtype=np.float32)
    out = np.asarray(jitted(jnp.asarray(z), radius, norm))
    assert np.isfinite(out).all()
    assert within(out, radius, norm)


jitted = jax.jit(clipping.clip, static_argnums=(1, 2))


@pytest.mark.parametrize("norm", clipping.NORMS)
@pytest.mark.parametrize("dim", [1, 2, 3, 63, 784, 4096])
def test_clipped_norm_is_tight(norm, dim):
    rng = np.random.default_rng(dim)
    for scale in (1e-3, 1.0, 1e30):
        z = (scale * rng.standard_normal(dim) * 100).astype(np.float32)
        radius = 3.0
        out = np.asarray(jitted(jnp.asarray(z), radius, norm))
        assert within(out, radius, norm)
        size = float(exact_norm_power(out, norm)) ** (1.0 if norm == "l1" else 0.5)
        if not within(z, radius, norm):
            assert size >= radius * (1 - 1e-5)
            cosine = float(np.dot(out, z / np.abs(z).max()) / np.linalg.norm(out) / np.linalg.norm(z / np.abs(z).max()))
            assert cosine > 1 - 1e-5


@pytest.mark.parametrize("norm", clipping.NORMS)
def test_records_inside_the_ball_are_untouched(norm):
    z = jnp.asarray([0.3, -0.2, 1e-30, 0.0], jnp.float32)
    np.testing.assert_array_equal(clipping.clip(z, 1.0, norm), z)


@pytest.mark.parametrize("norm", clipping.NORMS)
def test_nan_and_infinity_become_zero(norm):
    out = clipping.clip(jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 0.5]), 1.0, norm)
    np.testing.assert_array_equal(out, [0.0, 0.0, 0.0, 0.5])
    np.testing.assert_array_equal(clipping.clip(jnp.full(3, jnp.nan), 1.0, norm), np.zeros(3))


def test_a_batch_is_refused_and_vmap_clips_each_record_by_itself():
    z = jnp.asarray([[10.0, 0.0], [0.0, 1000.0], [0.1, 0.0]])
    with pytest.raises(ValueError, match="one record"):
        clipping.clip(z, 1.0, "l2")
    out = np.asarray(jax.vmap(lambda row: clipping.clip(row, 1.0, "l2"))(z))
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), [1.0, 1.0, 0.1], rtol=1e-5)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf, 1e-30])
def test_unusable_radius_is_refused(radius):
    with pytest.raises(InputError, match="clip_norm"):
        clipping.clip(jnp.ones(2), radius, "l2")


def test_unknown_norm_is_refused():
    with pytest.raises(InputError, match="norm"):
        clipping.clip(jnp.ones(2), 1.0, "max")


def test_radius_without_data():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((40_000, 64))
    # 40,000 draws: the share beyond the radius has standard deviation 5e-4; 5 of them, false alarm 6e-7 each.
    assert abs(np.mean(np.linalg.norm(draws, axis=1) > clipping.clip_radius(64, "l2")) - 0.01) < 2.5e-3
    assert abs(np.mean(np.abs(draws).sum(axis=1) > clipping.clip_radius(64, "l1")) - 0.01) < 5e-3
    assert clipping.clip_radius(64, "l1") == clipping.clip_radius(64, "l1")
    for bad in (0.0, 1.0):
        with pytest.raises(InputError):
            clipping.clip_radius(4, "l2", bad)
