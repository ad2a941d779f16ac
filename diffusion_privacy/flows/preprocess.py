"""From stored grey levels to the numbers a flow models, with every term of the likelihood.

A stored value is one of ``levels`` integers v; images hold it as x = 2v/(levels − 1) − 1 in [-1, 1]. Uniform noise
over one grey level makes it continuous, u = (v + U)/levels in (0, 1) (Theis et al., arXiv 1511.01844, section 3.1), and
a fixed map gives y. Densities are quoted over v + U: that is the scale on which E log p(v + U) bounds log P(v) from
below and on which published bits/dim are given.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.flows.bijection import Shape, constant_logdet, sum_record
from diffusion_privacy.types import Array

KINDS = ("affine", "logit", "ink", "none")

_TAIL = 1e-3  # mass that a normal law has beyond the end of the black level
_GREY = 8.0  # length of all levels between black and white
_WHITE = 5.0  # length of the white ones


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Dequantisation and a fixed map of one record, or of a batch along leading axes.

    ``ink`` is for pictures that are mostly pure black with strokes that are mostly white. Under the other maps a black
    pixel, however certain, is uniform over a short interval with hard ends, on which a normal law loses ¼ bit; and the
    white levels lie so close together that scales of all sizes are asked of the flow. Here the black level becomes a
    standard normal law (y = Φ⁻¹((1 − 10⁻³)v), up to y = 3.09), the grey levels the 8 units behind it in equal parts and
    the ``white`` levels 5 more, open to the right. It is a fixed map with its slope counted, and not fitted to data.

    Attributes:
      shape: shape of one record.
      kind: ``affine``: y = (u − ½)·√12, unit variance for uniform u; ``logit``: y = logit(α + (1 − 2α)u) (Dinh et al.,
        arXiv 1605.08803, section 4.1); ``ink``: see above; ``none``: y = x + width·(U − ½) + spread·N(0, 1), for
        rows of a table.
      levels: number of grey levels, >= 2, for ``ink`` more than ``white`` + 1; not read by ``none``.
      alpha: α of the logit map, 0 < α < ½.
      white: of kind ``ink``: so many of the brightest levels count as white.
      width, spread: noise of kind ``none``: of the uniform part one width a number, empty for none of it.
    """

    shape: Shape
    kind: str = "affine"
    levels: int = 256
    alpha: float = 0.05
    white: int = 6
    width: tuple[float, ...] = ()
    spread: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        if self.levels < 2 or not 0 < self.alpha < 0.5:
            raise ValueError(f"need levels >= 2 and 0 < alpha < 0.5, got {self.levels}, {self.alpha}")
        if self.kind == "ink" and not 1 <= self.white < self.levels - 1:
            raise ValueError(f"need 1 <= white < levels - 1, got {self.white}, {self.levels}")
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
        if self.kind == "ink":
            y, slope = self._ink(v)
            return y, sum_record(slope, self.shape)
        p = self.alpha + (1 - 2 * self.alpha) * v / self.levels
        slope = math.log((1 - 2 * self.alpha) / self.levels) - jnp.log(p) - jnp.log1p(-p)
        return jnp.log(p) - jnp.log1p(-p), sum_record(slope, self.shape)

    def inverse(self, y: Array) -> Array:
        """``y -> v`` on the scale of grey levels; outside [0, levels) where the flow left the range of images."""
        if self.kind == "none":
            return y
        if self.kind == "affine":
            return (y / math.sqrt(12.0) + 0.5) * self.levels
        if self.kind == "ink":
            return self._ink_inverse(y)
        return (jax.nn.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha) * self.levels

    def _ink(self, v: Array) -> tuple[Array, Array]:
        """``v[...] -> (y, log dy/dv)``, number by number."""
        start, grey, white = self._lengths
        # U = 0 has no place under a normal law; float32 draws it once in 2^23 times. The other branch gets a ½, so that
        # its infinity does not reach a gradient.
        share = jnp.where(v < 1, jnp.maximum(v, 2.0**-24) * (1 - _TAIL), 0.5)
        black = jax.scipy.special.ndtri(share)
        black_slope = math.log(1 - _TAIL) + 0.5 * jnp.square(black) + 0.5 * math.log(2 * math.pi)
        first_white = self.levels - self.white
        bright = v >= first_white
        y = jnp.where(bright, start + _GREY + (v - first_white) * white, start + (v - 1) * grey)
        slope = jnp.where(bright, math.log(white), math.log(grey))
        return jnp.where(v < 1, black, y), jnp.where(v < 1, black_slope, slope)

    def _ink_inverse(self, y: Array) -> Array:
        start, grey, white = self._lengths
        black = jax.scipy.special.ndtr(jnp.minimum(y, start)) / (1 - _TAIL)
        bright = self.levels - self.white + (y - start - _GREY) / white
        lit = jnp.where(y < start + _GREY, 1 + (y - start) / grey, bright)
        return jnp.where(y < start, black, lit)

    @property
    def _lengths(self) -> tuple[float, float, float]:
        """Where black ends, and the lengths of one grey and one white level."""
        start = -statistics.NormalDist().inv_cdf(_TAIL)
        return start, _GREY / (self.levels - 1 - self.white), _WHITE / self.white

    def quantise(self, v: Array) -> Array:
        """``v -> x`` in [-1, 1]: the grey level that holds v, the nearest one for v outside. Undoes `dequantise`."""
        if self.kind == "none":
            return v
        level = jnp.clip(jnp.floor(v), 0, self.levels - 1)
        # Compiled, the quotient may be a product with 1/(levels − 1), and white come out as 1 + 1e-7.
        return jnp.clip(2 * level / (self.levels - 1) - 1, -1, 1)

    @property
    def _count(self) -> int:
        return math.prod(self.shape)
