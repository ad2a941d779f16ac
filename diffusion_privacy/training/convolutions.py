"""Convolutions as a CPU is fast at them, their gradients included.

The weight gradient that autodiff writes swaps batch and feature by dimension labels. Inside a while loop
(`jax.lax.scan`, `jax.lax.map`) XLA's CPU backend does not make those canonical and runs a naive loop, 30 to 50 times
slower. `explicit` writes both gradients as convolutions in canonical layout. It has no forward-mode derivative, which
likelihoods need, so networks use it only while a loss is traced `for_training` in a loop. Wide networks are evaluated
by `winograd`'s tiles, which have every derivative; `tiled` gives them a fast weight gradient, for the same use alone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_privacy.training import winograd
from diffusion_privacy.types import Array

_NHWC = ("NHWC", "HWIO", "NHWC")
_WIDE = 32
"""From so many channels on a change of tiles saves more than it costs (measured at 8x8 to 32x32)."""

_EVALUATION, _TRAINING, _TRAINING_IN_LOOP = "evaluation", "training", "training in a loop"
_USE: Any = jax.make_user_context(_EVALUATION)


def for_training(*, in_loop: bool = False) -> contextlib.AbstractContextManager[None]:
    """What is traced inside has convolutions whose weight gradients are fast: plain ones, or in a loop their own.

    jax keeps programs of the two uses apart: a function that was traced for one is traced again for the other.

    Args:
      in_loop: the convolutions stand in a loop, and reverse mode is all that is asked of them.
    """
    return _USE(_TRAINING_IN_LOOP if in_loop else _TRAINING)


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


@jax.custom_vjp
def tiled(x: Array, kernel: Array) -> Array:
    """`plain` for 3x3 kernels, by `winograd`'s tiles, its gradients too. Reverse mode only.

    Give it whole batches: under `vmap` of one record all tiles exist at once.
    """
    return winograd.convolve(x, kernel)


def _tiled_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd.convolve(x, kernel), (x, kernel)


def _tiled_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return winograd.convolve(g, mirror(kernel)), winograd.kernel_gradient(x, g)


tiled.defvjp(_tiled_forward, _tiled_backward)


def settled(x: Array) -> Array:
    """``x`` itself, which a CPU that evaluates computes on its own, and not in one loop with what reads it.

    A long function of half the channels, fused with its readers, took twice as long as in a loop of its own (measured
    for a soft clamp). In training it did not pay.
    """
    alone = jax.default_backend() == "cpu" and _USE.value == _EVALUATION
    return jax.lax.optimization_barrier(x) if alone else x


def for_flax(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **fixed: Any) -> Array:
    """`jax.lax.conv_general_dilated` for `flax.linen.Conv`; on a CPU by tiles or `explicit` where that is faster."""
    use = _USE.value
    usual = padding == "SAME" and len(set(strides)) == 1 and len(set(kernel.shape[:2])) == 1
    if usual and jax.default_backend() == "cpu":
        wide = (kernel.shape[0], strides[0], x.dtype) == (3, 1, jnp.float32) and min(kernel.shape[2:]) >= _WIDE
        if use == _TRAINING_IN_LOOP:
            return tiled(x, kernel) if wide else explicit(x, kernel, strides[0])
        if use == _EVALUATION and wide:
            return winograd.convolve(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **fixed)
