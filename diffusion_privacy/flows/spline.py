"""Monotone rational-quadratic splines as the element-wise map of a coupling."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from diffusion_privacy.types import Array

# atan(x)/x as a polynomial of x² on [0, 1], from its interpolant in Chebyshev's points; at most 1.2e-7 off in float32.
_ARCTAN = (
    0.9999999997911724,
    -0.3333330413679881,
    0.19998665224382633,
    -0.14265077777599164,
    0.10954623009907605,
    -0.08405573346688691,
    0.0579185835591233,
    -0.031072557652616673,
    0.010826334729903053,
    -0.0017675269161835563,
)


def soft_clamp(raw: Array, clamp: float) -> Array:
    """``a·(2/π)·atan(raw)``: smooth, odd, within (−a, a), 0 at 0 (Ardizzone et al., arXiv 1907.02392)."""
    return clamp * (2 / math.pi) * arctan(raw)


@jax.custom_jvp
def arctan(x: Array) -> Array:
    """atan(x) to 2e-7 of itself in float32, and `jnp.arctan` in other types.

    XLA calls a library for each number, which takes a CPU 11 ns where the polynomial takes half of one: for a spline,
    more than half of its time.
    """
    if x.dtype != jnp.float32:
        return jnp.arctan(x)
    size = jnp.abs(x)
    inside = size <= 1
    v = jnp.where(inside, x, -1 / jnp.where(inside, 1.0, x))
    value = v * jnp.polyval(jnp.asarray(_ARCTAN[::-1], x.dtype), v * v)
    return jnp.where(inside, value, value + jnp.copysign(jnp.float32(math.pi / 2), x))


@arctan.defjvp
def _arctan_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return arctan(x), tangent / (1 + x * x)


@dataclasses.dataclass(frozen=True)
class Spline:
    """y = RQS(x) on [−bound, bound], y = x outside, with C¹ joints (Durkan et al., arXiv 1906.04032, eq. 4 to 8).

    Parameters a element: ``bins`` widths, ``bins`` heights and ``bins − 1`` inner slopes, all unconstrained; zeros give
    the identity. The outer slopes are 1. Every parameter passes the soft clamp of the affine couplings, p ->
    a·(2/π)·atan(p), before widths and heights become shares (softmax) and slopes factors (exp). Without it a bin can be
    flat to 1e-7 of its length, and then float32 cannot be inverted at release noise.

    Attributes:
      bins: number of bins, >= 2.
      bound: half-width of the interval; latents are about N(0, 1), so 3 to 6.
      clamp: a > 0; inner slopes lie in (exp(−a), exp(a)), two bins differ by at most exp(2a).
    """

    bins: int = 8
    bound: float = 4.0
    clamp: float = 1.5

    @property
    def num_parameters(self) -> int:
        return 3 * self.bins - 1

    def forward(self, params: Array, x: Array) -> tuple[Array, Array]:
        """``params[..., 3·bins − 1], x[...] -> (y[...], log dy/dx [...])``."""
        left, width, bottom, height, slopes = self._knots(params)
        inside = jnp.abs(x) < self.bound
        # Outside points are moved to the centre first, else a NaN of theirs reaches the gradient through `where`.
        v = jnp.where(inside, x, 0.0)
        pick = self._bin(v, left)
        x0, w, y0, h, d0, d1 = (
            jnp.sum(pick * a, -1) for a in (left, width, bottom, height, slopes[..., :-1], slopes[..., 1:])
        )
        s, xi = h / w, jnp.clip((v - x0) / w, 0.0, 1.0)
        y = y0 + h * _fraction(xi, s, d0, d1)
        return jnp.where(inside, y, x), jnp.where(inside, _log_slope(xi, s, d0, d1), 0.0)

    def inverse(self, params: Array, y: Array) -> tuple[Array, Array]:
        """``params[..., 3·bins − 1], y[...] -> (x[...], log dx/dy [...])``."""
        left, width, bottom, height, slopes = self._knots(params)
        inside = jnp.abs(y) < self.bound
        v = jnp.where(inside, y, 0.0)
        pick = self._bin(v, bottom)
        x0, w, y0, h, d0, d1 = (
            jnp.sum(pick * a, -1) for a in (left, width, bottom, height, slopes[..., :-1], slopes[..., 1:])
        )
        # The root of a·ξ² + b·ξ + c = 0 that lies in [0, 1] (eq. 25 to 29), in the form that does not cancel.
        s, rise = h / w, v - y0
        curve = rise * (d0 + d1 - 2 * s)
        a, b, c = h * (s - d0) + curve, h * d0 - curve, -s * rise
        root = jnp.sqrt(jnp.maximum(b * b - 4 * a * c, 0.0))
        small = b >= 0
        xi = jnp.where(small, -2 * c, root - b) / jnp.where(small, b + root, 2 * a)
        xi = jnp.clip(xi, 0.0, 1.0)
        return jnp.where(inside, x0 + w * xi, y), jnp.where(inside, -_log_slope(xi, s, d0, d1), 0.0)

    def _knots(self, params: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Left edges, widths, bottom edges, heights, each ``[..., bins]``, and slopes ``[..., bins + 1]``."""
        k = self.bins
        p = soft_clamp(params, self.clamp)
        width, height = (2 * self.bound * jax.nn.softmax(v, axis=-1) for v in (p[..., :k], p[..., k : 2 * k]))
        inner = jnp.exp(p[..., 2 * k :])
        one = jnp.ones((*params.shape[:-1], 1), params.dtype)
        edges = [jnp.cumsum(v, axis=-1) - v - self.bound for v in (width, height)]
        return edges[0], width, edges[1], height, jnp.concatenate([one, inner, one], axis=-1)

    def _bin(self, v: Array, edges: Array) -> Array:
        """One-hot ``[..., bins]`` of the bin that holds ``v``: sums over it vectorise where a gather does not."""
        above = v[..., None] >= edges
        # The first edge is −bound up to rounding; every inside point is above it.
        above = above.at[..., 0].set(True)
        return (above & ~jnp.concatenate([above[..., 1:], jnp.zeros_like(above[..., :1])], axis=-1)).astype(v.dtype)


def _fraction(xi: Array, s: Array, d0: Array, d1: Array) -> Array:
    """Height reached within the bin, as a fraction of it (eq. 4)."""
    mixed = xi * (1 - xi)
    return (s * xi * xi + d0 * mixed) / (s + (d0 + d1 - 2 * s) * mixed)


def _log_slope(xi: Array, s: Array, d0: Array, d1: Array) -> Array:
    """log dy/dx within the bin (eq. 5)."""
    mixed = xi * (1 - xi)
    top = d1 * xi * xi + 2 * s * mixed + d0 * (1 - xi) ** 2
    return 2 * jnp.log(s) + jnp.log(top) - 2 * jnp.log(s + (d0 + d1 - 2 * s) * mixed)
