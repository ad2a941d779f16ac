"""What may be done to a noised latent before the inverse flow: post-processing, free of charge.

Nothing here looks at the record again, so nothing here changes the guarantee. Inverses of invertible networks explode
off-distribution; a noised latent has the variance 1 + σ² where the flow expects 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array

_LOG_SQRT_2PI = 0.9189385332046727


@jax.jit
def match_gaussian(z: Array, sigma: Array | float) -> Array:
    """``z/√(1 + σ²)``: N(0, 1) again when the latent was N(0, 1) and rarely clipped. Any shape."""
    return z / jnp.sqrt(1.0 + sigma**2)


def _log_mills(t: Array) -> Array:
    """log of (1 − Φ(t))/φ(t) for t >= 0: direct below 10, five terms of the asymptotic series above (error 1e-7)."""
    near, far = jnp.minimum(t, 10.0), jnp.maximum(t, 10.0)
    inverse = 1.0 / (far * far)
    series = 1.0 - inverse * (1.0 - inverse * (3.0 - inverse * (15.0 - 105.0 * inverse)))
    direct = 0.5 * near**2 + _LOG_SQRT_2PI + jax.scipy.special.log_ndtr(-near)
    return jnp.where(t < 10.0, direct, jnp.log(series) - jnp.log(far))


def normal_plus_laplace_cdf(x: Array, scale: Array | float) -> Array:
    """P(N(0,1) + Laplace(b) <= −|x|), in (0, 1/2], any shape: the lower tail, without cancellation.

    F(−a) = Φ(−a) + ½e^{1/2b² − a/b} Φ(a − 1/b) − ½e^{1/2b² + a/b} Φ(−a − 1/b). With Mills' ratio m(t) = Φ(−t)/φ(t) the
    third term is ½φ(a)m(a + 1/b) <= ½Φ(−a), and for a < 1/b the second is ½φ(a)m(1/b − a): no large exponents remain.
    """
    a, rate = jnp.abs(x), 1.0 / scale
    log_phi = -0.5 * a * a - _LOG_SQRT_2PI
    gap = rate - a
    inside = log_phi + _log_mills(jnp.maximum(gap, 0.0))
    outside = 0.5 * rate * rate - a * rate + jax.scipy.special.log_ndtr(jnp.maximum(-gap, 0.0))
    second = jnp.where(gap > 0.0, inside, outside)
    third = log_phi + _log_mills(a + rate)
    return jax.scipy.special.ndtr(-a) + 0.5 * jnp.exp(second) - 0.5 * jnp.exp(third)


@jax.jit
def match_laplace(z: Array, scale: Array | float) -> Array:
    """Per coordinate, the increasing map that takes N(0, 1) + Laplace(b) to N(0, 1). Any shape, float32."""
    tail = jnp.maximum(normal_plus_laplace_cdf(z, scale), jnp.finfo(jnp.float32).tiny)
    return -jnp.sign(z) * jax.scipy.special.ndtri(jnp.minimum(tail, 0.5))


MATCHES: dict[str, Callable[[Array, float], Array]] = {
    "gaussian": match_gaussian,
    "discrete_gaussian": match_gaussian,
    "laplace": match_laplace,
    "discrete_laplace": match_laplace,
}
"""Prior matching by the name of the mechanism; metric noise has none (its latents are not clipped to a known law)."""


def match_prior(z: Array, mechanism: str, noise_scale: float) -> Array:
    """Noised latents brought back to the flow's prior, any shape.

    Raises:
      InputError: no matching map is known for ``mechanism``.
    """
    if mechanism not in MATCHES:
        raise InputError(f"prior matching: expected a mechanism of {sorted(MATCHES)}, got {mechanism!r}")
    return MATCHES[mechanism](jnp.asarray(z, jnp.float32), noise_scale)


@dataclasses.dataclass(frozen=True)
class CoarseSelection:
    """A public set of latent coordinates to privatise; the others are drawn from the prior and carry no record.

    The set must be chosen without looking at the private records (e.g. the flow's coarsest split): it is a field of the
    manifest. Fewer coordinates mean a smaller clip radius and so less noise on each.

    Attributes:
      indices: increasing positions in the latent, at least one.
      dim: length D of the whole latent.
    """

    indices: tuple[int, ...]
    dim: int

    def __post_init__(self) -> None:
        values = list(self.indices)
        if not values or values != sorted(set(values)) or values[0] < 0 or values[-1] >= self.dim:
            raise InputError(f"selection.indices: expected distinct increasing positions in 0 … {self.dim - 1}")

    def take(self, z: Array) -> Array:
        """``z[B, D] -> z[B, k]``, the coordinates that go through the mechanism."""
        if z.shape[-1] != self.dim:
            raise InputError(f"selection.dim: expected latents of {self.dim} numbers, got {z.shape[-1]}")
        return z[..., np.asarray(self.indices)]

    def complete(self, key: Array, chosen: Array) -> Array:
        """``[B, k] -> [B, D]``: the chosen coordinates in place, the rest from N(0, 1) under ``key``."""
        rest = jax.random.normal(key, (*chosen.shape[:-1], self.dim), chosen.dtype)
        return rest.at[..., np.asarray(self.indices)].set(chosen)
