"""A small classifier without convolutions: many of them side by side are a few batched matrix products."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_privacy.networks.layers import lecun_normal
from diffusion_privacy.types import Array


class DenseClassifier(nn.Module):
    """Logits of ``num_outputs`` classes: anything ``[B, ...]`` -> float32 ``[B, num_outputs]``.

    Attributes:
      num_outputs: number of logits.
      hidden: width of the two hidden layers; 0 for none, which leaves multinomial logistic regression.
    """

    num_outputs: int
    hidden: int = 128

    def setup(self) -> None:
        self.layers = [nn.Dense(self.hidden, kernel_init=lecun_normal) for _ in range(2 if self.hidden else 0)]
        self.head = nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros)

    def features(self, x: Array) -> Array:
        """The last hidden layer, [B, hidden]: the space in which sets of images are compared."""
        h = x.reshape(x.shape[0], -1).astype(jnp.float32)
        for layer in self.layers:
            h = nn.silu(layer(h))
        return h

    def __call__(self, x: Array) -> Array:
        return self.head(self.features(x))
