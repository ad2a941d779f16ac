"""The networks inside couplings. They need not be invertible; their last layer starts at zero.

A subnet is a frozen dataclass of sizes with `init(key, shape, cond_dim, outputs)` and `apply(params, x, cond)`. The
condition ``cond[..., K]`` enters beside the input: broadcast to every pixel, or appended to the vector.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.flows import cpu_convolutions, products
from diffusion_privacy.flows.bijection import Shape
from diffusion_privacy.training import convolutions
from diffusion_privacy.types import Array, PyTree


class Subnet(Protocol):
    """A function of one record (leading axes are a batch) and its condition."""

    def init(self, key: Array, shape: Shape, cond_dim: int, outputs: int) -> PyTree:
        """Parameters for inputs of ``shape`` and ``outputs`` numbers a position, which are 0 at the start."""
        ...

    def apply(self, params: PyTree, x: Array, cond: Array | None) -> Array:
        """``x[..., *grid, c], cond[..., K] -> [..., *grid, outputs]``."""
        ...


def with_condition(x: Array, cond: Array | None, grid_axes: int) -> Array:
    """Append the condition to the last axis of ``x``, the same at every position of the grid."""
    if cond is None:
        return x
    spread = cond.reshape(*cond.shape[:-1], *(1,) * grid_axes, cond.shape[-1])
    return jnp.concatenate([x, jnp.broadcast_to(spread, (*x.shape[:-1], cond.shape[-1])).astype(x.dtype)], axis=-1)


@dataclasses.dataclass(frozen=True)
class DenseNet:
    """Linear-ReLU, ``hidden`` times, then Linear.

    Attributes:
      width: units of each hidden layer.
      hidden: number of hidden layers, >= 1.
    """

    width: int
    hidden: int = 2

    def init(self, key: Array, shape: Shape, cond_dim: int, outputs: int) -> PyTree:
        sizes = [shape[-1] + cond_dim, *[self.width] * self.hidden, outputs]
        return _layers(key, "dense", [()] * (self.hidden + 1), sizes)

    def apply(self, params: PyTree, x: Array, cond: Array | None) -> Array:
        h = with_condition(x, cond, 0)
        for i in range(self.hidden + 1):
            layer = params[f"dense_{i}"]
            h = h @ layer["kernel"] + layer["bias"]
            h = jax.nn.relu(h) if i < self.hidden else h
        return h


@dataclasses.dataclass(frozen=True)
class ConvNet:
    """Convolution-ReLU, ``hidden`` times, then convolution; same padding with zeros.

    Attributes:
      width: channels of each hidden layer.
      hidden: number of hidden layers, >= 1.
      kernel: odd side of the square kernels.
      convolutions: ``plain``, ``explicit`` (`training.convolutions`), or ``products`` (`cpu_convolutions`), which needs
        3x3 kernels. The latter two are for a CPU and have no forward-mode derivative.
    """

    width: int = 128
    hidden: int = 2
    kernel: int = 3
    convolutions: str = "plain"

    def __post_init__(self) -> None:
        if self.convolutions not in ("plain", "explicit", "products"):
            raise ValueError(f"convolutions must be plain, explicit or products, got {self.convolutions!r}")
        if self.convolutions == "products" and self.kernel != 3:
            raise ValueError(f"products are for kernels of side 3, got {self.kernel}")

    def init(self, key: Array, shape: Shape, cond_dim: int, outputs: int) -> PyTree:
        sizes = [shape[-1] + cond_dim, *[self.width] * self.hidden, outputs]
        return _layers(key, "conv", [(self.kernel, self.kernel)] * (self.hidden + 1), sizes)

    def apply(self, params: PyTree, x: Array, cond: Array | None) -> Array:
        layers = [params[f"conv_{i}"] for i in range(self.hidden + 1)]
        lead, h = x.shape[:-3], x.reshape(-1, *x.shape[-3:])
        if cond is not None:
            cond = jnp.broadcast_to(cond, (*lead, cond.shape[-1])).reshape(-1, cond.shape[-1])
        h = self._by_products(layers, h, cond) if self.convolutions == "products" else self._plain(layers, h, cond)
        return h.reshape(*lead, *h.shape[1:])

    def _plain(self, layers: list[PyTree], h: Array, cond: Array | None) -> Array:
        conv = convolutions.explicit if self.convolutions == "explicit" else convolutions.plain
        h = with_condition(h, cond, 2)
        for layer in layers[:-1]:
            h = jax.nn.relu(conv(h, layer["kernel"]) + layer["bias"])
        return conv(h, layers[-1]["kernel"]) + layers[-1]["bias"]

    def _by_products(self, layers: list[PyTree], h: Array, cond: Array | None) -> Array:
        first, channels = layers[0]["kernel"], h.shape[-1]
        raw = cpu_convolutions.by_size(h, first[:, :, :channels])
        if cond is not None:
            raw = raw + cpu_convolutions.constant(cond, first[:, :, channels:], *h.shape[1:3])
        for before, layer in itertools.pairwise(layers):
            h = jax.nn.relu(raw + before["bias"])
            raw = cpu_convolutions.by_size(h, layer["kernel"])
        return raw + layers[-1]["bias"]


@dataclasses.dataclass(frozen=True)
class GlowNet:
    """Convolution 3x3, ReLU, 1x1, ReLU, 3x3 (Kingma & Dhariwal, arXiv 1807.03039, section 3.3); zero padding.

    The condition enters as a bias of the first layer, one a class, and so is the same at every pixel, the border
    included, and costs nothing a pixel.

    Attributes:
      width: channels of the two hidden layers.
      precision: ``float32``, or ``bfloat16``: operands of convolutions are rounded to it, sums are not. For training
        alone: where an inverse must meet the forward pass to 1e-4, the same rounding would have to fall on both.
      matrix_products: convolve as `products` does, for a CPU. No forward-mode derivative then.
      last: side of the last kernel, 3 or 1. Where a map needs many numbers a pixel, 1 is nine times cheaper.
    """

    width: int = 128
    precision: str = "float32"
    matrix_products: bool = False
    last: int = 3

    def __post_init__(self) -> None:
        if self.last not in (1, 3):
            raise ValueError(f"the last kernel has side 1 or 3, got {self.last}")

    def init(self, key: Array, shape: Shape, cond_dim: int, outputs: int) -> PyTree:
        windows = [(3, 3), (1, 1), (self.last, self.last)]
        made = _layers(key, "conv", windows, [shape[-1], self.width, self.width, outputs])
        return made | ({"condition": {"kernel": jnp.zeros((cond_dim, self.width))}} if cond_dim else {})

    def apply(self, params: PyTree, x: Array, cond: Array | None) -> Array:
        lead, layers = x.shape[:-3], [params[f"conv_{i}"] for i in range(3)]
        bias = layers[0]["bias"]
        if cond is not None:
            bias = bias + jnp.broadcast_to(cond, (*lead, cond.shape[-1])) @ params["condition"]["kernel"]
        bias = jnp.broadcast_to(bias, (*lead, self.width)).reshape(-1, self.width)
        h = x.reshape(-1, *x.shape[-3:])
        h = self._by_products(layers, h, bias) if self.matrix_products else self._plain(layers, h, bias)
        return h.reshape(*lead, *h.shape[1:])

    def _plain(self, layers: list[PyTree], h: Array, bias: Array) -> Array:
        rounded = jnp.dtype(jnp.bfloat16) if self.precision == "bfloat16" else h.dtype

        def conv(h: Array, kernel: Array) -> Array:
            return convolutions.plain(h.astype(rounded), kernel.astype(rounded)).astype(kernel.dtype)

        h = jax.nn.relu(conv(h, layers[0]["kernel"]) + bias[:, None, None])
        h = jax.nn.relu(conv(h, layers[1]["kernel"]) + layers[1]["bias"])
        return conv(h, layers[2]["kernel"]) + layers[2]["bias"]

    def _by_products(self, layers: list[PyTree], h: Array, bias: Array) -> Array:
        rounded = jnp.dtype(jnp.bfloat16) if self.precision == "bfloat16" else h.dtype
        kernels = [layer["kernel"] for layer in layers]
        biases = [bias.T[:, None, None, :], *(layer["bias"][:, None, None, None] for layer in layers[1:])]
        h = h.transpose(3, 1, 2, 0)
        # Rounded here, hidden layers are kept for the backward pass at half the size.
        h = jax.nn.relu(products.conv_from_thin(h, kernels[0], self.precision) + biases[0]).astype(rounded)
        h = jax.nn.relu(products.conv_point(h, kernels[1], self.precision) + biases[1]).astype(rounded)
        last = products.conv_to_thin if self.last == 3 else products.conv_point
        return (last(h, kernels[2], self.precision) + biases[2]).transpose(3, 1, 2, 0)


def _layers(key: Array, name: str, windows: Sequence[Shape], sizes: list[int]) -> PyTree:
    """``{name_i: {kernel [*windows[i], in, out], bias [out]}}``: He-normal kernels, the last one zero, and zero biases.

    One draw serves all kernels: each draw in a program costs a third of a second of compilation.
    """
    shapes = [(*w, a, b) for w, (a, b) in zip(windows, itertools.pairwise(sizes), strict=True)]
    ends = np.cumsum([math.prod(s) for s in shapes[:-1]])
    draws = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
    kernels = [math.sqrt(2 / math.prod(s[:-1])) * draw.reshape(s) for s, draw in zip(shapes[:-1], draws, strict=True)]
    kernels.append(jnp.zeros(shapes[-1]))
    return {f"{name}_{i}": {"kernel": k, "bias": jnp.zeros(k.shape[-1])} for i, k in enumerate(kernels)}
