"""3x3 and 1x1 convolutions of thin images as matrix products, for a CPU.

A flow's subnets have 8 to 16 channels at their ends and 7x7 positions: XLA's convolutions reach half of a core's speed
there, and their gradients less. As products of matrices [channels, positions·batch] they reach it, and with operands
rounded to bfloat16 a CPU with matrix units is three times faster again. All arrays have the batch LAST, x[c, h, w, B]:
then a shifted image is a copy of long runs, and both gradients are products in the two orders that are fast.

Each function computes `training.convolutions.plain` with stride 1, with sums in float32; ``precision`` names the type
to which operands are rounded. Reverse mode only.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from diffusion_privacy.training.convolutions import mirror
from diffusion_privacy.types import Array

PRECISIONS = ("float32", "bfloat16")
_TAPS = tuple((i, j) for i in range(3) for j in range(3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_from_thin(x: Array, kernel: Array, precision: str) -> Array:
    """``x[c, h, w, B], kernel[3, 3, c, o] -> [o, h, w, B]``, for few inputs: gathers windows, then one product."""
    return _product(_turned(kernel.reshape(-1, kernel.shape[-1]), precision), _windows(x), precision)


def _from_thin_forward(x: Array, kernel: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return conv_from_thin(x, kernel, precision), (x, kernel)


def _from_thin_backward(precision: str, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rounded = _rounded(g, precision)
    gradient = _correlation(_windows(x), rounded, precision).reshape(kernel.shape)
    dx = _scatter(_product(_taps_first(mirror(kernel)), rounded, precision))
    return dx.astype(x.dtype), gradient.astype(kernel.dtype)


conv_from_thin.defvjp(_from_thin_forward, _from_thin_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_to_thin(x: Array, kernel: Array, precision: str) -> Array:
    """``x[c, h, w, B], kernel[3, 3, c, o] -> [o, h, w, B]``, for few outputs: one product, then adds shifted."""
    return _scatter(_product(_taps_first(kernel), x, precision))


def _to_thin_forward(x: Array, kernel: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return conv_to_thin(x, kernel, precision), (x, kernel)


def _to_thin_backward(precision: str, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    c, o = kernel.shape[2:]
    windows = _rounded(_windows(g), precision)
    dx = _product(_turned(mirror(kernel).reshape(-1, c), precision), windows, precision)
    taps = _correlation(x, windows, precision).reshape(c, 3, 3, o)[:, ::-1, ::-1]
    return dx.astype(x.dtype), taps.transpose(1, 2, 0, 3).astype(kernel.dtype)


conv_to_thin.defvjp(_to_thin_forward, _to_thin_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_point(x: Array, kernel: Array, precision: str) -> Array:
    """``x[c, h, w, B], kernel[1, 1, c, o] -> [o, h, w, B]``."""
    return _product(_turned(kernel[0, 0], precision), x, precision)


def _point_forward(x: Array, kernel: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return conv_point(x, kernel, precision), (x, kernel)


def _point_backward(precision: str, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rounded = _rounded(g, precision)
    gradient = _correlation(x, rounded, precision)[None, None]
    return _product(kernel[0, 0], rounded, precision).astype(x.dtype), gradient.astype(kernel.dtype)


conv_point.defvjp(_point_forward, _point_backward)


def _rounded(x: Array, precision: str) -> Array:
    """An operand as the product takes it: rounded for ``bfloat16``, else as it is, in float64 too."""
    return x.astype(jnp.bfloat16) if precision == "bfloat16" else x


def _windows(x: Array) -> Array:
    """``[c, h, w, B] -> [9·c, h, w, B]``: row t·c + k is channel k shifted by tap t."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, i : i + h, j : j + w] for i, j in _TAPS], axis=0)


def _scatter(y: Array) -> Array:
    """``[9·o, h, w, B] -> [o, h, w, B]``: the sum over taps, each read at its shift; zeros come in from the border."""
    h, w = y.shape[1:3]
    taps = y.reshape(9, -1, *y.shape[1:])
    total = jnp.zeros(taps.shape[1:], y.dtype)
    for tap, (i, j) in zip(taps, _TAPS, strict=True):
        up, left = i - 1, j - 1
        part = tap[:, max(up, 0) : h + min(up, 0), max(left, 0) : w + min(left, 0)]
        edges = ((0, 0), (max(-up, 0), max(up, 0)), (max(-left, 0), max(left, 0)), (0, 0))
        total = total + jnp.pad(part, edges)
    return total


def _taps_first(kernel: Array) -> Array:
    """``[3, 3, c, o] -> [9·o, c]``."""
    return kernel.transpose(0, 1, 3, 2).reshape(-1, kernel.shape[2])


def _turned(matrix: Array, precision: str) -> Array:
    """``[a, b] -> [b, a]`` in memory; products with a matrix that is turned by name only take the slow way."""
    exact = _rounded(matrix, precision)
    return _dot(jnp.eye(matrix.shape[1], dtype=exact.dtype), exact, 1).astype(exact.dtype)


def _product(matrix: Array, x: Array, precision: str) -> Array:
    """``matrix[o, c], x[c, ...] -> [o, ...]``."""
    flat = _rounded(x.reshape(x.shape[0], -1), precision)
    return _dot(_rounded(matrix, precision), flat, 0).reshape(-1, *x.shape[1:])


def _correlation(a: Array, b: Array, precision: str) -> Array:
    """``a[m, ...], b[n, ...] -> [m, n]``, the sum over everything else."""
    flat = [_rounded(v.reshape(v.shape[0], -1), precision) for v in (a, b)]
    return _dot(flat[0], flat[1], 1)


def _dot(a: Array, b: Array, axis: int) -> Array:
    """The sum over a's last axis and b's ``axis``, in float32 at least."""
    total = jnp.promote_types(a.dtype, jnp.float32)
    return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), precision="highest", preferred_element_type=total)
