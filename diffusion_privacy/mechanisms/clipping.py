"""Bring one record's latent into the ball of radius C, soundly in floating point.

Everything here is written for ONE record: `clip` refuses anything but a vector, and the caller vmaps. A norm taken over
a batch, which would let the other records decide how far one of them is clipped, cannot be written with it.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array

Norm = Literal["l1", "l2"]
NORMS: tuple[Norm, ...] = ("l1", "l2")

# Below this the largest entry counts as zero: compilers flush denormals, so dividing by one gives NaN. A vector of at
# most 2^20 such entries has a norm below 2^-60, far inside every ball that `check_clip_norm` admits.
_TINY = 2.0**-80
_MAX_DIM = 2**20
_MIN_RADIUS = 2.0**-40
_MAX_RADIUS = 2.0**60


def check_clip_norm(clip_norm: float) -> float:
    """``clip_norm`` as a float; `InputError` unless it is finite and within [2^-40, 2^60]."""
    value = float(clip_norm)
    if not (math.isfinite(value) and _MIN_RADIUS <= value <= _MAX_RADIUS):
        raise InputError(
            f"clip_norm: expected a finite number within [{_MIN_RADIUS:.1e}, {_MAX_RADIUS:.1e}], got {clip_norm!r}"
        )
    return value


def check_norm(norm: str) -> Norm:
    """``norm`` if it is ``"l1"`` or ``"l2"``; `InputError` otherwise."""
    for known in NORMS:
        if norm == known:
            return known
    raise InputError(f"norm: expected one of {NORMS}, got {norm!r}")


def sanitise(z: Array) -> Array:
    """``z`` in float32 (or wider) with every NaN and infinity replaced by 0."""
    z = jnp.asarray(z)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return jnp.where(jnp.isfinite(z), z, 0.0)


def pairwise_sum(v: Array) -> Array:
    """Sum of a vector of non-negative numbers by halving: relative error at most ⌈log₂ D⌉·u, whatever the compiler.

    `jnp.sum` promises no order, and with it no better bound than D·u.
    """
    v = jnp.pad(v, (0, (1 << max(0, v.shape[0] - 1).bit_length()) - v.shape[0]))
    while v.shape[0] > 1:
        half = v.shape[0] // 2
        v = v[:half] + v[half:]
    return v[0]


def clip(z: Array, clip_norm: float, norm: Norm) -> Array:
    """``z · min(1, C/‖z‖_p)`` of one record, with ‖result‖_p <= C in exact arithmetic.

    Entries that are not finite become 0 first. The norm is taken of y = z/max|z|, so that neither huge nor tiny
    entries overflow or vanish; s = ‖y‖ carries a relative error of at most (⌈log₂ D⌉ + 4)·u for unit roundoff
    u = 2^-24 (halving sum, one rounding each in quotient, square or absolute value, root), one more u each for the
    float32 value of C, the factor C/s and the product. Multiplying the radius by 1 − (⌈log₂ D⌉ + 10)·2^-23 covers
    twice that. A record within the shrunk ball is returned unchanged.

    Args:
      z: latent of ONE record, shape [D], 1 <= D <= 2^20.
      clip_norm: radius C, in [2^-40, 2^60].
      norm: ``"l1"`` or ``"l2"``.

    Returns:
      Array [D], float32 or wider, finite.

    Raises:
      ValueError: ``z`` is not a vector (a batch must be vmapped, never passed).
      InputError: ``clip_norm`` or ``norm`` is out of range.
    """
    if z.ndim != 1 or not 1 <= z.shape[0] <= _MAX_DIM:
        raise ValueError(
            f"clip takes the latent of one record, shape [D] with D <= {_MAX_DIM}; got {z.shape}; use jax.vmap"
        )
    radius = check_clip_norm(clip_norm)
    norm = check_norm(norm)
    z = sanitise(z)
    slack = (math.ceil(math.log2(z.shape[0])) + 10) * 2.0**-23
    largest = jnp.max(jnp.abs(z))
    negligible = largest < _TINY
    y = z / jnp.where(negligible, 1.0, largest)
    size = jnp.sqrt(pairwise_sum(y * y)) if norm == "l2" else pairwise_sum(jnp.abs(y))
    size = jnp.maximum(size, 1.0)
    # C/s: the largest entry that a record of this shape may have. y·(C/s) never meets max|z|·s, which may overflow.
    reach = radius * (1.0 - slack) / size
    return jnp.where(negligible | (largest <= reach), z, y * reach)


def clip_radius(dim: int, norm: Norm, coverage: float = 0.99) -> float:
    """Radius that a standard normal latent of ``dim`` numbers exceeds with probability 1 − coverage, without data.

    L2: √χ²_D(coverage), exact. L1: the empirical quantile of ‖N(0, I_D)‖₁ over 20,000 draws from a fixed stream
    (relative error of the order of 1e-3 / √D): any fixed radius is private, so its Monte-Carlo error costs nothing.

    Raises:
      InputError: ``dim`` < 1, ``coverage`` outside (0, 1), or unknown norm.
    """
    if dim < 1:
        raise InputError(f"dim: expected an integer >= 1, got {dim!r}")
    if not 0.0 < coverage < 1.0:
        raise InputError(f"coverage: expected a number inside (0, 1), got {coverage!r}")
    if check_norm(norm) == "l2":
        from scipy import stats

        return float(math.sqrt(stats.chi2.ppf(coverage, dim)))
    return _l1_radius(int(dim), float(coverage))


@functools.lru_cache(maxsize=64)
def _l1_radius(dim: int, coverage: float) -> float:
    # A public constant of (dim, coverage): the fixed seed is no secret and touches no record.
    generator = np.random.default_rng(2207_14625)
    norms = np.zeros(20_000)
    for start in range(0, dim, 256):
        block = generator.standard_normal((norms.size, min(256, dim - start)), dtype=np.float32)
        norms += np.abs(block).sum(axis=1, dtype=np.float64)
    return float(np.quantile(norms, coverage))
