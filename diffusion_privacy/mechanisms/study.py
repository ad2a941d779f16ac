"""Latents at many noise levels from one unit noise a record: for internal study only, never for release.

Publishing two points of such a curve cancels the noise: z̃₁ − z̃₂ = (σ₁ − σ₂)·unit, and the record follows. The result is
an array of its own shape that no writer of releases accepts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import clipping, noise
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism, LaplaceMechanism
from diffusion_privacy.types import Array


def latent_curve_for_internal_study(
    mechanism: type[GaussianMechanism] | type[LaplaceMechanism], clip_norm: float, scales: Array, keys: Array, z: Array
) -> Array:
    """Noised latents of B records at S noise scales: ``[S, B, D]``. One clip and one unit noise a record.

    Row s equals ``vmap(mechanism(clip_norm, scales[s]))(keys, z)`` to float32 rounding.

    Args:
      mechanism: the class, Gaussian or Laplace.
      clip_norm: radius C.
      scales: σ or b, [S], positive.
      keys: one typed key a record, [B]; a seeded stream is fine here, which is why nothing of this may leave the house.
      z: latents [B, D].

    Raises:
      InputError: another mechanism.
    """
    norm: clipping.Norm
    if mechanism is GaussianMechanism:
        unit, norm = noise.unit_gaussian, "l2"
    elif mechanism is LaplaceMechanism:
        unit, norm = noise.unit_laplace, "l1"
    else:
        raise InputError(f"mechanism: expected GaussianMechanism or LaplaceMechanism, got {mechanism!r}")
    clipped = jax.vmap(lambda row: clipping.clip(row, clip_norm, norm))(z)
    units = jax.vmap(lambda key: unit(key, z.shape[1]))(keys)
    return jax.vmap(lambda scale: noise.add(clipped, units, scale))(jnp.asarray(scales, jnp.float32))
