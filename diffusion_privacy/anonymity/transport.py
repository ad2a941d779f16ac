"""Deterministic samplers as maps between noise levels, with their inverses and Jacobians.

A deterministic sampler is a chain of maps x_j → x_{j−1} on the grid of `diffusion.chain`, and the density of its law at
level j follows from the prior by the change of variables,

    log p_j(x_j) = log p_{j+1}(x_{j+1}) − log |det ∂x_j/∂x_{j+1}|.

`Discrete` takes the steps as they are run: DDIM with η = 0 (Song et al., arXiv 2010.02502, eq. 12) or Heun's steps of
the probability flow (arXiv 2206.00364, algorithm 1). Their determinants are computed from whole Jacobians, exactly up
to rounding: d tangents and d³ operations a step. There is no cheap way: a stochastic estimate of log|det| is unbiased
at best before exp, and biased after it. `Continuous` is the flow itself, whose divergence is a trace: exact, or by
Hutchinson's probes for images too large for d tangents, with the error that the probes show.

A step of DDIM is the gradient of a convex function where the score is that of a law (its Jacobian is a positive
multiple of I plus one of the posterior's covariance), hence invertible. A learned score need not be so kind: the
inverse is found by Newton's method, and steps where that fails, or where the determinant's sign says that the map has
folded, are counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from diffusion_privacy.diffusion.chain import Chain, take
from diffusion_privacy.diffusion.likelihood import (
    LikelihoodConfig,
    exact_slope,
    hutchinson_slope,
    probe_vectors,
)
from diffusion_privacy.diffusion.ode import HEUN, RK4, ProbabilityFlow, solve_fixed
from diffusion_privacy.diffusion.samplers import denoise
from diffusion_privacy.diffusion.sde import expand, scored
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array, ScoreFn

MAX_DIM = 1024
"""Values of an image up to which determinants and divergences are computed exactly."""

_BACKTRACK = (1.0, 0.5, 0.25, 0.125, 0.03, 0.008)


class Inverse(NamedTuple):
    """``x[B, ...]`` one level up; whether it was found and whether the score broke (was not finite), bool ``[B]``;
    network calls ``[B]``, tangents included."""

    x: Array
    found: Array
    broken: Array
    calls: Array


class Down(NamedTuple):
    """``x[B, ...]`` one level down; log|det| of the step ``[B, P]``, one column a probe; its sign ``[B]``."""

    x: Array
    log_det: Array
    sign: Array


class Transport(Hashable, Protocol):
    """A deterministic sampler on a grid; hashable, compiled in."""

    @property
    def chain(self) -> Chain:
        """The grid of times."""
        ...

    @property
    def title(self) -> str:
        """What it is called in a table."""
        ...

    @property
    def columns(self) -> int:
        """P, estimates of each log-determinant; 1 where it is exact."""
        ...

    def tangents(self, dim: int) -> int:
        """Tangents that a row of ``dim`` values carries at once."""
        ...

    def check(self, dim: int) -> None:
        """Raises InputError where images of ``dim`` values are too large."""
        ...

    def step(self, score_fn: ScoreFn, x: Array, level: Array) -> Array:
        """x one level below ``level[B]`` (1 … J)."""
        ...

    def down(self, score_fn: ScoreFn, x: Array, level: Array, keys: Array) -> Down:
        """`step` with its determinant, ``level`` >= 2; ``keys[B]`` are for probes."""
        ...

    def up(self, score_fn: ScoreFn, x: Array, level: Array) -> Inverse:
        """The x at ``level`` (>= 2) that `step` takes to ``x``."""
        ...

    def step_calls(self, level: int) -> int:
        """Network calls of `step` from ``level``."""
        ...

    def down_calls(self, dim: int) -> int:
        """Network calls of `down`, every tangent counted as one."""
        ...


def _check_dim(dim: int) -> None:
    if dim > MAX_DIM:
        raise InputError(
            f"images: expected at most {MAX_DIM} values for exact determinants, got {dim}; the probability flow with "
            "Hutchinson's probes takes more"
        )


def _flow_times(chain: Chain, level: Array) -> Array:
    """Times as `samplers` takes them: the flow is not followed below t_min."""
    return jnp.maximum(take(chain.times, level), chain.sde.t_min)


def _flow_step(chain: Chain, score_fn: ScoreFn, x: Array, start: Array, end: Array, fourth: bool) -> Array:
    """One Runge-Kutta step of the flow between two levels ``[B]``, either direction."""
    flow = ProbabilityFlow(chain.sde)
    t, s = _flow_times(chain, start), _flow_times(chain, end)
    nodes = jnp.stack([flow.log_snr(t), flow.log_snr(s)])
    z = solve_fixed(flow.field(score_fn), RK4 if fourth else HEUN, x / expand(flow.norm(t), x), nodes)
    return expand(flow.norm(s), z) * z


@dataclasses.dataclass(frozen=True)
class Discrete:
    """DDIM (η = 0) or Heun's sampler as they are run.

    Attributes:
      chain: the grid; ``clip_x0`` as the sampler has it (``"ddim"`` only).
      name: ``"ddim"`` or ``"ode_heun"``, as in `diffusion.samplers`.
      iterations: Newton steps an inverse may take.
      tolerance: an inverse is found when its residual is below ``tolerance`` times the noise level it is at.
      chunk: tangents carried at once.
    """

    chain: Chain
    name: str = "ddim"
    iterations: int = 30
    tolerance: float = 1e-4
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.name not in ("ddim", "ode_heun"):
            raise InputError(f"sampler.name: expected 'ddim' or 'ode_heun', got {self.name!r}")
        if self.chain.clip_x0 and self.name != "ddim":
            raise InputError("sampler.clip_x0: expected False for 'ode_heun'")

    @property
    def title(self) -> str:
        return "DDIM, exact determinants" if self.name == "ddim" else "Heun's steps, exact determinants"

    @property
    def columns(self) -> int:
        return 1

    def tangents(self, dim: int) -> int:
        return min(dim, self.chunk)

    def check(self, dim: int) -> None:
        _check_dim(dim)

    def step(self, score_fn: ScoreFn, x: Array, level: Array) -> Array:
        chain = self.chain
        if self.name == "ode_heun":
            last = denoise(score_fn, chain.sde, x, _flow_times(chain, jnp.ones_like(level)))
            flow = _flow_step(chain, score_fn, x, level, jnp.maximum(level - 1, 1), fourth=False)
            return jnp.where(expand(level == 1, x), last, flow)
        alpha, sigma = (expand(take(v, level), x) for v in (chain.alpha, chain.sigma))
        alpha_s, sigma_s = (expand(take(v, level - 1), x) for v in (chain.alpha, chain.sigma))
        x0 = chain.predict_x0(scored(score_fn, x, take(chain.times, level)), x, level)
        return alpha_s * x0 + sigma_s * (x - alpha * x0) / sigma

    def _jacobian(self, score_fn: ScoreFn, x: Array, level: Array) -> tuple[Array, Array]:
        """``(step [B, d], ∂step/∂x [B, d, d])`` of flattened rows, `chunk` columns at a time."""
        dim = math.prod(x.shape[1:])
        flat = x.reshape(x.shape[0], dim)
        new, jvp = jax.linearize(lambda y: self.step(score_fn, y.reshape(x.shape), level).reshape(flat.shape), flat)

        def column(i: Array) -> Array:
            return jvp(jnp.zeros_like(flat).at[:, i].set(1))

        columns = jax.lax.map(column, jnp.arange(dim), batch_size=min(self.chunk, dim))
        return new, jnp.moveaxis(columns, 0, 2)

    def down(self, score_fn: ScoreFn, x: Array, level: Array, keys: Array) -> Down:
        del keys
        new, jacobian = self._jacobian(score_fn, x, level)
        sign, log_det = jnp.linalg.slogdet(jacobian)
        return Down(new.reshape(x.shape), log_det[:, None], sign)

    def up(self, score_fn: ScoreFn, x: Array, level: Array) -> Inverse:
        chain, dim = self.chain, math.prod(x.shape[1:])
        goal = x.reshape(x.shape[0], dim)
        scale = take(chain.sigma, level - 1) * math.sqrt(dim)

        def residual(y: Array) -> Array:
            return self.step(score_fn, y.reshape(x.shape), level).reshape(goal.shape) - goal

        def body(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            y, error, count, calls = carry
            value, jacobian = self._jacobian(score_fn, y.reshape(x.shape), level)
            move = jnp.linalg.solve(jacobian, (value - goal)[:, :, None])[:, :, 0]
            tried = jnp.asarray(_BACKTRACK)
            errors = jax.lax.map(lambda size: jnp.linalg.norm(residual(y - size * move), axis=1), tried)
            errors = jnp.where(jnp.isfinite(errors), errors, jnp.inf)
            best, lowest = jnp.argmin(errors, axis=0), jnp.min(errors, axis=0)
            todo = error > self.tolerance * scale
            better = todo & (lowest < error)
            y = jnp.where(better[:, None], y - tried[best][:, None] * move, y)
            calls = calls + jnp.where(todo, dim + 1 + len(_BACKTRACK), 0)
            # A row that cannot improve is given up: another try would be the same.
            return y, jnp.where(better, lowest, jnp.where(todo, jnp.inf, error)), count + 1, calls

        def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
            error = carry[1]
            return jnp.any((error > self.tolerance * scale) & jnp.isfinite(error)) & (carry[2] < self.iterations)

        first = self._guess(score_fn, x, level).reshape(goal.shape)
        error = jnp.linalg.norm(residual(first), axis=1)
        calls = jnp.full(x.shape[0], 2)
        broken = ~jnp.isfinite(error)
        y, error, _, calls = jax.lax.while_loop(unfinished, body, (first, error, jnp.zeros((), int), calls))
        return Inverse(y.reshape(x.shape), error <= self.tolerance * scale, broken, calls)

    def _guess(self, score_fn: ScoreFn, x: Array, level: Array) -> Array:
        """The flow's step upwards with the slope at the lower end ("DDIM inversion")."""
        chain = self.chain
        alpha, sigma = (expand(take(v, level), x) for v in (chain.alpha, chain.sigma))
        alpha_s, sigma_s = (expand(take(v, level - 1), x) for v in (chain.alpha, chain.sigma))
        x0 = chain.predict_x0(scored(score_fn, x, take(chain.times, level - 1)), x, level - 1)
        return alpha * x0 + sigma * (x - alpha_s * x0) / sigma_s

    def step_calls(self, level: int) -> int:
        return 2 if self.name == "ode_heun" and level > 1 else 1

    def down_calls(self, dim: int) -> int:
        return self.step_calls(2) * (dim + 1)


@dataclasses.dataclass(frozen=True)
class Continuous:
    """The probability flow from t = 1 to t_min, then the mean there, by one RK4 step from level to level.

    Speaks of the flow itself: how far the solver is from it shows in the residual of going up and down again.

    Attributes:
      chain: the grid; ``spacing="log_snr"`` suits the flow.
      divergence: ``"exact"`` (d tangents) or ``"hutchinson"``.
      probes: Hutchinson's vectors, at least 4, so that their spread tells the error.
      chunk: tangents carried at once by the exact divergence.
    """

    chain: Chain
    divergence: str = "hutchinson"
    probes: int = 8
    chunk: int = 64

    def __post_init__(self) -> None:
        LikelihoodConfig(divergence=self.divergence, chunk=self.chunk)
        if self.probes < 4:
            raise InputError(f"probes: expected 4 or more, got {self.probes}")
        if self.chain.clip_x0:
            raise InputError("sampler.clip_x0: expected False for the probability flow")

    @property
    def title(self) -> str:
        how = "exact divergence" if self.divergence == "exact" else f"{self.probes} probes"
        return f"probability flow, {how}"

    @property
    def columns(self) -> int:
        return 1 if self.divergence == "exact" else self.probes

    def tangents(self, dim: int) -> int:
        return min(dim, self.chunk) if self.divergence == "exact" else self.probes

    def check(self, dim: int) -> None:
        if self.divergence == "exact":
            _check_dim(dim)

    def step(self, score_fn: ScoreFn, x: Array, level: Array) -> Array:
        chain = self.chain
        last = denoise(score_fn, chain.sde, x, _flow_times(chain, jnp.ones_like(level)))
        flow = _flow_step(chain, score_fn, x, level, jnp.maximum(level - 1, 1), fourth=True)
        return jnp.where(expand(level == 1, x), last, flow)

    def down(self, score_fn: ScoreFn, x: Array, level: Array, keys: Array) -> Down:
        chain, dim = self.chain, math.prod(x.shape[1:])
        flow = ProbabilityFlow(chain.sde)
        field = flow.field(score_fn)
        if self.divergence == "exact":
            slope = exact_slope(field, self.chunk)
        else:
            config = LikelihoodConfig(probes=self.probes)
            slope = hutchinson_slope(field, probe_vectors(config, keys, x))
        t, s = _flow_times(chain, level), _flow_times(chain, level - 1)
        y = (x / expand(flow.norm(t), x), jnp.zeros((x.shape[0], self.columns), x.dtype))
        z, div = solve_fixed(slope, RK4, y, jnp.stack([flow.log_snr(t), flow.log_snr(s)]))
        scale = dim * (jnp.log(flow.norm(s)) - jnp.log(flow.norm(t)))
        # A flow never folds.
        return Down(expand(flow.norm(s), z) * z, scale[:, None] + dim * div, jnp.ones_like(t))

    def up(self, score_fn: ScoreFn, x: Array, level: Array) -> Inverse:
        new = _flow_step(self.chain, score_fn, x, level - 1, level, fourth=True)
        broken = jnp.any(~jnp.isfinite(new.reshape(x.shape[0], -1)), axis=1)
        return Inverse(new, jnp.ones(x.shape[0], bool), broken, jnp.full(x.shape[0], 4))

    def step_calls(self, level: int) -> int:
        return 4 if level > 1 else 1

    def down_calls(self, dim: int) -> int:
        return 4 * (1 + (dim if self.divergence == "exact" else self.probes))
