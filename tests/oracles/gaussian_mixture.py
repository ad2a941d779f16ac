"""Models whose score and likelihood are known: Gaussian mixtures Σ_i w_i N(x_i, s² I) under a Gaussian forward process.

With s = 0 it is the n-atom empirical measure, the perfect memoriser: a sampler with its score returns each record with
probability w_i. At time t the mixture is Σ_i w_i N(α_t x_i, (σ_t² + α_t² s²) I).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from diffusion_privacy.types import SDE, Array, ScoreFn


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Σ_i w_i N(means[i], std² I). Compared and hashed by identity; every method works in the dtype of its ``x``.

    Attributes:
      means: ``[n, ...]``; kept in float64 on the host.
      std: s >= 0, shared by the components.
      weights: ``[n]``, positive, normalised on use; None for equal ones.
    """

    means: np.ndarray
    std: float = 0.0
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "means", np.asarray(self.means, np.float64))
        if self.weights is not None and (np.shape(self.weights) != (self.n,) or np.min(self.weights) <= 0):
            raise ValueError(f"weights must be {self.n} positive numbers")

    @property
    def n(self) -> int:
        """Number of components."""
        return len(self.means)

    @property
    def dim(self) -> int:
        """Number of values of one draw."""
        return int(np.prod(self.means.shape[1:]))

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """Normalised weights, float64 ``[n]``."""
        w = np.ones(self.n) if self.weights is None else np.asarray(self.weights, np.float64)
        return w / w.sum()

    @functools.cached_property
    def _flat(self) -> np.ndarray:
        return self.means.reshape(self.n, -1)

    @functools.cached_property
    def _distances(self) -> np.ndarray:
        """Squared distances between components from differences, float64 ``[n, n]``."""
        return np.stack([np.sum((self._flat - row) ** 2, axis=1) for row in self._flat])

    def _terms(self, x: Array, alpha: Array, var: Array) -> tuple[Array, Array, Array]:
        """Log-weights relative to a reference component [B, n], residual r = x − α m_k [B, D] and reference m_k [B, D].

        Written around the component k nearest to x (found to rounding error; any choice is exact):
        ‖x − α m_i‖² = ‖r‖² + 2α r·(m_k − m_i) + α²‖m_k − m_i‖² with r = x − α m_k. Only matrix products, and no large
        numbers cancel: ‖x‖² − 2x·m + ‖m‖² would lose every digit at small σ in float32.
        """
        flat = x.reshape(x.shape[0], -1)
        means = jnp.asarray(self._flat, x.dtype)
        dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        a, v = alpha[:, None].astype(x.dtype), var[:, None].astype(x.dtype)
        near = jnp.argmin(a * jnp.sum(means * means, axis=1) - 2 * dot(flat, means.T), axis=1)
        reference = means[near]
        residual = flat - a * reference
        along = dot(residual, means.T)
        along = jnp.take_along_axis(along, near[:, None], axis=1) - along
        excess = 2 * a * along + a * a * jnp.asarray(self._distances, x.dtype)[near]
        return jnp.asarray(np.log(self.probabilities), x.dtype) - excess / (2 * v), residual, reference

    def _scales(self, t: Array, sde: SDE) -> tuple[Array, Array]:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return alpha, sigma**2 + (alpha * self.std) ** 2

    def posterior(self, x: Array, t: Array, sde: SDE) -> Array:
        """Probability of each component given ``x_t = x[B, ...]`` at ``t[B]``: ``[B, n]``."""
        return jax.nn.softmax(self._terms(x, *self._scales(t, sde))[0], axis=1)

    def log_prob(self, x: Array, t: Array, sde: SDE) -> Array:
        """log p_t(x) in nats for ``x[B, ...]`` at ``t[B]``: ``[B]``. At t = 0 it needs ``std > 0``."""
        alpha, var = self._scales(t, sde)
        return self._log_density(x, alpha, var)

    def log_prob_data(self, x: Array) -> Array:
        """log p_0(x) in nats of the data distribution itself, ``[B]``; needs ``std > 0``."""
        ones = jnp.ones(x.shape[0], x.dtype)
        return self._log_density(x, ones, ones * self.std**2)

    def _log_density(self, x: Array, alpha: Array, var: Array) -> Array:
        logits, residual, _ = self._terms(x, alpha, var)
        norm = -0.5 * self.dim * (math.log(2 * math.pi) + jnp.log(var))
        return jax.nn.logsumexp(logits, axis=1) - jnp.sum(residual**2, axis=1) / (2 * var) + norm

    def denoised(self, x: Array, t: Array, sde: SDE) -> Array:
        """E[x_0 | x_t = x], ``[B, ...]``."""
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        shape = (-1,) + (1,) * (x.ndim - 1)
        score = self.score(sde)(x, t)
        return (x + (sigma**2).reshape(shape) * score) / alpha.reshape(shape)

    def score(self, sde: SDE) -> ScoreFn:
        """∇ log p_t as a function ``(x[B, ...], t[B]) -> [B, ...]``; needs t > 0 when ``std`` is 0."""

        def score(x: Array, t: Array) -> Array:
            alpha, var = self._scales(t, sde)
            logits, residual, reference = self._terms(x, alpha, var)
            mean = jnp.matmul(
                jax.nn.softmax(logits, axis=1),
                jnp.asarray(self._flat, x.dtype),
                precision=jax.lax.Precision.HIGHEST,
            )
            flat = (alpha[:, None] * (mean - reference) - residual) / var[:, None]
            return flat.reshape(x.shape).astype(x.dtype)

        return score

    def sample(self, key: Array, count: int) -> Array:
        """``count`` independent draws of the data, ``[count, ...]``."""
        pick, noise = jax.random.split(key)
        index = jax.random.choice(pick, self.n, (count,), p=jnp.asarray(self.probabilities))
        x = jnp.asarray(self.means)[index]
        return x + self.std * jax.random.normal(noise, x.shape, x.dtype)

    def nearest(self, x: Array) -> Array:
        """Index of the component mean nearest to each ``x[B, ...]``, int ``[B]``."""
        flat = x.reshape(x.shape[0], -1)
        means = jnp.asarray(self._flat, x.dtype)
        return jnp.argmin(jnp.sum(means * means, axis=1) - 2 * flat @ means.T, axis=1)

    def ball_probability(self, centre: np.ndarray, radius: float) -> float:
        """P(‖x_0 − centre‖ < radius) under the data distribution: noncentral chi-square, a host float."""
        square = np.sum((self._flat - np.reshape(centre, (1, -1))) ** 2, axis=1)
        if self.std == 0:
            inside = (square < radius**2).astype(float)
        else:
            inside = stats.ncx2.cdf((radius / self.std) ** 2, self.dim, np.maximum(square / self.std**2, 1e-12))
        return float(np.sum(self.probabilities * inside))
