"""Randomness as a function of (seed, stream, indices).

No key is ever stored: a resumed run, another batch size or another number of devices draws the same numbers. Keys of
private releases and of private training are the exception: they come from the operating system (see `mechanisms.noise`
and `training.secret`). The laws that both draw from stand here, since both rooms may import this one.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp

from diffusion_privacy.types import Array

LAW = "threefry2x32"
"""The generator of every key that is made here, whatever `jax_default_prng_impl` says: under vmap the ``rbg`` kinds
draw a whole batch from its first key, and what a record draws would depend on the records beside it."""


def stream(seed: int, name: str, *indices: int | Array) -> Array:
    """Typed key of the stream ``name`` under ``seed``, folded with each index in turn.

    Args:
      seed: the run's seed, 0 <= seed < 2**32.
      name: a stream's name, e.g. ``"score.init"``; different names give independent streams.
      *indices: step, record or draw numbers; they may be traced.

    Returns:
      A typed JAX key (``jax.random.key``).
    """
    key = jax.random.fold_in(jax.random.key(seed, impl=LAW), zlib.crc32(name.encode()))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def per_record(key: Array, indices: Array) -> Array:
    """One key for each index: ``fold_in(key, indices[i])``; shape ``[B]``."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


# --- noise of private releases and private training: pure functions, whose keys come from the operating system -------


def signs_and_uniforms(key: Array, dim: int) -> tuple[Array, Array]:
    """Random signs and uniforms in (0, 1], float32 [dim], the uniforms made of 63 bits and fine near 0.

    `jax.random.uniform` has 23 bits, which cuts a Laplace tail at 16 scales and a normal one at 5.4 deviations: what
    falls beyond would be impossible under one of two neighbours, and a probability of 1e-7 per coordinate is not small
    beside δ.
    """
    words = jax.random.bits(key, (2, dim), jnp.uint32)
    sign = jnp.where(words[1] & 1, -1.0, 1.0)
    high, low = words[0].astype(jnp.float32), (words[1] | 1).astype(jnp.float32)
    return sign, high * 2.0**-32 + low * 2.0**-64


def unit_gaussian(key: Array, dim: int) -> Array:
    """N(0, I), float32 [dim], with tails to 9 standard deviations (2^-63 each side is lost)."""
    sign, u = signs_and_uniforms(key, dim)
    return -sign * jax.scipy.special.ndtri(0.5 * u)


GRID_BITS = 3
"""Noised numbers are rounded to 2^-3 of the power of two at or below σ, which adds at most a seven-hundredth to the
variance of the noise. See `add`."""


def add(clipped: Array, unit: Array, scale: Array | float, bits: int = GRID_BITS) -> Array:
    """``clipped + scale·unit``, rounded to multiples of 2^-bits of the power of two at or below ``scale``: float32 [D].

    Rounding the sum is post-processing, so it costs nothing. What it hides is which float32 values the noise takes: a
    cell of the grid holds many of them, and the fewer bits the more. Counted over all values of Gaussian noise up to
    4.9 σ, the chi-square distance of the cells' law from the continuous one is 10⁻¹² for numbers near 0 and 3·10⁻¹²
    for those 1.7 σ away. That is the order of the nats that a number tells on average beyond the proof for real
    numbers, and no bound on them: 6·10⁻⁷ for a record of 196,608 values, .03 for the 10¹⁰ numbers that a private
    training gives away. With 8 bits they are a thousand times as many.
    """
    # Half an ulp may be lost in the float32 value of the scale; it must not end below what was asked for.
    scale = jnp.asarray(scale, jnp.float32) * jnp.float32(1.0 + 2.0**-22)
    step = jnp.ldexp(jnp.float32(1.0), jnp.frexp(scale)[1] - 1 - bits)
    return jnp.round((clipped + scale * unit) / step) * step
