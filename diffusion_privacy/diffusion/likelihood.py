"""Likelihood of a score model along its probability flow, in nats and in bits per dimension.

Instantaneous change of variables (Chen et al., arXiv 1806.07366, eq. 8; Song et al., arXiv 2011.13456, eq. 39) in the
coordinates (λ, z = x/n) of `diffusion.ode`, for a point x_t at time t with D values:

    log p_t(x_t) = log N(x_1; 0, prior_std² I) + D log n(1) − D log n(t) + ∫_{λ(t)}^{λ(1)} div (dz/dλ) dλ

Images of L grey levels u ∈ {0 … L−1}, stored as x = 2u/(L−1) − 1, are dequantised uniformly inside their cell,
x + (w − ½)·2/(L−1), w ~ U[0, 1)^D, and

    bits/dim = −(log p(x + …)/D + log(2/(L−1))) / log 2,

whose mean over w bounds the code length of the discrete image from above (Theis et al., arXiv 1511.01844, section 3.1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_privacy.diffusion import multistep
from diffusion_privacy.diffusion.adaptive_multistep import solve_adaptive_multistep
from diffusion_privacy.diffusion.ode import HEUN, RK4, Field, ProbabilityFlow, solve_adaptive, solve_fixed
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import SDE, Array, ScoreFn

SOLVERS = ("rk4", "heun", "adams", "adaptive", "adaptive_adams")
DIVERGENCES = ("exact", "hutchinson")
PROBES = ("rademacher", "gaussian")


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """How to integrate; the fields of a config.

    Attributes:
      solver: ``"rk4"`` or ``"heun"`` with ``steps`` equal steps of log-SNR; ``"adams"`` (`diffusion.multistep`), which
        needs the divergence once a step. With steps chosen for each image: ``"adaptive"`` (`ode.solve_adaptive`) and
        ``"adaptive_adams"`` (`diffusion.adaptive_multistep`), which needs the divergence in every second call.
      steps: fixed steps.
      rtol, atol, max_steps: of the adaptive solvers; points given up after ``max_steps`` are NaN. The tolerance is of
        every value for ``"adaptive"``, of an image's root mean square for ``"adaptive_adams"``.
      divergence: ``"exact"`` (D tangents a call, ``chunk`` at a time) or ``"hutchinson"``.
      probe: ``"rademacher"`` (least variance) or ``"gaussian"`` vectors of Hutchinson's estimate.
      probes: how many; 2 or more give a standard error.
      chunk: tangents carried at once by the exact divergence; less memory when smaller.

    Raises:
      InputError: an unknown choice or a value out of range.
    """

    solver: str = "rk4"
    steps: int = 40
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 1000
    divergence: str = "hutchinson"
    probe: str = "rademacher"
    probes: int = 4
    chunk: int = 64

    def __post_init__(self) -> None:
        for field, valid, expected in (
            ("solver", self.solver in SOLVERS, f"one of {', '.join(SOLVERS)}"),
            ("divergence", self.divergence in DIVERGENCES, f"one of {', '.join(DIVERGENCES)}"),
            ("probe", self.probe in PROBES, f"one of {', '.join(PROBES)}"),
            ("steps", self.steps >= 1, "1 or more"),
            ("max_steps", self.max_steps >= 1, "1 or more"),
            ("probes", self.probes >= 1, "1 or more"),
            ("chunk", self.chunk >= 1, "1 or more"),
            ("rtol", self.rtol > 0, "positive"),
            ("atol", self.atol > 0, "positive"),
        ):
            if not valid:
                raise InputError(f"likelihood.{field} must be {expected}, got {vars(self)[field]!r}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Result for a batch; a pytree.

    Attributes:
      nats: log p_t(x) of each row, ``[B]``.
      bits_per_dim: see the module's text, ``[B]``; None when no grey levels were given.
      probe_stderr: standard error of ``nats`` from Hutchinson's probes, ``[B]``; 0 for the exact divergence, NaN for a
        single probe. exp(nats) is biased upward by about half its square.
      network_calls: score evaluations a row, ``[B]``; each carries all of its tangents in the same pass, but for
        the Adams methods, where every second one has none.
    """

    nats: Array
    bits_per_dim: Array | None
    probe_stderr: Array
    network_calls: Array


def dequantise(x: Array, keys: Array, levels: int) -> Array:
    """Images ``x[B, ...]`` of ``levels`` grey levels in [-1, 1], each value uniform in its cell; typed ``keys[B]``."""
    size = math.prod(x.shape[1:])
    w = jax.vmap(lambda k: jax.random.uniform(k, (size,), x.dtype))(keys).reshape(x.shape)
    return x + (w - 0.5) * (2 / (levels - 1))


def bits_per_dim(nats: Array, dim: int, levels: int) -> Array:
    """Bits per dimension from the log-density ``nats[B]`` of dequantised images with ``dim`` values."""
    return -(nats / dim + math.log(2 / (levels - 1))) / math.log(2)


def probe_vectors(config: LikelihoodConfig, keys: Array, x: Array) -> Array:
    """Probe vectors ``[probes, B, ...]``, fixed along the path, keyed by image and probe."""
    size = math.prod(x.shape[1:])

    def one(key: Array) -> Array:
        if config.probe == "gaussian":
            return jax.random.normal(key, (size,), x.dtype)
        return jax.random.rademacher(key, (size,), x.dtype)

    def probe(i: Array) -> Array:
        return jax.vmap(lambda k: one(jax.random.fold_in(k, i)))(keys).reshape(x.shape)

    return jax.vmap(probe)(jnp.arange(config.probes))


def hutchinson_slope(field: Callable[[Array, Array], Array], probes: Array) -> Field:
    """Slope of (z, divergence per dimension of each probe [B, P]): drift and vᵀJv in one pass (arXiv 1810.01367)."""

    def slope(log_snr: Array, y: tuple[Array, Array]) -> tuple[Array, Array]:
        z = y[0]

        def along(v: Array) -> tuple[Array, Array]:
            drift, tangent = jax.jvp(lambda u: field(log_snr, u), (z,), (v,))
            return drift, jnp.mean((v * tangent).reshape(v.shape[0], -1), axis=1)

        # The drift does not depend on the probe: out_axes=None keeps one copy of it.
        return jax.vmap(along, out_axes=(None, 1))(probes)

    return slope


def exact_slope(field: Callable[[Array, Array], Array], chunk: int) -> Field:
    """Slope of (z, divergence per dimension [B, 1]) by D unit tangents of one linearisation, ``chunk`` at a time."""

    def slope(log_snr: Array, y: tuple[Array, Array]) -> tuple[Array, Array]:
        z = y[0]
        dim = math.prod(z.shape[1:])
        drift, jvp = jax.linearize(lambda u: field(log_snr, u), z)

        def diagonal(i: Array) -> Array:
            unit = jnp.zeros((dim,), z.dtype).at[i].set(1).reshape(z.shape[1:])
            return jvp(jnp.broadcast_to(unit, z.shape)).reshape(z.shape[0], dim)[:, i]

        diag = jax.lax.map(diagonal, jnp.arange(dim), batch_size=min(chunk, dim))
        return drift, jnp.mean(diag, axis=0)[:, None]

    return slope


def _integrate(
    config: LikelihoodConfig,
    flow: ProbabilityFlow,
    field: Callable[[Array, Array], Array],
    slope: Field,
    y: tuple[Array, Array],
    start: Array,
    end: Array,
) -> tuple[tuple[Array, Array], Array]:
    """((z, divergence) at log-SNR ``end[B]``, calls), from ``y`` at ``start``; ``field`` is the drift of ``slope``."""
    if config.solver == "adaptive":
        return solve_adaptive(slope, y, start, end, rtol=config.rtol, atol=config.atol, max_steps=config.max_steps)

    def both(log_snr: Array, z: Array) -> tuple[Array, Array]:
        return slope(log_snr, (z, y[1]))

    if config.solver == "adaptive_adams":
        *found, calls = solve_adaptive_multistep(
            field, both, y[0], start, end, rtol=config.rtol, atol=config.atol, max_steps=config.max_steps
        )
        return (found[0], found[1]), calls
    if config.solver == "adams":
        grid = multistep.grid(config.steps)
        places, speeds = flow.clock(start, end, jnp.asarray(grid.nodes, start.dtype))
        y = multistep.solve_multistep(field, both, y[0], grid, places, speeds)
        return y, jnp.full(start.shape, 2 * config.steps)
    tableau = RK4 if config.solver == "rk4" else HEUN
    place = jnp.linspace(0, 1, config.steps + 1, dtype=start.dtype)[:, None]
    y = solve_fixed(slope, tableau, y, start + place * (end - start))
    return y, jnp.full(start.shape, config.steps * len(tableau.c))


def log_likelihood(
    score_fn: ScoreFn,
    sde: SDE,
    x: Array,
    keys: Array,
    config: LikelihoodConfig,
    *,
    t: Array | float | None = None,
    levels: int | None = None,
) -> Likelihood:
    """log p_t(x) of the probability flow of ``score_fn``, which is the density its ODE samplers draw from.

    Works in the dtype of ``x`` (float64 under ``jax.enable_x64``). Compile it with the caller's `jax.jit`.

    Args:
      score_fn: the score.
      sde: the forward process.
      x: points ``[B, ...]``; with ``levels``, clean images on their grey levels, dequantised here.
      keys: typed keys ``[B]``, one an image, for probes and dequantisation.
      config: solver and divergence.
      t: time of x, a number or ``[B]`` in [t_min, 1]; None for t_min, the model's data.
      levels: number of grey levels of the source, to have bits per dimension; None for none.

    Raises:
      InputError: ``levels`` below 2.
    """
    if levels is not None and levels < 2:
        raise InputError(f"levels must be 2 or more, got {levels}")
    dim = math.prod(x.shape[1:])
    probe_keys, cell_keys = (jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys) for i in (0, 1))
    if levels is not None:
        x = dequantise(x, cell_keys, levels)
    start = jnp.broadcast_to(jnp.asarray(sde.t_min if t is None else t, x.dtype), x.shape[:1])
    end = jnp.ones_like(start)
    flow = ProbabilityFlow(sde)
    field = flow.field(score_fn)
    exact = config.divergence == "exact"
    slope = exact_slope(field, config.chunk) if exact else hutchinson_slope(field, probe_vectors(config, probe_keys, x))
    y = (x / expand(flow.norm(start), x), jnp.zeros((x.shape[0], 1 if exact else config.probes), x.dtype))
    (z, div), calls = _integrate(config, flow, field, slope, y, flow.log_snr(start), flow.log_snr(end))
    scale = jnp.log(flow.norm(end)) - jnp.log(flow.norm(start))
    nats = (sde.prior_logp(expand(flow.norm(end), z) * z) + dim * scale)[:, None] + dim * div
    if exact:
        stderr = jnp.zeros_like(start)
    else:
        stderr = jnp.std(nats, axis=1, ddof=1) / math.sqrt(config.probes)
    mean = jnp.mean(nats, axis=1)
    return Likelihood(mean, None if levels is None else bits_per_dim(mean, dim, levels), stderr, calls)
