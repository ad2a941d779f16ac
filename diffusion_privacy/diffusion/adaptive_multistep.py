"""An Adams predictor-corrector with steps of its own for every example; one costly slope a step.

For y' = f(s, y) and q' = r(s, y) as in `diffusion.multistep`: q does not act back on y, and r costs more than f. A step
calls f at the predicted point and (f, r) at the corrected one, where Dormand and Prince's method calls (f, r) six times
for a step that is some three times as long.

Predictor: Adams and Bashforth over the last `PAST` slopes. Corrector: Adams and Moulton over these and the predicted
one, evaluated again, since without that the method is stable for much shorter steps only (Hairer, Nørsett & Wanner,
Solving Ordinary Differential Equations I, 2nd ed., section III.1). Steps are unequal, so each has weights of its own:
integrals of Lagrange polynomials through the points at hand, by a Gauss rule that is exact for their degree, in
products that float32 bears. A first step knows one slope and every further one more, so that the order grows with the
steps. The error of a step is the corrector's distance from that of one order less (local extrapolation, ibid., section
III.7); q is treated as y is, with r in place of f. Steps follow the errors of this step and the one before (Gustafsson,
ACM TOMS 17:533, 1991).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.types import Array

PAST = 5
"""Slopes that a step looks back on: order of the predictor, one less than that of the corrector."""

_GAUSS = np.polynomial.legendre.leggauss((PAST + 2) // 2)
_FIRST = 100
"""The first step is this part of the way: of low order for lack of a past, it has to be short."""
_SAFETY, _SHORTEST, _LONGEST = 0.9, 0.3, 2.0
"""Of the step that the errors ask for; what a step may be of the one before. Longer ones lose the order of the past."""
_LAST, _BEFORE = 0.7, 0.3
"""Exponents of the errors of this step and the one before, times one over the order."""


class _Carry(NamedTuple):
    """Of the loop. Points and slopes of the past are ``[PAST, B, ...]``, the newest last, ``known[B]`` of them true."""

    attempts: Array
    s: Array
    h: Array
    y: Array
    q: Array
    points: Array
    slopes: Array
    rates: Array
    known: Array
    before: Array
    calls: Array


def _weights(points: Array, valid: Array, start: Array, h: Array) -> Array:
    """Weights ``[M, B]`` of values at the ``valid`` ones of ``points[M, B]`` in the integral, from ``start[B]`` over
    ``h[B]``, of the polynomial through them."""
    place = (points - start) / h
    nodes, weights = (jnp.asarray(v, place.dtype) for v in _GAUSS)
    other = valid[None] & ~jnp.eye(len(points), dtype=bool)[:, :, None]
    apart = jnp.where(other, place[:, None] - place[None], 1)
    factors = jnp.where(other, ((nodes[:, None, None] + 1) / 2 - place)[:, None] / apart, 1)
    return jnp.where(valid, h * jnp.tensordot(weights / 2, jnp.prod(factors, axis=2), axes=1, precision="highest"), 0)


def _sum(weights: Array, values: Array) -> Array:
    """Σ_k weights[k, b] values[k, b, ...], in the dtype of the values."""
    shape = (*weights.shape, *(1,) * (values.ndim - 2))
    return jnp.sum(weights.reshape(shape).astype(values.dtype) * values, axis=0)


def _ratio(old: Array, new: Array, error: Array, rtol: float, atol: float) -> Array:
    """Root of the mean square of error over tolerance, ``[B]``."""
    scaled = error / (atol + rtol * jnp.maximum(jnp.abs(old), jnp.abs(new)))
    return jnp.sqrt(jnp.mean(jnp.square(scaled).reshape(len(scaled), math.prod(scaled.shape[1:])), axis=1))


def solve_adaptive_multistep(
    field: Callable[[Array, Array], Array],
    slope: Callable[[Array, Array], tuple[Array, Array]],
    y: Array,
    start: Array,
    end: Array,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
) -> tuple[Array, Array, Array]:
    """y at the end, ∫ r ds and the number of calls, in one loop in which every example has its own steps.

    Args:
      field: ``(s[B], y[B, ...]) -> f [B, ...]``.
      slope: ``(s, y) -> (f, r)``; r ``[B, ...]`` of any shape.
      y: at ``start[B]``.
      start, end: limits of integration, either direction.
      rtol, atol: a step is accepted when the root of the mean square of error/(atol + rtol·|value|) is at most 1, over
        the entries of an example's y and over those of its q.
      max_steps: attempted steps after which the loop gives up.

    Returns:
      ``(y [B, ...], q [B, ...], calls[B])``; calls counts both kinds that an example needed: of two a step one is of
      ``field`` (the loop runs as long as the slowest of the batch). Rows that did not arrive within ``max_steps`` are
      NaN.
    """

    def active(carry: _Carry) -> Array:
        return carry.s != end

    def body(carry: _Carry) -> _Carry:
        going = active(carry)
        left = end - carry.s
        last = jnp.abs(carry.h) >= jnp.abs(left)
        # A row that has arrived computes a step too, which is thrown away; a length of 0 would make it NaN.
        h = jnp.where(going, jnp.where(last, left, carry.h), 1)
        there = jnp.where(going & ~last, carry.s + h, end)
        old = jnp.arange(PAST)[:, None] >= PAST - carry.known
        guess = carry.y + _sum(_weights(carry.points, old, carry.s, h), carry.slopes)
        points = jnp.concatenate([carry.points, there[None]])
        every = jnp.concatenate([old, jnp.ones_like(old[:1])])
        # The corrector of one order less does without the oldest slope.
        fewer = every & (jnp.arange(PAST + 1)[:, None] != PAST - carry.known)
        weights = _weights(points, every, carry.s, h)
        change = weights - _weights(points, fewer, carry.s, h)
        slopes = jnp.concatenate([carry.slopes, field(there, guess)[None]])
        new_y = carry.y + _sum(weights, slopes)
        new_slope, new_rate = slope(there, new_y)
        rates = jnp.concatenate([carry.rates, new_rate[None]])
        new_q = carry.q + _sum(weights, rates)
        ratio = jnp.maximum(
            _ratio(carry.y, new_y, _sum(change, slopes), rtol, atol),
            _ratio(carry.q, new_q, _sum(change, rates), rtol, atol),
        )
        accept = going & (ratio <= 1)
        order = carry.known + 1.0
        grow = _SAFETY * jnp.maximum(ratio, 1e-10) ** (-_LAST / order) * carry.before ** (_BEFORE / order)

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(expand(accept, new), new, old)

        def push(new: Array, past: Array) -> Array:
            shifted = jnp.concatenate([past[1:], new[None]])
            return jnp.where(accept.reshape(1, -1, *(1,) * (past.ndim - 2)), shifted, past)

        return _Carry(
            carry.attempts + 1,
            keep(there, carry.s),
            # A non-finite error compares as a rejection and shrinks the step.
            h * jnp.where(jnp.isfinite(ratio), jnp.clip(grow, _SHORTEST, _LONGEST), _SHORTEST),
            keep(new_y, carry.y),
            keep(new_q, carry.q),
            push(there, carry.points),
            push(new_slope, carry.slopes),
            push(new_rate, carry.rates),
            jnp.where(accept, jnp.minimum(carry.known + 1, PAST), carry.known),
            keep(jnp.maximum(ratio, 1e-10), carry.before),
            carry.calls + 2 * going,
        )

    first, rate = slope(start, y)

    def past(newest: Array) -> Array:
        return jnp.zeros((PAST, *newest.shape), newest.dtype).at[-1].set(newest)

    ones = jnp.ones(start.shape, int)
    carry = _Carry(
        jnp.zeros((), int), start, (end - start) / _FIRST, y, jnp.zeros_like(rate),
        past(start), past(first), past(rate), ones, jnp.ones_like(start), ones,
    )  # fmt: skip
    carry = jax.lax.while_loop(lambda c: jnp.any(active(c)) & (c.attempts < max_steps), body, carry)
    lost = active(carry)
    y, q = (jnp.where(expand(lost, v), jnp.nan, v) for v in (carry.y, carry.q))
    return y, q, carry.calls
