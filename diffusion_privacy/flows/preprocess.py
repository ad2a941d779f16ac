"""From stored grey levels to the numbers a flow models, with every term of the likelihood.

A stored value is one of ``levels`` integers v; images hold it as x = 2v/(levels − 1) − 1 in [-1, 1]. Uniform noise
over one grey level makes it continuous, u = (v + U)/levels in (0, 1) (Theis et al., arXiv 1511.01844, section 3.1), and
a fixed map gives y. Densities are quoted over v + U: that is the scale on which E log p(v + U) bounds log P(v) from
below and on which published bits/dim are given.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.flows.bijection import Shape, constant_logdet, sum_record
from diffusion_privacy.types import Array

KINDS = ("affine", "logit", "none")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Dequantisation and a fixed map of one record, or of a batch along leading axes.

    Attributes:
      shape: shape of one record.
      kind: ``affine``: y = (u − ½)·√12, unit variance for uniform u; ``logit``: y = logit(α + (1 − 2α)u) (Dinh et al.,
        arXiv 1605.08803, section 4.1); ``none``: y = x + width·(U − ½) + spread·N(0, 1), for rows of a table.
      levels: number of grey levels, >= 2; read only by the first two kinds.
      alpha: α of the logit map, 0 < α < ½.
      width, spread: noise of kind ``none``: of the uniform part one width a number, empty for none of it.
    """

    shape: Shape
    kind: str = "affine"
    levels: int = 256
    alpha: float = 0.05
    width: tuple[float, ...] = ()
    spread: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        if self.levels < 2 or not 0 < self.alpha < 0.5:
            raise ValueError(f"need levels >= 2 and 0 < alpha < 0.5, got {self.levels}, {self.alpha}")
        noisy = bool(self.width) or self.spread > 0
        if self.spread < 0 or (noisy and self.kind != "none") or len(self.width) not in (0, self._count):
            raise ValueError(f"width and spread are for kind 'none' and {self._count} numbers")

    def dequantise(self, key: Array, x: Array) -> Array:
        """ONE record ``x[*shape]`` in [-1, 1] -> v + U in [0, levels), U ~ Uniform[0, 1) from ``key``.

        Values between grey levels go to the nearest one. Kind ``none`` adds its own noise to any ``x``.
        """
        if self.kind == "none":
            return self._blur(key, x)
        v = jnp.round((x + 1) / 2 * (self.levels - 1))
        # Near `levels` float32 rounds v + U up to v + 1; half a step of U keeps the grey level.
        noise = jnp.minimum(jax.random.uniform(key, x.shape, x.dtype), 1 - self.levels * jnp.finfo(x.dtype).eps)
        return v + noise

    def _blur(self, key: Array, x: Array) -> Array:
        """``x`` with uniform noise of the widths and normal noise of the spread; draws nothing without either."""
        uniform, normal = jax.random.split(key)
        if self.width:
            width = np.asarray(self.width).reshape(self.shape).astype(x.dtype)
            x = x + width * (jax.random.uniform(uniform, x.shape, x.dtype) - 0.5)
        return x + self.spread * jax.random.normal(normal, x.shape, x.dtype) if self.spread else x

    def forward(self, v: Array) -> tuple[Array, Array]:
        """``v[..., *shape] -> (y, log|det dy/dv| [...])``, v on the scale of grey levels."""
        if self.kind == "none":
            return v, constant_logdet(v, self.shape)
        if self.kind == "affine":
            scale = math.sqrt(12.0)
            return (v / self.levels - 0.5) * scale, constant_logdet(
                v, self.shape, self._count * math.log(scale / self.levels)
            )
        p = self.alpha + (1 - 2 * self.alpha) * v / self.levels
        slope = math.log((1 - 2 * self.alpha) / self.levels) - jnp.log(p) - jnp.log1p(-p)
        return jnp.log(p) - jnp.log1p(-p), sum_record(slope, self.shape)

    def inverse(self, y: Array) -> Array:
        """``y -> v`` on the scale of grey levels; outside [0, levels) where the flow left the range of images."""
        if self.kind == "none":
            return y
        if self.kind == "affine":
            return (y / math.sqrt(12.0) + 0.5) * self.levels
        return (jax.nn.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha) * self.levels

    def quantise(self, v: Array) -> Array:
        """``v -> x`` in [-1, 1]: the grey level that holds v, the nearest one for v outside. Undoes `dequantise`."""
        if self.kind == "none":
            return v
        return 2 * jnp.clip(jnp.floor(v), 0, self.levels - 1) / (self.levels - 1) - 1

    @property
    def _count(self) -> int:
        return math.prod(self.shape)
