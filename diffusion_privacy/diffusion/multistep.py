"""An Adams predictor-corrector on the nodes of a Gauss rule: fewer slopes of the costly kind for the same error.

For y' = f(s, y) and q' = r(s, y), where q does not act back on y and r costs more than f: so it is with a flow and the
divergence along it. Two calls a step lead y from node to node, f at the predicted point and (f, r) together at the
corrected one; q is then a sum over the nodes with the weights of the rule, so that r is needed once a step where a
Runge-Kutta method of fourth order needs it four times.

Steps: predictor of Adams and Bashforth of third order, evaluation, corrector of Adams and Moulton of fourth order,
evaluation (Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, 2nd ed., section III.1; on unequal
steps section III.5). The mode matters: without the second evaluation it is stable for six times shorter steps only.
Nodes: Gauss-Radau with the first node at the start (Davis & Rabinowitz, Methods of Numerical Integration, section
2.7), moved by g(x) = arcsin(0.9 x)/arcsin(0.9), which evens out a part of their crowding at the ends (Kosloff &
Tal-Ezer, J. Comput. Phys. 104:457, 1993; Hale & Trefethen, SIAM J. Numer. Anal. 46:930, 2008). The crowding that is
left makes the first steps, of low order for lack of a past, so short that the order of the whole is four.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.types import Array

PAST = 3
"""Slopes that a step looks back on: order of the predictor, one less than that of the corrector."""
_EVEN = 0.9


class Grid(NamedTuple):
    """Nodes on [0, 1] and what the method weighs the slopes there with; float64, for N steps.

    Attributes:
      nodes: ``[N + 1]``; 0 first, 1 last, where nothing but the end of the last step lies.
      weights: of the quadrature at the first N nodes, ``[N]``.
      predict: of the last `PAST` slopes, oldest first, in the predictor of step i from node i to i + 1, ``[N, PAST]``.
      correct: the same and that of the predicted slope at node i + 1, in the corrector, ``[N, PAST + 1]``.
    """

    nodes: np.ndarray
    weights: np.ndarray
    predict: np.ndarray
    correct: np.ndarray


def _radau(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1], the first node at -1: zeros of P_{n-1} + P_n."""
    legendre = np.polynomial.legendre
    nodes = np.sort(legendre.legroots([0.0] * (count - 1) + [1.0, 1.0]).real)
    nodes[0] = -1.0
    last = legendre.legval(nodes[1:], [0.0] * (count - 1) + [1.0])
    return nodes, np.append(2.0, (1 - nodes[1:]) / last**2) / count**2


def _interpolating(points: np.ndarray, start: float, end: float) -> np.ndarray:
    """Weights of values at ``points`` in the integral of their polynomial from ``start`` to ``end``."""
    scale = end - start
    powers = np.arange(len(points))
    values = ((points - start) / scale) ** powers[:, None]
    return np.asarray(scale * np.linalg.solve(values, 1 / (powers + 1)))


@functools.cache
def grid(count: int) -> Grid:
    """The grid of ``count`` >= 1 steps."""
    radau, weights = _radau(count)
    nodes = np.append((np.arcsin(_EVEN * radau) / np.arcsin(_EVEN) + 1) / 2, 1.0)
    weights = weights * _EVEN / np.sqrt(1 - (_EVEN * radau) ** 2) / np.arcsin(_EVEN) / 2
    predict, correct = np.zeros((count, PAST)), np.zeros((count, PAST + 1))
    for i in range(count):
        past = min(PAST, i + 1)
        step = nodes[i + 1 - past : i + 2]
        predict[i, PAST - past :] = _interpolating(step[:-1], nodes[i], nodes[i + 1])
        correct[i, PAST - past :] = _interpolating(step, nodes[i], nodes[i + 1])
    return Grid(nodes, weights, predict, correct)


def solve_multistep(
    field: Callable[[Array, Array], Array],
    slope: Callable[[Array, Array], tuple[Array, Array]],
    y: Array,
    grid: Grid,
    places: Array,
    speeds: Array,
) -> tuple[Array, Array]:
    """(y at the end, ∫ r ds), by N calls of ``field`` and N of ``slope``, of the example's own path in s.

    Args:
      field: ``(s[B], y[B, ...]) -> f [B, ...]``.
      slope: ``(s, y) -> (f, r)``; r ``[B, ...]`` of any shape.
      y: at the start, ``[B, ...]``.
      grid: of N steps.
      places: s at the nodes of the grid, ``[N + 1, B]``.
      speeds: ds/du at the nodes u of the grid, ``[N + 1, B]``.
    """
    weights, predict, correct = (jnp.asarray(v, y.dtype) for v in grid[1:])

    def times(speed: Array, slope: Array) -> Array:
        return expand(speed, slope).astype(slope.dtype) * slope

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, past, total = carry
        f, r = slope(places[i], y)
        past = jnp.concatenate([past[1:], times(speeds[i], f)[None]])
        guess = y + jnp.tensordot(predict[i], past, axes=1, precision="highest")
        new = times(speeds[i + 1], field(places[i + 1], guess))
        y = y + jnp.tensordot(correct[i, :PAST], past, axes=1, precision="highest") + correct[i, PAST] * new
        return y, past, total + weights[i] * times(speeds[i], r)

    r = jax.eval_shape(slope, places[0], y)[1]
    first = (y, jnp.zeros((PAST, *y.shape), y.dtype), jnp.zeros(r.shape, r.dtype))
    y, _, total = jax.lax.fori_loop(0, len(grid.weights), step, first)
    return y, total
