"""Samplers: from noise to data with a score, each a single compiled program.

Image i uses ``keys[i]`` and nothing else random, so that it is the same image in any batch. Every sampler ends without
noise: the last step, from the lowest time of its grid to 0, returns the model's mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_privacy.diffusion.chain import SPACINGS, Chain, run, step_noise, take
from diffusion_privacy.diffusion.ode import HEUN, ProbabilityFlow, solve_adaptive, solve_fixed
from diffusion_privacy.diffusion.sde import expand, scored
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import SDE, Array, ScoreFn


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampler and its settings; the fields of a config.

    Attributes:
      name: a key of `SAMPLERS`.
      steps: steps of the time grid, >= 2; not used by ``"ode_adaptive"``.
      spacing: ``"uniform"``, ``"quadratic"`` or ``"log_snr"`` (see `chain.time_grid`).
      clip_x0: clip the model's estimate of x_0 to [-1, 1] (``"ancestral"`` and ``"ddim"``).
      eta: DDIM's noise, 0 deterministic to 1 ancestral.
      snr: size of the Langevin corrector's move relative to the noise level.
      corrector_steps: corrector moves per predictor step.
      rtol, atol: tolerances of ``"ode_adaptive"``.
      max_steps: attempted steps of ``"ode_adaptive"`` after which an image is given up as NaN.

    Raises:
      InputError: an unknown name or a value out of range.
    """

    name: str = "ancestral"
    steps: int = 100
    spacing: str = "uniform"
    clip_x0: bool = False
    eta: float = 0.0
    snr: float = 0.16
    corrector_steps: int = 1
    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000

    def __post_init__(self) -> None:
        for field, valid, expected in (
            ("name", self.name in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
            ("steps", self.steps >= 2, "2 or more"),
            ("spacing", self.spacing in SPACINGS, f"one of {', '.join(SPACINGS)}"),
            ("clip_x0", not self.clip_x0 or self.name in ("ancestral", "ddim"), f"False for {self.name!r}"),
            ("eta", 0 <= self.eta <= 1, "between 0 and 1"),
            ("snr", self.snr > 0, "positive"),
            ("corrector_steps", self.corrector_steps >= 1, "1 or more"),
            ("rtol", self.rtol > 0, "positive"),
            ("atol", self.atol > 0, "positive"),
            ("max_steps", self.max_steps >= 1, "1 or more"),
        ):
            if not valid:
                raise InputError(f"sampler.{field} must be {expected}, got {vars(self)[field]!r}")


Method = Callable[[ScoreFn, SDE, Sampler, Array, Array], tuple[Array, Array]]
"""``(score_fn, sde, sampler, keys[B], x_1[B, ...]) -> (x_0[B, ...], network calls an image [B])``."""


def prior(sde: SDE, keys: Array, shape: tuple[int, ...]) -> Array:
    """x_1 ``[B, *shape]`` for per-image ``keys[B]``; stream 0 of an image, step noise takes 1, 2, …"""
    return sde.prior_std * step_noise(keys, jnp.zeros(keys.shape[0], int), shape)


def _calls(x: Array, count: int) -> Array:
    return jnp.full(x.shape[0], count)


def _markov(score_fn: ScoreFn, sde: SDE, sampler: Sampler, keys: Array, x: Array) -> tuple[Array, Array]:
    """The reverse chain of `diffusion.chain`: strided DDPM posterior, or Euler-Maruyama of the reverse SDE."""
    chain = Chain(sde, sampler.steps, sampler.name, sampler.spacing, sampler.clip_x0)
    level = jnp.full(x.shape[0], sampler.steps)
    return run(chain, score_fn, keys, x, level), _calls(x, sampler.steps)


def _ddim(score_fn: ScoreFn, sde: SDE, sampler: Sampler, keys: Array, x: Array) -> tuple[Array, Array]:
    """x_s = α_s x̂_0 + √(σ_s² − η²B²) ε̂ + η B z (Song et al., arXiv 2010.02502, eq. 12 and 16); η = 1 is ancestral."""
    chain = Chain(sde, sampler.steps, "ancestral", sampler.spacing, sampler.clip_x0)

    def body(i: Array, x: Array) -> Array:
        level = jnp.full(x.shape[0], sampler.steps - i)
        alpha, sigma = (expand(take(v, level), x) for v in (chain.alpha, chain.sigma))
        alpha_s, sigma_s = (expand(take(v, level - 1), x) for v in (chain.alpha, chain.sigma))
        noise = sampler.eta * expand(take(chain.posterior[2], level), x)
        x0 = chain.predict_x0(scored(score_fn, x, take(chain.times, level)), x, level)
        eps = (x - alpha * x0) / sigma
        new = alpha_s * x0 + jnp.sqrt(jnp.maximum(sigma_s**2 - noise**2, 0.0)) * eps
        return new if sampler.eta == 0 else new + noise * step_noise(keys, level, x.shape[1:])

    return jax.lax.fori_loop(0, sampler.steps, body, x), _calls(x, sampler.steps)


def _predictor_corrector(score_fn: ScoreFn, sde: SDE, sampler: Sampler, keys: Array, x: Array) -> tuple[Array, Array]:
    """Langevin moves at each time, then an Euler-Maruyama step (Song et al., arXiv 2011.13456, algorithms 2 to 5).

    The move is x + e s + √(2e) z with e = 2 α (snr·σ)². In the paper e = 2 α (snr ‖z‖/‖s‖)², norms averaged over the
    batch; here ‖s‖ is replaced by its size √d/σ for clean data, so that an image does not depend on its batch and the
    move leaves p_t unchanged up to its discretisation.
    """
    chain = Chain(sde, sampler.steps, "euler_maruyama", sampler.spacing)

    def body(i: Array, x: Array) -> Array:
        level = jnp.full(x.shape[0], sampler.steps - i)
        t = take(chain.times, level)
        size = expand(2 * take(chain.alpha * (sampler.snr * chain.sigma) ** 2, level), x)

        def correct(c: Array, x: Array) -> Array:
            # Streams after the predictor's 0 … steps.
            noise = step_noise(
                keys, sampler.steps + 1 + i * sampler.corrector_steps + jnp.full_like(level, c), x.shape[1:]
            )
            return x + size * scored(score_fn, x, t) + jnp.sqrt(2 * size) * noise

        x = jax.lax.fori_loop(0, sampler.corrector_steps, correct, x)
        noise = step_noise(keys, level, x.shape[1:])
        return chain.model_mean(score_fn, x, level) + expand(take(chain.kernel_std, level), x) * noise

    return jax.lax.fori_loop(0, sampler.steps, body, x), _calls(x, sampler.steps * (1 + sampler.corrector_steps))


def denoise(score_fn: ScoreFn, sde: SDE, x: Array, t: Array) -> Array:
    """E[x_0 | x_t = x] by Tweedie's formula."""
    return (x + expand(sde.sigma(t) ** 2, x) * scored(score_fn, x, t)) / expand(sde.alpha(t), x)


def _ode_heun(score_fn: ScoreFn, sde: SDE, sampler: Sampler, keys: Array, x: Array) -> tuple[Array, Array]:
    """Heun's steps of the probability flow on the grid, then the mean at its lowest time (arXiv 2206.00364, alg. 1)."""
    del keys
    flow = ProbabilityFlow(sde)
    times = jnp.asarray(Chain(sde, sampler.steps, "ancestral", sampler.spacing).times[:0:-1], x.dtype)
    times = jnp.maximum(times, sde.t_min)
    nodes = jnp.broadcast_to(flow.log_snr(times)[:, None], (sampler.steps, x.shape[0]))
    high, low = (jnp.full(x.shape[0], t) for t in (times[0], times[-1]))
    z = solve_fixed(flow.field(score_fn), HEUN, x / expand(flow.norm(high), x), nodes)
    return denoise(score_fn, sde, expand(flow.norm(low), z) * z, low), _calls(x, 2 * sampler.steps - 1)


def _ode_adaptive(score_fn: ScoreFn, sde: SDE, sampler: Sampler, keys: Array, x: Array) -> tuple[Array, Array]:
    """Dormand-Prince along the probability flow from 1 to t_min, a step size for each image, then the mean there."""
    del keys
    flow = ProbabilityFlow(sde)
    high, low = jnp.ones(x.shape[0], x.dtype), jnp.full(x.shape[0], sde.t_min, x.dtype)
    z, calls = solve_adaptive(
        flow.field(score_fn),
        x / expand(flow.norm(high), x),
        flow.log_snr(high),
        flow.log_snr(low),
        rtol=sampler.rtol,
        atol=sampler.atol,
        max_steps=sampler.max_steps,
    )
    return denoise(score_fn, sde, expand(flow.norm(low), z) * z, low), calls + 1


SAMPLERS: dict[str, Method] = {
    "ancestral": _markov,
    "euler_maruyama": _markov,
    "ddim": _ddim,
    "predictor_corrector": _predictor_corrector,
    "ode_heun": _ode_heun,
    "ode_adaptive": _ode_adaptive,
}
"""Methods by name. A new sampler is added here, and its cost to `network_calls`."""


def sample(score_fn: ScoreFn, sde: SDE, sampler: Sampler, keys: Array, shape: tuple[int, ...]) -> Array:
    """Images ``[B, *shape]`` for per-image typed ``keys[B]``; compile it with the caller's `jax.jit`.

    Image i of the whole run should have the key ``fold_in(key, i)``: its pixels then depend on neither batch size nor
    device. Rows that ``"ode_adaptive"`` could not finish are NaN.
    """
    return sample_counted(score_fn, sde, sampler, keys, shape)[0]


def sample_counted(
    score_fn: ScoreFn, sde: SDE, sampler: Sampler, keys: Array, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """`sample` and the network calls that each image needed, int ``[B]``."""
    return SAMPLERS[sampler.name](score_fn, sde, sampler, keys, prior(sde, keys, shape))


def network_calls(sampler: Sampler) -> int | None:
    """Score evaluations an image; None for ``"ode_adaptive"``, where it depends on the image (`sample_counted`)."""
    if sampler.name == "ode_adaptive":
        return None
    if sampler.name == "ode_heun":
        return 2 * sampler.steps - 1
    return sampler.steps * (1 + sampler.corrector_steps if sampler.name == "predictor_corrector" else 1)
