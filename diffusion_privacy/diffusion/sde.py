"""Forward noising processes as frozen dataclasses.

All have Gaussian marginals x_t | x_0 ~ N(α(t) x_0, σ(t)² I). Continuous forms follow Song et al., "Score-Based
Generative Modeling through Stochastic Differential Equations" (arXiv 2011.13456), appendix B and C; the discrete
schedules follow Ho et al. (arXiv 2006.11239) and Nichol & Dhariwal (arXiv 2102.09672).

A new process needs `alpha`, `sigma` and `coefficients`; everything downstream (training, samplers, likelihood, audit)
uses nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.types import SDE, Array, ScoreFn


def expand(v: Array, like: Array) -> Array:
    """Append axes to ``v[B]`` until it broadcasts against ``like[B, ...]``."""
    return v.reshape(v.shape + (1,) * (like.ndim - v.ndim))


def scored(score_fn: ScoreFn, x: Array, t: Array) -> Array:
    """``score_fn(x[B, ...], t[B])``; looked at here, since another shape would be broadcast without a word.

    Raises:
      InputError: it has not the shape of ``x``.
    """
    score = score_fn(x, t)
    if jnp.shape(score) != x.shape:
        raise InputError(f"score: expected [B, ...] of the shape of x, {x.shape}, got {jnp.shape(score)}")
    return score


def _need(holds: bool, field: str, expected: str, value: object) -> None:
    if not holds:
        raise InputError(f"{field} must be {expected}, got {value!r}")


class GaussianMarginals:
    """What follows from α and σ alone; the base of every process here."""

    def alpha(self, t: Array) -> Array:
        raise NotImplementedError

    def sigma(self, t: Array) -> Array:
        raise NotImplementedError

    def marginal(self, x0: Array, t: Array) -> tuple[Array, Array]:
        """Mean ``[B, ...]`` and standard deviation ``[B]`` of x_t given ``x0[B, ...]`` at ``t[B]``."""
        return expand(self.alpha(t), x0) * x0, self.sigma(t)

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior at t = 1."""
        return 1.0

    def prior_sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """A draw of x_1 ~ N(0, prior_std² I)."""
        return self.prior_std * jax.random.normal(key, shape)

    def prior_logp(self, z: Array) -> Array:
        """Log-density in nats of the prior at ``z[B, ...]``: ``[B]``."""
        d = int(np.prod(z.shape[1:]))
        sq = jnp.sum(jnp.square(z.reshape(z.shape[0], -1) / self.prior_std), axis=1)
        return -0.5 * sq - d * (0.5 * np.log(2 * np.pi) + np.log(self.prior_std))


@dataclasses.dataclass(frozen=True)
class _LinearRate(GaussianMarginals):
    """What the processes with β(t) = β_min + t(β_max − β_min) share: α(t) = exp(−½B(t)) with B(t) = ∫₀ᵗ β.

    Raises:
      InputError: a rate below 0, no rate at all, or t_min outside (0, 1).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        for field in ("beta_min", "beta_max"):
            value = getattr(self, field)
            _need(0 <= value < math.inf, field, "a finite number, at least 0", value)
        _need(self.beta_min + self.beta_max > 0, "beta_max", "above 0 where beta_min is 0", self.beta_max)
        _need(0 < self.t_min < 1, "t_min", "a number in (0, 1)", self.t_min)

    def _rate(self, t: Array) -> Array:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Array) -> Array:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t

    def alpha(self, t: Array) -> Array:
        return jnp.exp(-0.5 * self._integral(t))


@dataclasses.dataclass(frozen=True)
class VP(_LinearRate):
    """Variance preserving: dx = −½β(t) x dt + √β(t) dw, β(t) = β_min + t(β_max − β_min).

    α(t) = exp(−½B(t)), σ(t)² = 1 − exp(−B(t)), B(t) = ∫₀ᵗ β (Song et al., eq. 33). `expm1` keeps σ exact near t = 0.
    """

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def coefficients(self, x: Array, t: Array) -> tuple[Array, Array]:
        beta = self._rate(t)
        return -0.5 * expand(beta, x) * x, jnp.sqrt(beta)


@dataclasses.dataclass(frozen=True)
class SubVP(_LinearRate):
    """Sub-variance preserving: the VP drift with g² = β(t)(1 − exp(−2B(t))), so that σ(t) = 1 − exp(−B(t)).

    Song et al., eq. 29 and 33.
    """

    def sigma(self, t: Array) -> Array:
        return -jnp.expm1(-self._integral(t))

    def coefficients(self, x: Array, t: Array) -> tuple[Array, Array]:
        beta = self._rate(t)
        g2 = -beta * jnp.expm1(-2.0 * self._integral(t))
        return -0.5 * expand(beta, x) * x, jnp.sqrt(g2)


@dataclasses.dataclass(frozen=True)
class VE(GaussianMarginals):
    """Variance exploding: dx = √(dσ²/dt) dw with a geometric schedule that starts at exactly 0.

    σ(t)² = σ_min² ((σ_max/σ_min)^{2t} − 1). Song et al. (eq. 30) omit the −1, which leaves σ(0) = σ_min on the data;
    with it the marginal at 0 is the data itself and g(t)² = dσ²/dt is unchanged.

    Raises:
      InputError: not 0 < sigma_min < sigma_max, or t_min outside (0, 1).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        _need(0 < self.sigma_min < math.inf, "sigma_min", "a finite number above 0", self.sigma_min)
        above = self.sigma_min < self.sigma_max < math.inf
        _need(above, "sigma_max", f"a finite number above sigma_min = {self.sigma_min:g}", self.sigma_max)
        _need(0 < self.t_min < 1, "t_min", "a number in (0, 1)", self.t_min)

    @property
    def _rate(self) -> float:
        return 2.0 * float(np.log(self.sigma_max / self.sigma_min))

    @property
    def prior_std(self) -> float:
        return float(self.sigma_min * np.sqrt(np.expm1(self._rate)))

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return self.sigma_min * jnp.sqrt(jnp.expm1(self._rate * t))

    def coefficients(self, x: Array, t: Array) -> tuple[Array, Array]:
        g = self.sigma_min * jnp.sqrt(self._rate) * jnp.exp(0.5 * self._rate * t)
        return jnp.zeros_like(x), g


@dataclasses.dataclass(frozen=True)
class DDPM(GaussianMarginals):
    """The discrete schedule β_1 … β_T, embedded in continuous time.

    At t = i/T the marginals are exactly those of the chain, ᾱ_i = Π_{k≤i}(1 − β_k). Between grid points log ᾱ is
    interpolated linearly, which is the VP process with the piecewise constant rate β(t) = −T log(1 − β_i): one object
    serves discrete samplers and continuous likelihoods.

    Attributes:
      num_steps: T.
      schedule: ``"linear"`` (β from beta_min to beta_max; Ho et al.), ``"scaled_linear"`` (√β from √beta_min to
        √beta_max; Rombach et al., arXiv 2112.10752) or ``"cosine"`` (Nichol & Dhariwal, eq. 17).
      beta_min, beta_max: ends of the first two schedules, per step, in (0, 1); not the rates of `VP`, which are T
        times as large.

    Raises:
      InputError: an unknown schedule, fewer than 2 steps, or a β that is no share of variance.
    """

    num_steps: int = 1000
    schedule: str = "linear"
    beta_min: float = 1e-4
    beta_max: float = 0.02

    def __post_init__(self) -> None:
        known = self.schedule in ("linear", "scaled_linear", "cosine")
        _need(known, "schedule", "'linear', 'scaled_linear' or 'cosine'", self.schedule)
        whole = isinstance(self.num_steps, int) and not isinstance(self.num_steps, bool) and self.num_steps >= 2
        _need(whole, "num_steps", "a whole number, at least 2", self.num_steps)
        for field in ("beta_min", "beta_max") if self.schedule != "cosine" else ():
            value = getattr(self, field)
            _need(0 < value < 1, field, "a share of variance per step, in (0, 1)", value)

    @property
    def t_min(self) -> float:
        """The first grid point: the discrete model is never evaluated below it."""
        return 1.0 / self.num_steps

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """β_1 … β_T in float64, shape [T]."""
        steps = self.num_steps
        if self.schedule == "linear":
            return np.linspace(self.beta_min, self.beta_max, steps)
        if self.schedule == "scaled_linear":
            return np.linspace(self.beta_min**0.5, self.beta_max**0.5, steps) ** 2
        grid = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.clip(1 - grid[1:] / grid[:-1], 0, 0.999)

    @functools.cached_property
    def _log_alpha_bar(self) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas))])

    def _log_alpha_bar_at(self, t: Array) -> Array:
        return jnp.interp(t * self.num_steps, jnp.arange(self.num_steps + 1.0), jnp.asarray(self._log_alpha_bar))

    def alpha(self, t: Array) -> Array:
        return jnp.exp(0.5 * self._log_alpha_bar_at(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(self._log_alpha_bar_at(t)))

    def coefficients(self, x: Array, t: Array) -> tuple[Array, Array]:
        # Cells are (i−1)/T < t <= i/T; the half keeps t = i/T inside cell i under float32 rounding.
        cell = jnp.clip(jnp.ceil(t * self.num_steps - 1e-3).astype(int) - 1, 0, self.num_steps - 1)
        rate = jnp.asarray(-np.log1p(-self.betas) * self.num_steps, x.dtype)[cell]
        return -0.5 * expand(rate, x) * x, jnp.sqrt(rate)


SDES = {"vp": VP, "subvp": SubVP, "ve": VE, "ddpm": DDPM}
"""Constructors by the name that a config gives."""


def transition(sde: SDE, s: Array, t: Array) -> tuple[Array, Array]:
    """Forward kernel between two times s < t: x_t | x_s ~ N(a x_s, v I). Returns ``(a, v)``, shaped as ``s`` and ``t``.

    a = α_t/α_s, v = σ_t² − a² σ_s² (Kingma et al., "Variational Diffusion Models", arXiv 2107.00630, eq. 3).
    """
    a = sde.alpha(t) / sde.alpha(s)
    return a, sde.sigma(t) ** 2 - a**2 * sde.sigma(s) ** 2
