"""Convolutions whose gradients stay fast inside a loop of a compiled program on a CPU.

The weight gradient that autodiff writes swaps batch and feature by dimension labels. Inside a while loop
(`jax.lax.scan`, `jax.lax.map`) XLA's CPU backend does not make those canonical and runs a naive loop, 30 to 50 times
slower. `explicit` writes both gradients as convolutions in canonical layout. It has no forward-mode derivative, which
likelihoods need, so networks use it only while a loss is traced `in_loop`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_privacy.types import Array

_NHWC = ("NHWC", "HWIO", "NHWC")
_IN_LOOP: contextvars.ContextVar[bool] = contextvars.ContextVar("in_loop", default=False)


@contextlib.contextmanager
def in_loop() -> Iterator[None]:
    """What is traced inside has its convolutions in a loop and is differentiated in reverse mode alone."""
    before = _IN_LOOP.set(True)
    try:
        yield
    finally:
        _IN_LOOP.reset(before)


def plain(x: Array, kernel: Array, stride: int = 1) -> Array:
    """``x[B, h, w, c], kernel[k, k, c, o] -> [B, ⌈h/stride⌉, ⌈w/stride⌉, o]``, zero padding, as XLA has it."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=_NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def explicit(x: Array, kernel: Array, stride: int = 1) -> Array:
    """`plain` with gradients in canonical layout. Works under `vmap`; reverse mode only."""
    return plain(x, kernel, stride)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return plain(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    side = kernel.shape[0]
    pads = [_padding(n, side, stride) for n in x.shape[1:3]]
    back = [(side - 1 - low, n + side - 2 - (m - 1) * stride - (side - 1 - low)) for n, m, low in _sizes(x, g, pads)]
    dx = jax.lax.conv_general_dilated(
        g, mirror(kernel), (1, 1), back, lhs_dilation=(stride, stride), dimension_numbers=_NHWC
    )
    return dx, kernel_gradient(x, g, side, stride)


explicit.defvjp(_forward, _backward)


def _padding(length: int, side: int, stride: int) -> int:
    """Zeros that "SAME" puts before the first pixel."""
    return max((-(-length // stride) - 1) * stride + side - length, 0) // 2


def _sizes(x: Array, g: Array, pads: Sequence[int]) -> list[tuple[int, int, int]]:
    return list(zip(x.shape[1:3], g.shape[1:3], pads, strict=True))


def mirror(kernel: Array) -> Array:
    """``[k, k, c, o] -> [k, k, o, c]``, of the transposed convolution: turned around, input and output exchanged."""
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def kernel_gradient(x: Array, g: Array, side: int, stride: int = 1) -> Array:
    """``Σ x[b, s·h+i−r, s·w+j−r, c] g[b, h, w, o]`` over b, h and w: ``[side, side, c, o]``, a canonical convolution.

    c plays the batch, b the feature, g the kernel.
    """
    pads = [_padding(n, side, stride) for n in x.shape[1:3]]
    around = [(low, side + (m - 1) * stride - n - low) for n, m, low in _sizes(x, g, pads)]
    out = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        around,
        rhs_dilation=(stride, stride),
        dimension_numbers=_NHWC,
    )
    return out.transpose(1, 2, 0, 3)


def for_flax(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **fixed: Any) -> Array:
    """`jax.lax.conv_general_dilated` for `flax.linen.Conv`, but `explicit` in a CPU's loop."""
    usual = padding == "SAME" and len(set(strides)) == 1 and len(set(kernel.shape[:2])) == 1
    if _IN_LOOP.get() and usual and jax.default_backend() == "cpu":
        return explicit(x, kernel, strides[0])
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **fixed)
