"""3x3 convolutions of image flows as a CPU is fast at them; the plain form is `training.convolutions.plain`.

All are ``x[B, h, w, c], kernel[k, k, c, o] -> [B, h, w, o]`` with stride 1 and zero padding. XLA's CPU backend reaches
a core's speed between wide layers only, has slow gradients for thin ones, and naive ones inside a loop.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.training import winograd
from diffusion_privacy.training.convolutions import mirror, tiled
from diffusion_privacy.types import Array

_THIN = 32
"""Up to so many channels a change of tiles costs more than it saves, gradients included (at 7x7 and 14x14)."""


def by_size(x: Array, kernel: Array) -> Array:
    """`tiled`, `from_thin` or `to_thin`, whichever these channels are for; 3x3."""
    inputs, outputs = kernel.shape[2:]
    if min(inputs, outputs) > _THIN:
        return tiled(x, kernel)
    return from_thin(x, kernel) if inputs <= outputs else to_thin(x, kernel)


@jax.custom_vjp
def from_thin(x: Array, kernel: Array) -> Array:
    """A convolution from few channels: gathers windows, then one product. Reverse mode only."""
    return _windows_product(_windows(x), kernel, x.shape)


def _from_thin_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return from_thin(x, kernel), (x, kernel)


def _from_thin_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return to_thin(g, mirror(kernel)), winograd.dot(_windows(x).T, g.reshape(-1, g.shape[-1]), 0).reshape(kernel.shape)


from_thin.defvjp(_from_thin_forward, _from_thin_backward)


@jax.custom_vjp
def to_thin(x: Array, kernel: Array) -> Array:
    """A convolution to few channels: one product, then the sum over taps, each read at its shift. Reverse mode only."""
    b, h, w, c = x.shape
    taps = winograd.dot(x.reshape(-1, c), kernel.transpose(2, 0, 1, 3).reshape(c, -1), 0).reshape(b, h, w, 9, -1)
    padded = jnp.pad(taps, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    parts = [padded[:, i : i + h, j : j + w, 3 * i + j] for i in range(3) for j in range(3)]
    return sum(parts[1:], start=parts[0])


def _to_thin_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return to_thin(x, kernel), (x, kernel)


def _to_thin_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    c, o = kernel.shape[2:]
    windows = _windows(g)
    taps = winograd.dot(x.reshape(-1, c).T, windows, 0).reshape(c, 3, 3, o)[:, ::-1, ::-1]
    return _windows_product(windows, mirror(kernel), g.shape), taps.transpose(1, 2, 0, 3)


to_thin.defvjp(_to_thin_forward, _to_thin_backward)


def _windows(x: Array) -> Array:
    """``[B, h, w, c] -> [B·h·w, 9·c]``."""
    h, w, c = x.shape[1:]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, 9 * c)


def _windows_product(windows: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
    return winograd.dot(windows, kernel.reshape(windows.shape[-1], -1), 0).reshape(*shape[:3], -1)


def constant(values: Array, kernel: Array, h: int, w: int) -> Array:
    """The convolution of images that are ``values[B, K]`` at every pixel, ``kernel[3, 3, K, o] -> [B, h, w, o]``.

    Pixels differ by the taps that fall inside, and so only at the border: nothing is summed over K at each of them.
    """
    k, o = kernel.shape[2:]
    taps = winograd.dot(values, kernel.transpose(2, 0, 1, 3).reshape(k, -1), 0).reshape(-1, 9, o)
    # One product an image, the gradient's included, needs no change of layout; one for all took 2 to 3 times as long.
    inside = np.einsum("yi,xj->yxij", _inside(h), _inside(w)).reshape(h * w, 9)
    every = jnp.broadcast_to(inside, (len(values), h * w, 9))
    out = jax.lax.dot_general(every, taps, (((2,), (1,)), ((0,), (0,))), precision="highest")
    return out.reshape(-1, h, w, o)


def _inside(length: int) -> np.ndarray:
    """``[length, 3]``, 1 where a tap falls inside."""
    at = np.arange(length)[:, None] + np.arange(-1, 2)
    return ((at >= 0) & (at < length)).astype(np.float32)
