"""What the networks are made of."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_privacy.training import convolutions
from diffusion_privacy.types import Array


def lecun_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Normal weights of variance 1/fan_in, cut at two standard deviations; the last axis is the output.

    The values are those of flax's own initialiser. They are drawn flat because XLA takes seconds to compile the random
    bits of each four-dimensional kernel and minutes for a network of them; flat ones take milliseconds.
    """
    # The cut normal has standard deviation 0.8796.
    std = 1 / math.sqrt(math.prod(shape[:-1])) / 0.87962566103423978
    return std * jax.random.truncated_normal(key, -2.0, 2.0, (math.prod(shape),), dtype).reshape(shape)


def dense(features: int, dtype: Any, name: str, *, zero: bool = False) -> nn.Dense:
    """Affine map of the last axis; ``zero`` starts it at 0."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.zeros if zero else lecun_normal, name=name)


def conv(features: int, dtype: Any, name: str, *, size: int = 3, stride: int = 1, zero: bool = False) -> nn.Conv:
    """Square convolution that keeps H and W (divides them by ``stride``, rounded up); ``zero`` starts it at 0."""
    init = nn.initializers.zeros if zero else lecun_normal
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        dtype=dtype,
        kernel_init=init,
        conv_general_dilated=convolutions.for_flax,
        name=name,
    )


def group_count(channels: int) -> int:
    """Number of groups of a GroupNorm: a divisor of ``channels``, at most 32, with 4 or more channels each if it can.

    Groups of one channel would erase a 1x1 feature map.
    """
    return math.gcd(math.gcd(channels, 32), max(1, channels // 4))


def group_norm(x: Array, dtype: Any, name: str, groups: int = 0) -> Array:
    """GroupNorm of ``x[B, H, W, C]`` in ``groups`` (0: `group_count`); statistics in float32, per image."""
    return nn.GroupNorm(groups or group_count(x.shape[-1]), dtype=dtype, name=name)(x)


def drop(x: Array, rate: float, keys: Array, salt: int) -> Array:
    """Dropout of ``x[B, ...]`` with one key an example, so that a mask does not depend on the batch around it.

    Args:
      x: activations.
      rate: probability of setting a value to 0; the rest is scaled by 1/(1 − rate).
      keys: typed keys ``[B]``.
      salt: number of the layer.
    """
    size = math.prod(x.shape[1:])
    keep = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, salt), 1 - rate, (size,)))(keys)
    return jnp.where(keep.reshape(x.shape), x / (1 - rate), 0).astype(x.dtype)
