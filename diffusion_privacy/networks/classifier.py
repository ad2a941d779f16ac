"""A small convolutional classifier without batch statistics: an image's logits never depend on its neighbours."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.layers import conv, dense, group_norm
from diffusion_privacy.types import Array


class ConvTrunk(nn.Module):
    """Residual stages down to a map of about 4x4, then its mean and maximum: ``[B, H, W, C]`` -> ``[B, features]``.

    The number of stages follows from the image: 2 at 8x8, 4 at 28x28, 6 at 128x128. The maximum is kept beside the mean
    because a fingerprint covers few pixels.

    Attributes:
      channels: width of the first stage; doubles per stage up to ``max_channels``.
      max_channels: widest stage.
      dtype: ``"float32"`` or ``"bfloat16"`` computation; parameters are float32.

    Raises:
      InputError: an input that is not ``[B, H, W, C]``.
    """

    channels: int = 32
    max_channels: int = 128
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.ndim != 4:
            raise InputError(f"the classifier needs images [B, H, W, C], got shape {x.shape}")
        dtype = jnp.dtype(self.dtype)
        stages = 1 + max(0, math.ceil(math.log2(min(x.shape[1:3]) / 4)))
        h = conv(self.channels, dtype, "stem")(x.astype(dtype))
        for stage in range(stages):
            width = min(self.channels * 2**stage, self.max_channels)
            h = self._block(h, width, 1 if stage == 0 else 2, f"stage{stage}", dtype)
        h = nn.silu(group_norm(h, dtype, "norm"))
        return jnp.concatenate([jnp.mean(h, axis=(1, 2)), jnp.max(h, axis=(1, 2))], axis=1)

    def _block(self, x: Array, width: int, stride: int, name: str, dtype: jnp.dtype) -> Array:
        h = nn.silu(group_norm(x, dtype, f"{name}_norm1"))
        skip = conv(width, dtype, f"{name}_skip", size=1, stride=stride)(h)
        h = conv(width, dtype, f"{name}_conv1", stride=stride)(h)
        h = nn.silu(group_norm(h, dtype, f"{name}_norm2"))
        return skip + conv(width, dtype, f"{name}_conv2")(h)


class Classifier(nn.Module):
    """Logits of ``num_outputs`` classes: images ``[B, H, W, C]`` in [-1, 1] -> float32 ``[B, num_outputs]``.

    Works from 8x8 to 128x128 and beyond, for any number of channels. The head starts at zero: all classes equal.

    Attributes:
      num_outputs: number of logits.
      channels, max_channels, dtype: see `ConvTrunk`.
    """

    num_outputs: int
    channels: int = 32
    max_channels: int = 128
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = ConvTrunk(self.channels, self.max_channels, self.dtype, name="trunk")(x)
        return dense(self.num_outputs, jnp.float32, "head", zero=True)(h)
