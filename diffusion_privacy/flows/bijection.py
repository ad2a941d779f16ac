"""What a bijection is, and how one becomes a `Flow`.

A bijection is a frozen, hashable dataclass without arrays in it: sizes and seeds only. Its parameters are a pytree of
plain dictionaries made by `init` and handed to `forward` and `inverse`, so that it can be a static argument of `jit`
and its parameters can be averaged, sharded, clipped and saved by anyone.

The mathematics is that of ONE record, an array of shape `shape`. Leading axes are a batch: `x[..., *shape]` gives
`logdet[...]`, record by record, exactly what `vmap` gives. They are written out because a convolution needs its batch
in one piece to have a fast weight gradient inside `lax.scan` (see `subnets`). A test holds every bijection to it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax.numpy as jnp

from diffusion_privacy.types import Array, PyTree

Shape = tuple[int, ...]


class Bijection(Protocol):
    """A differentiable bijection of records of shape `shape` onto records of shape `out_shape`, for every condition."""

    @property
    def shape(self) -> Shape:
        """Shape of one record at the data end."""
        ...

    @property
    def out_shape(self) -> Shape:
        """Shape of one record at the latent end; the same number of elements."""
        ...

    def init(self, key: Array) -> PyTree:
        """Parameters in the default float type; an empty dictionary when there are none."""
        ...

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        """``x[..., *shape], cond[..., K] -> (y[..., *out_shape], log|det dy/dx| [...])`` in nats."""
        ...

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        """``y[..., *out_shape], cond[..., K] -> (x[..., *shape], log|det dx/dy| [...])`` in nats."""
        ...


def size(shape: Shape) -> int:
    """Number of elements of one record."""
    return math.prod(shape)


def batch_shape(x: Array, shape: Shape) -> Shape:
    """The leading axes of ``x[..., *shape]``.

    Raises:
      ValueError: the trailing axes of ``x`` are not ``shape``.
    """
    lead = x.ndim - len(shape)
    if lead < 0 or x.shape[lead:] != shape:
        raise ValueError(f"expected records of shape {shape}, got an array of shape {x.shape}")
    return x.shape[:lead]


def constant_logdet(x: Array, shape: Shape, value: Array | float = 0.0) -> Array:
    """The same log-determinant for every record of ``x[..., *shape]``."""
    return jnp.broadcast_to(jnp.asarray(value, x.dtype), batch_shape(x, shape))


def sum_record(x: Array, shape: Shape) -> Array:
    """Sum over the axes of one record: ``[..., *shape] -> [...]``."""
    return jnp.sum(x, axis=tuple(range(-len(shape), 0)))


@dataclasses.dataclass(frozen=True)
class BoundFlow:
    """A bijection with its parameters: satisfies `types.Flow`. One record, a batch in front, or under `vmap`."""

    bijection: Bijection
    params: PyTree

    def forward(self, x: Array, cond: Array | None) -> tuple[Array, Array]:
        """``(z, log|det dz/dx|)``."""
        return self.bijection.forward(self.params, x, cond)

    def inverse(self, z: Array, cond: Array | None) -> tuple[Array, Array]:
        """``(x, log|det dx/dz|)``."""
        return self.bijection.inverse(self.params, z, cond)


def bind(bijection: Bijection, params: PyTree) -> BoundFlow:
    """Close a bijection over its parameters."""
    return BoundFlow(bijection, params)
