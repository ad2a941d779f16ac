"""3x3 convolutions between wide layers with 4/9 of the multiplications, for a CPU (Lavin & Gray, arXiv 1509.09308).

F(2x2, 3x3): each 2x2 tile of the output comes from a 4x4 tile of the input, and after a fixed linear change of both
tiles and of the kernel the convolution is 16 products of numbers where it was 36. Over channels these are 16 products of
matrices. Arrays have the batch LAST, x[c, h, w, B], as in `products`. The changes have entries 0, ±1 and ½, so float32
loses about a digit less than a bit against the plain sum; tests state the figure.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_privacy.types import Array


@jax.custom_vjp
def conv_wide(x: Array, kernel: Array) -> Array:
    """``x[c, h, w, B], kernel[3, 3, c, o] -> [o, h, w, B]``; stride 1, zero padding. Reverse mode only."""
    h, w = x.shape[1:3]
    return _joined(_products(_changed_kernel(kernel), _changed(x)), h, w)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv_wide(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = conv_wide(g, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    # The transposed map of every step: the gradient of the 16 products, then back through the kernel's change.
    spread, tiles = _spread(g), _changed(x)
    gradient = jnp.stack([_dot(v, s, 1) for v, s in zip(tiles, spread, strict=True)])
    return dx, _kernel_gradient(gradient)


conv_wide.defvjp(_forward, _backward)


def _dot(a: Array, b: Array, axis: int) -> Array:
    """The sum over a's last axis and b's ``axis``."""
    return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), precision="highest")


def _products(kernel: list[Array], tiles: list[Array]) -> list[Array]:
    return [_dot(u, v, 0) for u, v in zip(kernel, tiles, strict=True)]


def _changed(x: Array) -> list[Array]:
    """``x[c, h, w, B]`` to Bᵀ d B of its 4x4 tiles, 16 of ``[c, tiles·B]``; tiles overlap by two."""
    c, h, w, batch = x.shape
    rows, columns = -(-h // 2), -(-w // 2)
    padded = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - h), (1, 2 * columns + 1 - w), (0, 0)))
    d = [padded[:, a : a + 2 * rows - 1 : 2] for a in range(4)]
    return [
        (one[:, :, b : b + 2 * columns - 1 : 2] + sign * one[:, :, b2 : b2 + 2 * columns - 1 : 2]).reshape(c, -1)
        for one in _differences(d)
        for b, sign, b2 in _PAIRS
    ]


_PAIRS = ((0, -1, 2), (1, 1, 2), (2, -1, 1), (1, -1, 3))
"""Rows of Bᵀ: element p of a changed tile is d[a] ± d[b]."""


def _differences(d: list[Array]) -> list[Array]:
    return [d[a] + sign * d[b] for a, sign, b in _PAIRS]


def _changed_kernel(kernel: Array) -> list[Array]:
    """``kernel[3, 3, c, o]`` to G g Gᵀ, 16 of ``[o, c]``."""
    turned = kernel.transpose(0, 1, 3, 2)
    return [v for row in _halves([turned[i] for i in range(3)]) for v in _halves([row[j] for j in range(3)])]


def _halves(g: list[Array]) -> list[Array]:
    """G: the first, half of sum and of alternating sum, the last."""
    ends = 0.5 * (g[0] + g[2])
    return [g[0], ends + 0.5 * g[1], ends - 0.5 * g[1], g[2]]


def _joined(products: list[Array], h: int, w: int) -> Array:
    """16 of ``[o, tiles·B]`` to Aᵀ m A, put together to ``[o, h, w, B]``."""
    rows, columns = -(-h // 2), -(-w // 2)
    o = products[0].shape[0]
    m = [[p.reshape(o, rows, columns, -1) for p in products[4 * i : 4 * i + 4]] for i in range(4)]
    tiles = [_sums([_sums(row)[j] for row in m]) for j in range(2)]
    whole = jnp.stack([jnp.stack([tiles[j][i] for j in range(2)], axis=3) for i in range(2)], axis=2)
    return whole.reshape(o, 2 * rows, 2 * columns, -1)[:, :h, :w]


def _sums(m: list[Array]) -> list[Array]:
    """Aᵀ: m0 + m1 + m2 and m1 − m2 − m3."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _spread(g: Array) -> list[Array]:
    """The transpose of `_joined`: ``g[o, h, w, B]`` to 16 of ``[o, tiles·B]``."""
    o, h, w, _ = g.shape
    padded = jnp.pad(g, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    quads = [[padded[:, i::2, j::2] for j in range(2)] for i in range(2)]
    rows = [[_back(list(column))[p] for column in zip(*quads, strict=True)] for p in range(4)]
    return [v.reshape(o, -1) for row in rows for v in _back(row)]


def _back(y: list[Array]) -> list[Array]:
    """A: the transpose of `_sums`."""
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _kernel_gradient(gradient: Array) -> Array:
    """The transpose of `_changed_kernel`: ``[16, c, o] -> [3, 3, c, o]``."""
    u = gradient.reshape(4, 4, *gradient.shape[1:])
    rows = _unhalved([u[i] for i in range(4)])
    return jnp.stack([jnp.stack(_unhalved([row[j] for j in range(4)])) for row in rows])


def _unhalved(u: list[Array]) -> list[Array]:
    """Gᵀ."""
    return [u[0] + 0.5 * (u[1] + u[2]), 0.5 * (u[1] - u[2]), 0.5 * (u[1] + u[2]) + u[3]]
