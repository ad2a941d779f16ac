"""A small variational autoencoder without batch statistics: the space in which latent diffusion works."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.layers import conv, group_norm
from diffusion_privacy.types import Array


def _width(channels: int, most: int, level: int) -> int:
    return min(channels * 2**level, most)


def _block(x: Array, width: int, name: str, dtype: jnp.dtype) -> Array:
    h = conv(width, dtype, f"{name}_conv1")(nn.silu(group_norm(x, dtype, f"{name}_norm1")))
    h = conv(width, dtype, f"{name}_conv2")(nn.silu(group_norm(h, dtype, f"{name}_norm2")))
    return (x if x.shape[-1] == width else conv(width, dtype, f"{name}_skip", size=1)(x)) + h


class _Encoder(nn.Module):
    halvings: int
    latent_channels: int
    channels: int
    max_channels: int
    blocks: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        dtype = jnp.dtype(self.dtype)
        h = conv(self.channels, dtype, "stem")(x.astype(dtype))
        for level in range(self.halvings + 1):
            width = _width(self.channels, self.max_channels, level)
            if level:
                h = conv(width, dtype, f"down{level}", stride=2)(h)
            for block in range(self.blocks):
                h = _block(h, width, f"level{level}_block{block}", dtype)
        h = nn.silu(group_norm(h, dtype, "norm"))
        mean, log_variance = jnp.split(conv(2 * self.latent_channels, jnp.float32, "head")(h), 2, axis=-1)
        # Outside of these limits exp() is 0 or infinite in float32.
        return mean, jnp.clip(log_variance, -30.0, 20.0)


class _Decoder(nn.Module):
    halvings: int
    image_channels: int
    channels: int
    max_channels: int
    blocks: int
    dtype: str

    @nn.compact
    def __call__(self, z: Array) -> Array:
        dtype = jnp.dtype(self.dtype)
        h = conv(_width(self.channels, self.max_channels, self.halvings), dtype, "stem")(z.astype(dtype))
        for level in reversed(range(self.halvings + 1)):
            width = _width(self.channels, self.max_channels, level)
            if level < self.halvings:
                b, height, length, c = h.shape
                h = conv(width, dtype, f"up{level}")(jax.image.resize(h, (b, 2 * height, 2 * length, c), "nearest"))
            for block in range(self.blocks):
                h = _block(h, width, f"level{level}_block{block}", dtype)
        h = nn.silu(group_norm(h, dtype, "norm"))
        return conv(self.image_channels, jnp.float32, "head")(h)


class Autoencoder(nn.Module):
    """Images ``[B, H, W, C]`` to latents ``[B, H/f, W/f, c]`` and back, f = 2^halvings; a row depends on itself alone.

    After the autoencoders of latent diffusion (Rombach et al., arXiv 2112.10752, section 3.1), smaller: no attention,
    no adversarial and no perceptual loss, which would need a network from elsewhere.

    Attributes:
      image_channels: C.
      halvings: how often height and width are halved; 3 makes 64x64 of 512x512.
      latent_channels: c.
      channels: width at full size; doubles a halving up to ``max_channels``.
      max_channels: largest width.
      blocks: residual blocks a size, of both halves.
      dtype: ``"float32"`` or ``"bfloat16"`` computation; parameters and outputs are float32.

    Raises:
      InputError: a field out of range, or an input that is not ``[B, H, W, C]`` with H and W divisible by f.
    """

    image_channels: int = 1
    halvings: int = 3
    latent_channels: int = 4
    channels: int = 32
    max_channels: int = 128
    blocks: int = 1
    dtype: str = "float32"

    def setup(self) -> None:
        for name, least in (
            ("image_channels", 1),
            ("halvings", 0),
            ("latent_channels", 1),
            ("channels", 1),
            ("max_channels", 1),
            ("blocks", 1),
        ):
            if getattr(self, name) < least:
                raise InputError(f"autoencoder.{name}: expected {least} or more, got {getattr(self, name)}")
        shared = (self.channels, self.max_channels, self.blocks, self.dtype)
        self.encoder = _Encoder(self.halvings, self.latent_channels, *shared)
        self.decoder = _Decoder(self.halvings, self.image_channels, *shared)

    def __call__(self, x: Array) -> Array:
        """Decoded means ``[B, H, W, C]``."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Mean and log-variance of q(z | x), each float32 ``[B, H/f, W/f, c]``; the log-variance in [-30, 20]."""
        factor = 2**self.halvings
        if x.ndim != 4 or x.shape[-1] != self.image_channels or math.gcd(x.shape[1], x.shape[2]) % factor:
            raise InputError(
                f"the autoencoder needs images [B, H, W, {self.image_channels}] with H and W divisible by {factor} "
                f"(2^halvings), got shape {x.shape}"
            )
        return self.encoder(x)

    def decode(self, z: Array) -> Array:
        """Images float32 ``[B, H, W, C]``, not clipped, of latents ``[B, H/f, W/f, c]``."""
        return self.decoder(z)
