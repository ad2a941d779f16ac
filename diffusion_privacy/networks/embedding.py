"""Embeddings: of the time and class that condition a denoiser, and of an image into a unit vector."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.classifier import ConvTrunk
from diffusion_privacy.networks.layers import dense
from diffusion_privacy.types import Array

TIME_SCALE = 1000.0
"""Times in [0, 1] are spread to the range that the frequencies below were chosen for (Ho et al., arXiv 2006.11239)."""


def sinusoidal(t: Array, width: int, max_period: float = 10_000.0) -> Array:
    """Sines and cosines of ``1000 t[B]`` at geometric frequencies: ``[B, width]`` (Vaswani et al., arXiv 1706.03762).

    Args:
      t: times in [0, 1].
      width: even number of features.
      max_period: longest period, in units of t/1000.
    """
    half = width // 2
    frequency = jnp.exp(-jnp.log(max_period) * jnp.arange(half) / half).astype(t.dtype)
    angle = TIME_SCALE * t[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class Conditioning(nn.Module):
    """Vector ``[B, width]`` of time and, if there are classes, of the label.

    The class table has ``num_classes + 1`` rows; the last is the null class ("label not given"), used where
    ``label`` is None or equals ``num_classes``.

    Raises:
      InputError: odd features, or a label for a model without classes.
    """

    features: int
    width: int
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, t: Array, label: Array | None) -> Array:
        if self.features % 2:
            raise InputError(f"the time embedding needs an even number of features, got {self.features}")
        if label is not None and self.num_classes == 0:
            raise InputError("a label was given to a network with num_classes = 0; set num_classes or pass label=None")
        dtype = jnp.dtype(self.dtype)
        # The angles need all digits of t; only what follows may be short.
        emb = sinusoidal(t, self.features).astype(dtype)
        emb = nn.silu(dense(self.width, dtype, "time_in")(emb))
        emb = dense(self.width, dtype, "time_out")(emb)
        if self.num_classes:
            index = jnp.full(t.shape, self.num_classes) if label is None else label
            emb = emb + nn.Embed(self.num_classes + 1, self.width, dtype=dtype, name="label")(index)
        return nn.silu(emb)


class Embedder(nn.Module):
    """Unit vectors for re-identification: images ``[B, H, W, C]`` -> ``[B, dim]`` of Euclidean norm 1, float32.

    Attributes:
      dim: length of the vector.
      channels, max_channels, dtype: see `classifier.ConvTrunk`.
    """

    dim: int = 64
    channels: int = 32
    max_channels: int = 128
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = ConvTrunk(self.channels, self.max_channels, self.dtype, name="trunk")(x)
        h = dense(self.dim, jnp.float32, "head")(h)
        # The constant keeps the gradient finite at the origin, where a direction is undefined.
        return h / jnp.sqrt(jnp.sum(h * h, axis=1, keepdims=True) + 1e-12)
