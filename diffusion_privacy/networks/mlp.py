"""A residual multilayer perceptron with the U-Net's call signature, for vectors and tiny images."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.embedding import Conditioning
from diffusion_privacy.networks.layers import dense, drop
from diffusion_privacy.types import Array


class MLP(nn.Module):
    """Denoiser of anything flat: ``(x[B, ...], t[B], label[B] | None, dropout_keys[B] | None) -> [B, ...]``.

    Attributes:
      hidden: width.
      depth: number of residual blocks.
      time_features: features of the time embedding, even.
      dropout: rate inside the blocks, applied only when ``dropout_keys`` are given.
      num_classes: 0 for no class; otherwise label ``num_classes`` (or None) is the null class.
      skip: adds ``x`` times a learned number of the time and class. Noise fills all dimensions; without this a network
        that is narrower than a record cannot tell it (c_skip of Karras et al., arXiv 2206.00364, section 5, is fixed).
      dtype: ``"float32"`` or ``"bfloat16"`` computation; parameters are float32 in both.

    Raises:
      InputError: a label for a model without classes, no width, or a negative depth.
    """

    hidden: int = 256
    depth: int = 3
    time_features: int = 64
    dropout: float = 0.0
    num_classes: int = 0
    skip: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, dropout_keys: Array | None = None) -> Array:
        if self.hidden < 1 or self.depth < 0:
            raise InputError(f"an MLP needs hidden >= 1 and depth >= 0, got {self.hidden} and {self.depth}")
        dtype = jnp.dtype(self.dtype)
        emb = Conditioning(self.time_features, self.hidden, self.num_classes, self.dtype, name="conditioning")(t, label)
        h = dense(self.hidden, dtype, "stem")(x.reshape(x.shape[0], -1).astype(dtype))
        for i in range(self.depth):
            r = nn.LayerNorm(dtype=dtype, name=f"norm{i}")(h)
            scale, shift = jnp.split(dense(2 * self.hidden, dtype, f"modulation{i}")(emb), 2, axis=1)
            r = nn.silu(dense(self.hidden, dtype, f"in{i}")(r * (1 + scale) + shift))
            if self.dropout > 0 and dropout_keys is not None:
                r = drop(r, self.dropout, dropout_keys, i)
            h = h + dense(self.hidden, dtype, f"out{i}", zero=True)(r)
        h = nn.silu(nn.LayerNorm(dtype=dtype, name="norm_out")(h))
        h = dense(math.prod(x.shape[1:]), dtype, "head", zero=True)(h)
        if self.skip:
            h = h + dense(1, dtype, "skip", zero=True)(emb) * x.reshape(h.shape).astype(dtype)
        return h.reshape(x.shape).astype(x.dtype)
