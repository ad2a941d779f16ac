"""The reverse process as it is run: a Markov chain with Gaussian kernels on a grid of times.

Samplers and importance weights share this file, so that the audit integrates exactly the steps that sampling takes
(stride, clipping and the last noiseless step included), whatever their discretisation error.

Grid: 0 = t_0 < t_1 < … < t_J = 1 (lower if `Chain.visits` ends lower). Step j goes from level j to level j − 1 with

    p_θ(x_{j−1} | x_j) = N(μ_θ(x_j), s_j² I),    s_1 = 0,

and the forward process restricted to the grid has the posterior q(x_{j−1} | x_j, x_0) = N(A_j x_j + C_j x_0, B_j² I),
A = a σ_s²/σ_t², C = α_s v/σ_t², B² = v σ_s²/σ_t², where x_t | x_s ~ N(a x_s, v I): a = α_t/α_s, v = σ_t² − a² σ_s² (Ho
et al., arXiv 2006.11239, eq. 6-7; for any Gaussian marginals: Kingma et al., arXiv 2107.00630, appendix A).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.diffusion.sde import DDPM, expand, scored
from diffusion_privacy.types import SDE, Array, ScoreFn

KERNELS = ("ancestral", "euler_maruyama")
SPACINGS = ("uniform", "quadratic", "log_snr")
VARIANCES = ("posterior", "forward")
_LEAST_ALPHA = 1e-8


def time_grid(sde: SDE, steps: int, spacing: str = "uniform") -> np.ndarray:
    """Times 0 = t_0 < … < t_J = 1 in float64, shape ``[steps + 1]``.

    Args:
      sde: a `DDPM` gets its times snapped to its own grid i/T; other processes take them as they are.
      steps: J, the number of reverse steps (network calls of one sample).
      spacing: ``"uniform"`` in t, ``"quadratic"`` (denser near the data) or ``"log_snr"`` (equal steps of log α²/σ²
        between t_min and 1).

    Raises:
      ValueError: unknown spacing, steps < 2, or more distinct steps asked for than a discrete schedule has.
    """
    if steps < 2:
        raise ValueError(f"a reverse chain needs at least 2 steps, got {steps}")
    if spacing == "uniform":
        times = np.linspace(0.0, 1.0, steps + 1)
    elif spacing == "quadratic":
        times = np.linspace(0.0, 1.0, steps + 1) ** 2
    elif spacing == "log_snr":
        fine = np.linspace(sde.t_min, 1.0, 20_001)
        alpha, sigma = _tables(sde, fine)
        log_snr = 2 * (np.log(alpha) - np.log(sigma))
        wanted = np.linspace(log_snr[0], log_snr[-1], steps)
        times = np.concatenate([[0.0], np.interp(-wanted, -log_snr, fine)])
        times[-1] = 1.0
    else:
        raise ValueError(f"spacing must be one of {SPACINGS}, got {spacing!r}")
    if isinstance(sde, DDPM):
        snapped = np.round(times * sde.num_steps)
        if np.any(np.diff(snapped) < 1):
            raise ValueError(
                f"{steps} {spacing} steps do not fit a schedule of {sde.num_steps}: some would coincide; take fewer"
            )
        times = snapped / sde.num_steps
    return times


def _tables(sde: SDE, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(α, σ) on host in float64: σ_t² − a² σ_s² loses all digits in float32 when steps are short."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        t = jnp.asarray(times, jnp.float64)
        return np.asarray(sde.alpha(t), np.float64), np.asarray(sde.sigma(t), np.float64)


def _check_marginals(sde: SDE, times: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> None:
    """A process of one's own may break what the kernels below take for granted, and they would give other numbers."""
    name = type(sde).__name__
    for field, values in (("alpha", alpha), ("sigma", sigma)):
        if values.shape != times.shape or not np.all(np.isfinite(values)):
            raise ValueError(f"{name}.{field}: expected a finite number for each time in [0, 1], shape {times.shape}")
    if np.min(alpha) < _LEAST_ALPHA:
        # Samplers divide by it.
        raise ValueError(f"{name}.alpha: expected {_LEAST_ALPHA:g} or more, got {np.min(alpha):.3g}")
    # Rounding may leave a little; the last step of a sampler would add what is left.
    if abs(sigma[0]) > 1e-3 * sigma[1]:
        raise ValueError(f"{name}.sigma: expected 0 at t = 0, the data themselves, got {sigma[0]:.3g}")
    rising = np.diff(sigma / alpha) > 0
    if not np.all(rising):
        at = times[int(np.argmin(rising))]
        raise ValueError(f"{name}: expected σ/α to rise with t, it does not above t = {at:.3g}")


@dataclasses.dataclass(frozen=True)
class Chain:
    """A sampler's reverse chain.

    Attributes:
      sde: the forward process.
      steps: J.
      kernel: ``"ancestral"`` (DDPM posterior with x_0 replaced by the model's estimate) or ``"euler_maruyama"``
        (reverse-time SDE). Both end with a noiseless step.
      spacing: see `time_grid`; not used if ``visits`` is given.
      clip_x0: clip the model's estimate of x_0 to [-clip_range, clip_range] before the ancestral step, as samplers of
        images do. Weights use the same mean, so that they are those of the sampler as it is run.
      clip_range: > 0.
      variance: s_j² of the ancestral kernel: ``"posterior"`` (β̃ of Ho et al., here B²) or ``"forward"`` (their β,
        here v, the variance of the forward step).
      visits: the levels i of a `DDPM` that the chain stops at, ascending in 1 … T, ``steps`` of them; empty to take
        ``spacing``. The last may lie below T: a sampler that starts there starts from the prior all the same.

    Raises:
      ValueError: settings that do not fit each other.
    """

    sde: SDE
    steps: int
    kernel: str = "ancestral"
    spacing: str = "uniform"
    clip_x0: bool = False
    clip_range: float = 1.0
    variance: str = "posterior"
    visits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {KERNELS}, got {self.kernel!r}")
        if self.clip_x0 and self.kernel != "ancestral":
            raise ValueError("clip_x0 needs kernel='ancestral': Euler-Maruyama has no estimate of x_0 to clip")
        if not self.clip_range > 0:
            raise ValueError(f"clip_range must be positive, got {self.clip_range}")
        if self.variance not in VARIANCES:
            raise ValueError(f"variance must be one of {VARIANCES}, got {self.variance!r}")
        if self.variance != "posterior" and self.kernel != "ancestral":
            raise ValueError("variance='forward' needs kernel='ancestral': Euler-Maruyama has its own")
        if self.visits:
            self._check_visits()

    def _check_visits(self) -> None:
        if not isinstance(self.sde, DDPM):
            raise ValueError("visits need a DDPM: other processes have no numbered levels")
        top, rising = self.sde.num_steps, all(np.diff([0, *self.visits]) > 0)
        if not rising or self.visits[-1] > top or len(self.visits) < 2 or len(self.visits) != self.steps:
            raise ValueError(
                f"visits must be {self.steps} >= 2 ascending levels in 1 … {top}, got {len(self.visits)} of them: "
                f"{str(self.visits[:5])[1:-1]} … {self.visits[-1]}"
            )

    @functools.cached_property
    def times(self) -> np.ndarray:
        """t_0 … t_J, float64 ``[J + 1]``."""
        if self.visits and isinstance(self.sde, DDPM):
            return np.array([0, *self.visits]) / self.sde.num_steps
        return time_grid(self.sde, self.steps, self.spacing)

    @functools.cached_property
    def _marginals(self) -> tuple[np.ndarray, np.ndarray]:
        alpha, sigma = _tables(self.sde, self.times)
        _check_marginals(self.sde, self.times, alpha, sigma)
        return alpha, sigma

    @property
    def alpha(self) -> np.ndarray:
        """α at every level, float64 ``[J + 1]``. Raises ValueError where α and σ are those of no forward process."""
        return self._marginals[0]

    @property
    def sigma(self) -> np.ndarray:
        """σ at every level, float64 ``[J + 1]``; σ_0 = 0. Raises ValueError as `alpha`."""
        return self._marginals[1]

    @functools.cached_property
    def posterior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(A, C, B) of step j at index j, float64 ``[J + 1]``; index 0 is unused (zeros)."""
        a = self.alpha[1:] / self.alpha[:-1]
        v = self.sigma[1:] ** 2 - a**2 * self.sigma[:-1] ** 2
        var_t, var_s = self.sigma[1:] ** 2, self.sigma[:-1] ** 2
        pad = lambda z: np.concatenate([[0.0], z])  # noqa: E731
        return pad(a * var_s / var_t), pad(self.alpha[:-1] * v / var_t), pad(np.sqrt(v * var_s / var_t))

    @functools.cached_property
    def kernel_std(self) -> np.ndarray:
        """s_j at index j, float64 ``[J + 1]``; s_1 = 0 because the last step adds no noise."""
        if self.kernel == "ancestral" and self.variance == "posterior":
            return self.posterior[2]
        if self.kernel == "ancestral":
            ratio = self.alpha[1:] / self.alpha[:-1]
            std = np.concatenate([[0.0], np.sqrt(self.sigma[1:] ** 2 - ratio**2 * self.sigma[:-1] ** 2)])
            std[1] = 0.0
            return std
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            t = jnp.asarray(self.times, jnp.float64)
            g = np.asarray(self.sde.coefficients(jnp.zeros((self.steps + 1, 1), jnp.float64), t)[1])
        std = np.concatenate([[0.0], g[1:] * np.sqrt(np.diff(self.times))])
        std[1] = 0.0
        return std

    def predict_x0(self, score: Array, x: Array, level: Array) -> Array:
        """Tweedie's estimate of x_0 from ``score[B, ...]`` at ``x[B, ...]`` and integer ``level[B]`` (>= 1)."""
        alpha = expand(take(self.alpha, level), x)
        var = expand(take(self.sigma**2, level), x)
        x0 = (x + var * score) / alpha
        return jnp.clip(x0, -self.clip_range, self.clip_range) if self.clip_x0 else x0

    def model_mean(self, score_fn: ScoreFn, x: Array, level: Array) -> Array:
        """μ_θ(x_j) for ``x[B, ...]`` at integer ``level[B]`` in 1 … J: one network call a row."""
        t = take(self.times, level)
        score = scored(score_fn, x, t)
        if self.kernel == "ancestral":
            a, c, _ = (expand(take(z, level), x) for z in self.posterior)
            return a * x + c * self.predict_x0(score, x, level)
        drift, g = self.sde.coefficients(x, t)
        dt = expand(take(np.concatenate([[0.0], np.diff(self.times)]), level), x)
        return x - (drift - expand(g**2, x) * score) * dt

    def posterior_mean(self, x: Array, x0: Array, level: Array) -> Array:
        """Mean of q(x_{j−1} | x_j, x_0) for ``x, x0 [B, ...]`` at ``level[B]``."""
        a, c, _ = (expand(take(z, level), x) for z in self.posterior)
        return a * x + c * x0


def take(table: np.ndarray, level: Array) -> Array:
    """``table[level]`` as a device array; ``table`` is float64 on host, ``[J + 1]``."""
    return jnp.asarray(table, jnp.result_type(float))[level]


def step_noise(keys: Array, level: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise ``[B, *shape]`` of step ``level[B]`` for per-image ``keys[B]``.

    Keyed by (image, level) alone, so that an image does not depend on its batch or on the level it started from.
    """
    # Drawn flat, the same numbers: XLA compiles the random bits of many-dimensional arrays slowly.
    size = math.prod(shape)
    noise = jax.vmap(lambda k, j: jax.random.normal(jax.random.fold_in(k, j), (size,)))(keys, level)
    return noise.reshape(-1, *shape)


def run(chain: Chain, score_fn: ScoreFn, keys: Array, x: Array, level: Array) -> Array:
    """Reverse chains from ``x[B, ...]`` at integer ``level[B]`` (0 … J) to level 0.

    Rows may start at different levels: the loop runs as long as the highest does, rows below wait. Chunk by level (see
    `anonymity.lanes`) so that little time is spent waiting.
    """

    def cond(carry: tuple[Array, Array]) -> Array:
        return jnp.any(carry[1] > 0)

    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, level = carry
        active = level > 0
        at = jnp.maximum(level, 1)
        mean = chain.model_mean(score_fn, x, at)
        new = mean + expand(take(chain.kernel_std, at), x) * step_noise(keys, at, x.shape[1:])
        return jnp.where(expand(active, x), new, x), jnp.where(active, level - 1, level)

    return jax.lax.while_loop(cond, body, (x, level))[0]
