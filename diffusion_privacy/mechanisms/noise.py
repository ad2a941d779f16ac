"""Where the noise of a release comes from: the operating system, never the run's seed.

Anyone who learns the key can subtract the noise, so a key is drawn fresh, used once, and neither stored nor printed.

What the two arithmetics promise:

- JAX keys (`fresh_keys`): 64 bits of operating-system entropy for each record, expanded by threefry-2x32. Privacy then
  holds against an adversary who cannot tell threefry's output from randomness; 64 bits can be searched by a determined
  one, and threefry is not a vetted cipher. The noise is a float32: its lowest bits tell which latent it was added to
  (Mironov, CCS 2012; measured with Laplace noise at a claim of ε = 1: between 1.2 and 6.7), so `add` rounds them away.
  What is left is an error of about 1e-5 in the probability of a grid cell, as far as it was counted: for Gaussian noise
  up to 4.9 σ. Fast.
- Byte streams (`os_bytes`, `keyed_bytes`): used by the discrete mechanisms, which sample exactly with integers.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.mechanisms.clipping import pairwise_sum
from diffusion_privacy.training.rng import add as add
from diffusion_privacy.training.rng import signs_and_uniforms, unit_gaussian
from diffusion_privacy.types import Array

RandomBytes = Callable[[int], bytes]
"""``draw(n)`` returns n fresh uniform bytes, never the same ones twice."""


def fresh_keys(count: int) -> Array:
    """``count`` typed JAX keys, each 64 bits from the operating system; no function of any seed.

    The implementation is pinned: under vmap the ``rbg`` kinds draw every record's noise from the first key.
    """
    words = np.frombuffer(secrets.token_bytes(8 * count), dtype=np.uint32).reshape(count, 2)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def fresh_key() -> Array:
    """One key of `fresh_keys`, shape []."""
    return fresh_keys(1)[0]


def os_bytes(count: int) -> bytes:
    """``count`` bytes from the operating system's cryptographic generator: the source for real releases."""
    return secrets.token_bytes(count)


def keyed_bytes(key: bytes) -> RandomBytes:
    """A byte stream that is a function of ``key``: SHAKE-256 of the key and a block counter.

    Used where a mechanism must be a function of (key, record). Its privacy is that of the key: 32 fresh bytes.

    Raises:
      ValueError: fewer than 32 bytes.
    """
    if len(key) < 32:
        raise ValueError("a byte key needs 32 bytes; draw it with os_bytes(32)")
    block = 0

    def draw(count: int) -> bytes:
        nonlocal block
        block += 1
        return hashlib.shake_256(key + block.to_bytes(16, "little")).digest(count)

    return draw


def unit_laplace(key: Array, dim: int) -> Array:
    """Independent Laplace with scale 1 (density ½e^{−|x|}), float32 [dim], with tails to 44 scales."""
    sign, u = signs_and_uniforms(key, dim)
    return -sign * jnp.log(u)


def unit_metric_l2(key: Array, dim: int) -> Array:
    """Density ∝ e^{−‖x‖₂} in ``dim`` dimensions, float32 [dim]: a uniform direction times a Gamma(dim, 1) length."""
    direction_key, length_key = jax.random.split(key)
    direction = unit_gaussian(direction_key, dim)
    # Gamma(dim, 1) as a sum of exponentials, which has all of its tail: that of `jax.random.gamma` ends where its
    # normal draws do, at 5.4 deviations, and what lies beyond would be impossible under one of two latents.
    _, u = signs_and_uniforms(length_key, dim)
    return direction / jnp.linalg.norm(direction) * pairwise_sum(-jnp.log(u))
