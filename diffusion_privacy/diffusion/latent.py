"""Latent diffusion: a score model of what an encoder makes of images, and what the audit needs of it.

The autoencoder is variational (Kingma & Welling, arXiv 1312.6114). With the decoder N(x̂(z), std² I), the encoder
q(z | x) = N(μ, diag σ²) and the prior N(0, I), the loss of one record in nats per value of the image is

    { Σ (x − x̂(z))² / (2 std²) + D log(std √(2π)) + kl_weight · KL(q(z | x) ‖ N(0, I)) } / D,    z = μ + σ ε,

with one draw ε. For kl_weight = 1 it is minus the evidence lower bound; a smaller std keeps more of the image. The
score model learns ``scale`` · μ(x) (Rombach et al., arXiv 2112.10752), and an image that it draws is x̂(z / scale),
clipped to [-1, 1].

A detector of images becomes one of latents by decoding first (`Latent.detector`). Estimators take any callable, so that
they integrate over the latents' chain what the images show: the probability is the one of decoded images, exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from diffusion_privacy.training import rng
from diffusion_privacy.types import Array, PyTree

Encode = Callable[[PyTree, Array], tuple[Array, Array]]
"""``encode(params, x[B, ...]) -> (mean, log-variance)``, each ``[B, ...]``."""

Decode = Callable[[PyTree, Array], Array]
"""``decode(params, z[B, ...]) -> images[B, ...]``, not clipped."""


def kl_to_standard_normal(mean: Array, log_variance: Array) -> Array:
    """KL(N(mean, diag exp(log_variance)) ‖ N(0, I)) in nats, ``[B]``, of ``[B, ...]`` each (1312.6114, appendix B)."""
    terms = 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance)
    return jnp.sum(terms, axis=tuple(range(1, terms.ndim)))


def reconstruction_nll(x: Array, decoded: Array, std: float) -> Array:
    """−log N(x; decoded, std² I) in nats, ``[B]``, of ``[B, ...]`` each."""
    axes = tuple(range(1, x.ndim))
    constant = math.prod(x.shape[1:]) * math.log(std * math.sqrt(2 * math.pi))
    return jnp.sum((x - decoded) ** 2, axis=axes) / (2 * std**2) + constant


def autoencoder_loss(
    encode: Encode,
    decode: Decode,
    params: PyTree,
    x: Array,
    key: Array,
    position: Array,
    *,
    std: float,
    kl_weight: float,
) -> tuple[Array, dict[str, Array]]:
    """The loss above, ``[B]`` in nats per value of the image, and its two parts in nats per image.

    Args:
      encode, decode: the two halves.
      params: of both.
      x: images ``[B, ...]`` in [-1, 1].
      key: key of the step; record i draws from ``fold_in(key, position[i])``.
      position: place of each record in the whole batch, int ``[B]``.
      std: of the decoder, > 0, in units of the pixels.
      kl_weight: >= 0; 1 for the evidence lower bound.
    """
    mean, log_variance = encode(params, x)
    size = math.prod(mean.shape[1:])
    # Drawn flat: XLA compiles the random bits of many-dimensional arrays slowly.
    noise = jax.vmap(lambda k: jax.random.normal(k, (size,)))(rng.per_record(key, position)).reshape(mean.shape)
    decoded = decode(params, mean + jnp.exp(0.5 * log_variance) * noise)
    nll, kl = reconstruction_nll(x, decoded, std), kl_to_standard_normal(mean, log_variance)
    return (nll + kl_weight * kl) / math.prod(x.shape[1:]), {"reconstruction": nll, "kl": kl}


@dataclasses.dataclass(frozen=True)
class _DecodeFirst:
    """The part of a detector of latents that is compiled in. Equal parts share a program."""

    decode: Decode

    def __call__(self, params: PyTree, scale: Array, detect: Callable[..., Array], z: Array, *record: Array) -> Array:
        return detect(decoded(self.decode, params, scale, z), *record)


def decoded(decode: Decode, params: PyTree, scale: Array, z: Array) -> Array:
    """Images in [-1, 1], ``[B, ...]``, of scaled latents ``z[B, ...]``."""
    return jnp.clip(decode(params, z / scale), -1.0, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Latent:
    """A trained autoencoder as a space to diffuse in.

    Attributes:
      encoder, decoder: the two halves, hashable.
      params: of both.
      scale: what latents are multiplied with to have unit variance. A statistic of the training records, and so a part
        of the model as its parameters are.
    """

    encoder: Encode
    decoder: Decode
    params: PyTree
    scale: float

    def encode(self, x: Array) -> Array:
        """Scaled means ``[B, ...]`` of images ``x[B, ...]``; nothing is drawn."""
        return self.encoder(self.params, x)[0] * self.scale

    def decode(self, z: Array) -> Array:
        """Images ``[B, ...]`` in [-1, 1] of scaled latents ``z[B, ...]``."""
        return decoded(self.decoder, self.params, jnp.float32(self.scale), z)

    def detector(self, detect: Callable[..., Array]) -> Callable[..., Array]:
        """``detect(images, …)`` as a function of scaled latents, ``detect(decode(z), …)``.

        The result is a pytree (`jax.tree_util.Partial`) over the parameters of the decoder and of the detector: given
        to a compiled function as an argument, another model of the same shape reuses the program.
        """
        inner = detect if isinstance(detect, jax.tree_util.Partial) else jax.tree_util.Partial(detect)
        found = jax.tree_util.Partial(_DecodeFirst(self.decoder), self.params, jnp.float32(self.scale), inner)
        return cast(Callable[..., Array], found)
