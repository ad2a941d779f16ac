"""DP-Pix: block means with Laplace noise, the simplest private image (Fan, DBSec 2018)."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import noise
from diffusion_privacy.mechanisms.calibration import check_epsilon
from diffusion_privacy.types import Array


def pixelise(images: Array, block: int, epsilon: float, keys: Array) -> Array:
    """``images[N, H, W, C]`` in [-1, 1] to block means plus noise, at full size again and cut to [-1, 1].

    (epsilon, 0)-private for replacing one image by any other: every one of the H·W·C/b² means moves by at most 2, so
    the noise has scale 2·H·W·C/(b²ε). In the paper's terms this is 255·m/(b²ε) with m = H·W·C, all pixels; its small m
    protects a patch of m pixels and not the image.

    Args:
      block: side b of a block; divides H and W.
      keys: one typed key an image, [N].

    Raises:
      InputError: a block that does not divide the image, or ε <= 0.
    """
    _, height, width, channels = images.shape
    if block < 1 or height % block or width % block:
        raise InputError(f"pixel_block: expected a divisor of {height} and {width}, got {block}")
    numbers = height // block * (width // block) * channels
    return _pixelise(jnp.asarray(images), block, 2.0 * numbers / check_epsilon(epsilon), keys)


@functools.partial(jax.jit, static_argnums=1)
def _pixelise(images: Array, block: int, scale: Array, keys: Array) -> Array:
    count, height, width, channels = images.shape
    grid = (height // block, block, width // block, block, channels)
    means = jnp.clip(jnp.mean(images.reshape(count, *grid), axis=(2, 4)), -1.0, 1.0)
    unit = jax.vmap(lambda key: noise.unit_laplace(key, math.prod(means.shape[1:])))(keys)
    noised = noise.add(means, unit.reshape(means.shape), scale)
    spread = jnp.repeat(jnp.repeat(noised, block, axis=1), block, axis=2)
    return jnp.clip(spread, -1.0, 1.0)
