"""What the networks are made of."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
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


class GroupNorm(nn.Module):
    """``x[B, H, W, C]`` with mean 0 and variance 1 in each group of an image, then scaled and shifted by channel.

    Statistics, in float32 at least, and parameters make one factor and one term a channel, so that activations are read
    once for the sums and once for the result; their gradient too is two sums a channel and one such pass. Parameters
    and values are those of `flax.linen.GroupNorm`, to rounding: like its default, this takes the variance as a
    difference, whose precision falls with (mean/deviation)²; at 100 a value was off by .004.

    Attributes:
      groups: a divisor of C.
      dtype: of the result.
      epsilon: added to the variance.
    """

    groups: int
    dtype: Any
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array, factor: Array | None = None, term: Array | None = None) -> Array:
        """``norm(x) · (1 + factor) + term`` with one of each ``[B, C]`` an image and channel, or without.

        Raises:
          InputError: C is not a multiple of the groups.
        """
        batch, height, width, channels = x.shape
        if channels % self.groups:
            raise InputError(f"{channels} channels cannot be normalised in {self.groups} groups")
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        size = channels // self.groups

        def of_group(sums: Array) -> Array:
            means = jnp.sum(sums.reshape(batch, self.groups, size), axis=2) / (height * width * size)
            return jnp.repeat(means, size, axis=1)

        flat = wide.reshape(batch, height * width, channels)
        mean = of_group(jnp.sum(flat, axis=1))
        variance = jnp.maximum(of_group(jnp.sum(jnp.square(flat), axis=1)) - jnp.square(mean), 0)
        slope = jax.lax.rsqrt(variance + self.epsilon) * scale
        offset = bias - mean * slope
        if factor is not None:
            widened = 1 + factor.astype(wide.dtype)
            slope, offset = slope * widened, offset * widened
        if term is not None:
            offset = offset + term.astype(wide.dtype)
        return (wide * slope[:, None, None] + offset[:, None, None]).astype(self.dtype)


def group_norm(
    x: Array, dtype: Any, name: str, groups: int = 0, factor: Array | None = None, term: Array | None = None
) -> Array:
    """`GroupNorm` of ``x[B, H, W, C]`` in ``groups`` (0: `group_count`), with ``factor`` and ``term`` ``[B, C]``."""
    return GroupNorm(groups or group_count(x.shape[-1]), dtype, name=name)(x, factor, term)


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
