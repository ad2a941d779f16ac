"""The probability-flow ODE and Runge-Kutta solvers with one step size per example.

Every Gaussian process has the flow dx/dt = f − ½ g² ∇log p_t(x) (Song et al., arXiv 2011.13456, eq. 13). With
λ = log α²/σ², n = √(α² + σ²), z = x/n and σ̂ = σ/n it becomes

    dz/dλ = −½ σ̂ (ε(x, t) − σ̂ z),    ε = −σ ∇log p_t(x)

because d(x/α)/d(σ/α) = ε (Karras et al., arXiv 2206.00364, eq. 4 for any scaling). It has no fast linear part, z keeps
the scale of the data for VP, sub-VP and VE alike, and equal steps of λ suit all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.diffusion.sde import expand, scored
from diffusion_privacy.types import SDE, Array, PyTree, ScoreFn

Field = Callable[[Array, PyTree], PyTree]
"""``f(s[B], y) -> dy/ds`` for a pytree ``y`` of ``[B, ...]``."""


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow:
    """The flow of a process in the coordinates (λ, z) above, for times between ``sde.t_min`` and 1."""

    sde: SDE

    def log_snr(self, t: Array) -> Array:
        """λ(t) = log α²/σ² for ``t[B]`` > 0; decreasing in t."""
        return 2 * (jnp.log(self.sde.alpha(t)) - jnp.log(self.sde.sigma(t)))

    def norm(self, t: Array) -> Array:
        """n(t) = √(α² + σ²): z = x/n. Shape of ``t``."""
        return jnp.sqrt(self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2)

    @functools.cached_property
    def _table(self) -> tuple[float, float, np.ndarray]:
        """λ(1), spacing in λ, and log t at equally spaced λ from λ(1) to λ(t_min)."""
        fine = np.geomspace(self.sde.t_min, 1.0, 8193)
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            values = np.asarray(self.log_snr(jnp.asarray(fine, jnp.float64)))
        nodes = np.linspace(values[-1], values[0], 2049)
        return float(nodes[0]), float(nodes[1] - nodes[0]), np.interp(nodes, values[::-1], np.log(fine[::-1]))

    def time(self, log_snr: Array) -> Array:
        """The time in [t_min, 1] of ``log_snr[B]``: a table lookup, then one Newton step with dλ/dt = −g²/σ²."""
        start, spacing, table = self._table
        place = jnp.clip((log_snr - start) / spacing, 0.0, len(table) - 1.0)
        cell = jnp.minimum(place.astype(int), len(table) - 2)
        log_t = jnp.asarray(table, log_snr.dtype)
        t = jnp.exp(log_t[cell] + (place - cell) * (log_t[cell + 1] - log_t[cell]))
        t = jnp.clip(t, self.sde.t_min, 1.0)
        g = self.sde.coefficients(t[:, None], t)[1]
        newton = t + (self.log_snr(t) - log_snr) * jnp.square(self.sde.sigma(t) / g)
        return jnp.clip(newton, self.sde.t_min, 1.0)

    def clock(self, start: Array, end: Array, places: Array) -> tuple[Array, Array]:
        """λ where a fraction of the way from ``start[B]`` to ``end[B]`` is gone, half measured in λ and half in t.

        What a network does with its input changes over a span of λ; what it does with its time, over a span of t, which
        at the noisy end is much of λ. Equal steps of the mean of both shares resolve either.

        Args:
          start, end: values of λ.
          places: fractions u, ``[N]`` in [0, 1].

        Returns:
          (λ, dλ/du), each ``[N, B]``.
        """
        count, batch = places.shape[0], start.shape[0]
        first, last = self.time(start), self.time(end)
        # Where there is no way to go, anything with the signs of a way; its length below is 0.
        way, span = jnp.where(end == start, -1.0, end - start), jnp.where(end == start, 1.0, last - first)

        def time(log_snr: Array) -> Array:
            return self.time(log_snr.reshape(-1)).reshape(count, batch)

        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            gone = (middle - start) / way / 2 + (time(middle) - first) / span / 2
            early = gone < places[:, None]
            return jnp.where(early, middle, low), jnp.where(early, high, middle)

        shape = (count, batch)
        ends = (jnp.broadcast_to(start, shape), jnp.broadcast_to(end, shape))
        low, high = jax.lax.fori_loop(0, jnp.finfo(start.dtype).nmant + 5, halve, ends)
        log_snr = (low + high) / 2
        t = time(log_snr).reshape(-1)
        g = self.sde.coefficients(t[:, None], t)[1]
        slowness = jnp.square(self.sde.sigma(t) / g).reshape(shape)
        return log_snr, 2 * (end - start) / (1 - way / span * slowness)

    def field(self, score_fn: ScoreFn) -> Callable[[Array, Array], Array]:
        """``(λ[B], z[B, ...]) -> dz/dλ [B, ...]``, one network call."""

        def field(log_snr: Array, z: Array) -> Array:
            t = self.time(log_snr)
            noise = expand(jnp.sqrt(jax.nn.sigmoid(-log_snr)), z)
            n = expand(self.norm(t), z)
            eps = -noise * n * scored(score_fn, n * z, t)
            return -0.5 * noise * (eps - noise * z)

        return field


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: stage matrix, nodes, weights, and weights of the error estimate (or None)."""

    a: np.ndarray
    c: np.ndarray
    b: np.ndarray
    error: np.ndarray | None = None


HEUN = Tableau(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([0.0, 1.0]), np.array([0.5, 0.5]))
"""Second order."""

RK4 = Tableau(
    np.array([[0, 0, 0, 0], [0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 1.0, 0]]),
    np.array([0, 0.5, 0.5, 1.0]),
    np.array([1, 2, 2, 1]) / 6,
)
"""The classical method of fourth order."""

_DP_B = np.array([35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0])
DORMAND_PRINCE = Tableau(
    np.array(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [1 / 5, 0, 0, 0, 0, 0, 0],
            [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
            [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
            _DP_B,
        ]
    ),
    np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1]),
    _DP_B,
    _DP_B - np.array([5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40]),
)
"""Fifth order, error estimate of fourth; the last stage is the first of the next step (Dormand & Prince 1980)."""


def _combine(y: PyTree, h: Array, weights: Array, stages: PyTree) -> PyTree:
    """y + h Σ_i weights_i stages_i, with ``h[B]`` and stages ``[S, B, ...]``."""

    def combined(v: Array, k: Array) -> Array:
        # An accelerator would round weights and slopes to ten bits or fewer: a way up and down would not meet again.
        slope = jnp.tensordot(weights.astype(v.dtype), k, axes=1, precision="highest")
        return v + expand(h, v).astype(v.dtype) * slope

    return jax.tree.map(combined, y, stages)


def _stages(field: Field, tableau: Tableau, s: Array, h: Array, y: PyTree, first: PyTree | None) -> PyTree:
    """All stage slopes ``[S, B, ...]``; a loop, so that the program holds the network once, not once a stage."""
    count = len(tableau.c)
    a, c = jnp.asarray(tableau.a, s.dtype), jnp.asarray(tableau.c, s.dtype)
    slopes = jax.tree.map(lambda v: jnp.zeros((count, *v.shape), v.dtype), y)
    if first is not None:
        slopes = jax.tree.map(lambda k, v: k.at[0].set(v), slopes, first)

    def stage(i: Array, slopes: PyTree) -> PyTree:
        new = field(s + c[i] * h, _combine(y, h, a[i], slopes))
        return jax.tree.map(lambda k, v: k.at[i].set(v), slopes, new)

    return jax.lax.fori_loop(0 if first is None else 1, count, stage, slopes)


def solve_fixed(field: Field, tableau: Tableau, y: PyTree, nodes: Array) -> PyTree:
    """y at the last of ``nodes[K + 1, B]``, from y at the first, by K steps of ``len(tableau.c)`` calls each."""

    def step(i: Array, y: PyTree) -> PyTree:
        h = nodes[i + 1] - nodes[i]
        slopes = _stages(field, tableau, nodes[i], h, y, None)
        return _combine(y, h, jnp.asarray(tableau.b, nodes.dtype), slopes)

    return jax.lax.fori_loop(0, nodes.shape[0] - 1, step, y)


class _Carry(NamedTuple):
    step: Array
    s: Array
    h: Array
    y: PyTree
    slope: PyTree
    calls: Array


def solve_adaptive(
    field: Field, y: PyTree, start: Array, end: Array, *, rtol: float, atol: float, max_steps: int
) -> tuple[PyTree, Array]:
    """Dormand-Prince with a step size of its own for every example, in one loop.

    Args:
      field: the slope.
      y: pytree of ``[B, ...]`` at ``start[B]``.
      start, end: limits of integration, either direction.
      rtol, atol: a step is accepted when every entry's error is within atol + rtol·|y|.
      max_steps: attempted steps after which the loop gives up.

    Returns:
      ``(y at end, calls[B])``; calls counts slope evaluations an example needed (the loop runs as long as the slowest
      of the batch). Rows that did not arrive within ``max_steps`` are NaN.
    """

    def active(carry: _Carry) -> Array:
        return carry.s != end

    def body(carry: _Carry) -> _Carry:
        left = end - carry.s
        last = jnp.abs(carry.h) >= jnp.abs(left)
        h = jnp.where(last, left, carry.h)
        slopes = _stages(field, DORMAND_PRINCE, carry.s, h, carry.y, carry.slope)
        new = _combine(carry.y, h, jnp.asarray(DORMAND_PRINCE.b, h.dtype), slopes)
        ratio = _error_ratio(carry.y, new, h, slopes, rtol, atol)
        accept = active(carry) & (ratio <= 1)
        keep = functools.partial(_select, accept)
        # A non-finite error compares as a rejection and shrinks the step.
        grow = jnp.clip(0.9 * jnp.maximum(ratio, 1e-10) ** -0.2, 0.2, 5.0)
        return _Carry(
            carry.step + 1,
            jnp.where(accept, jnp.where(last, end, carry.s + h), carry.s),
            h * jnp.where(jnp.isfinite(ratio), grow, 0.2),
            jax.tree.map(keep, new, carry.y),
            jax.tree.map(keep, jax.tree.map(lambda k: k[-1], slopes), carry.slope),
            carry.calls + (len(DORMAND_PRINCE.c) - 1) * active(carry),
        )

    first = _Carry(jnp.zeros((), int), start, (end - start) / 40, y, field(start, y), jnp.ones(start.shape, int))
    carry = jax.lax.while_loop(lambda c: jnp.any(active(c)) & (c.step < max_steps), body, first)
    lost = active(carry)
    return jax.tree.map(lambda v: jnp.where(expand(lost, v), jnp.nan, v), carry.y), carry.calls


def _select(accept: Array, new: Array, old: Array) -> Array:
    return jnp.where(expand(accept, new), new, old)


def _error_ratio(y: PyTree, new: PyTree, h: Array, slopes: PyTree, rtol: float, atol: float) -> Array:
    """Largest error over tolerance of any entry, ``[B]``."""
    weights = jnp.asarray(DORMAND_PRINCE.error, h.dtype)
    error = _combine(jax.tree.map(jnp.zeros_like, y), h, weights, slopes)

    def ratio(u: Array, v: Array, e: Array) -> Array:
        scaled = jnp.abs(e) / (atol + rtol * jnp.maximum(jnp.abs(u), jnp.abs(v)))
        return jnp.max(scaled.reshape(scaled.shape[0], math.prod(scaled.shape[1:])), axis=1)

    return functools.reduce(jnp.maximum, jax.tree.leaves(jax.tree.map(ratio, y, new, error)))
