"""Randomness as a function of (seed, stream, indices).

No key is ever stored: a resumed run, another batch size or another number of devices draws the same numbers. Noise of
a private release is the one exception and does not come from here (see `mechanisms.noise`).
"""

from __future__ import annotations

import zlib

import jax

from diffusion_privacy.types import Array


def stream(seed: int, name: str, *indices: int | Array) -> Array:
    """Typed key of the stream ``name`` under ``seed``, folded with each index in turn.

    Args:
      seed: the run's seed, 0 <= seed < 2**32.
      name: a stream's name, e.g. ``"score.init"``; different names give independent streams.
      *indices: step, record or draw numbers; they may be traced.

    Returns:
      A typed JAX key (``jax.random.key``).
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def per_record(key: Array, indices: Array) -> Array:
    """One key for each index: ``fold_in(key, indices[i])``; shape ``[B]``."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
