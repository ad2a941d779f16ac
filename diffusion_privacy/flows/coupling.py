"""Two-sided couplings: each half is transformed element by element with parameters computed from the other half.

    y1 = T(x1; g1(x2, c)),  y2 = T(x2; g2(y1, c)),  logdet = Σ log T'

T is affine (GLOW, RNVP), affine with volume kept (GIN), a spline, or the distribution function of a mixture; g1 and g2
are subnets. They end in zeros, so that every coupling starts as the identity, with a mixture close to it.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from diffusion_privacy.flows.bijection import Shape, batch_shape, constant_logdet, sum_record
from diffusion_privacy.flows.mixture import LogisticMixture
from diffusion_privacy.flows.spline import Spline, soft_clamp
from diffusion_privacy.flows.subnets import Subnet
from diffusion_privacy.training.convolutions import settled
from diffusion_privacy.types import Array, PyTree


class HalfMap(Protocol):
    """A monotone map of every element of a half, with `num_parameters` unconstrained numbers for each element.

    The numbers come as ``raw[..., *grid, P·c]`` for a half ``x[..., *grid, c]`` of record shape ``(*grid, c)``. Zeros
    give the identity, or something close to it (`mixture.LogisticMixture`).
    """

    @property
    def num_parameters(self) -> int: ...

    def forward(self, raw: Array, x: Array, shape: Shape) -> tuple[Array, Array]:
        """``(y[..., *shape], logdet[...])``."""
        ...

    def inverse(self, raw: Array, y: Array, shape: Shape) -> tuple[Array, Array]:
        """``(x[..., *shape], logdet[...])`` of the inverse map."""
        ...


@dataclasses.dataclass(frozen=True)
class Affine:
    """y = x·exp(s) + t with the soft clamp s = a·(2/π)·atan(ŝ), so that |s| < a (Ardizzone et al., arXiv 1907.02392).

    Attributes:
      clamp: a > 0. A coupling stretches by at most exp(a).
      volume_preserving: subtract from s its mean over the half, so that logdet = 0 exactly (GIN, Sorrenson et al.,
        arXiv 2001.04872; they set the last s to minus the sum of the others). A half of one number is only shifted.
    """

    clamp: float = 1.5
    volume_preserving: bool = False

    @property
    def num_parameters(self) -> int:
        return 2

    def forward(self, raw: Array, x: Array, shape: Shape) -> tuple[Array, Array]:
        s, t = self._scale_shift(raw, shape)
        return x * jnp.exp(s) + t, self._logdet(s, shape)

    def inverse(self, raw: Array, y: Array, shape: Shape) -> tuple[Array, Array]:
        s, t = self._scale_shift(raw, shape)
        return (y - t) * jnp.exp(-s), -self._logdet(s, shape)

    def _scale_shift(self, raw: Array, shape: Shape) -> tuple[Array, Array]:
        s, t = jnp.split(raw, 2, axis=-1)
        s = settled(soft_clamp(s, self.clamp))
        if self.volume_preserving:
            s = s - jnp.mean(s, axis=tuple(range(-len(shape), 0)), keepdims=True)
        return s, t

    def _logdet(self, s: Array, shape: Shape) -> Array:
        return constant_logdet(s, shape) if self.volume_preserving else sum_record(s, shape)


@dataclasses.dataclass(frozen=True)
class SplineMap:
    """`Spline` for every element of a half; neighbouring numbers of ``raw`` belong to one element."""

    spline: Spline

    @property
    def num_parameters(self) -> int:
        return self.spline.num_parameters

    def forward(self, raw: Array, x: Array, shape: Shape) -> tuple[Array, Array]:
        y, slope = self.spline.forward(raw.reshape(*x.shape, self.num_parameters), x)
        return y, sum_record(slope, shape)

    def inverse(self, raw: Array, y: Array, shape: Shape) -> tuple[Array, Array]:
        x, slope = self.spline.inverse(raw.reshape(*y.shape, self.num_parameters), y)
        return x, sum_record(slope, shape)


@dataclasses.dataclass(frozen=True)
class MixtureMap:
    """`LogisticMixture` for every element of a half; ``raw`` holds the first parameter of all channels, the second, ….

    The first and the last axis change places while the curve is computed: each parameter then is one piece of memory,
    and the batch is where `subnets.GlowNet` has it on a CPU.
    """

    mixture: LogisticMixture

    @property
    def num_parameters(self) -> int:
        return self.mixture.num_parameters

    def forward(self, raw: Array, x: Array, shape: Shape) -> tuple[Array, Array]:
        y, slope = self.mixture.forward(self._parameters(raw), jnp.swapaxes(x, 0, -1))
        return jnp.swapaxes(y, 0, -1), sum_record(jnp.swapaxes(slope, 0, -1), shape)

    def inverse(self, raw: Array, y: Array, shape: Shape) -> tuple[Array, Array]:
        x, slope = self.mixture.inverse(self._parameters(raw), jnp.swapaxes(y, 0, -1))
        return jnp.swapaxes(x, 0, -1), sum_record(jnp.swapaxes(slope, 0, -1), shape)

    def _parameters(self, raw: Array) -> list[Array]:
        # `split`, because its gradient is a concatenation, where that of indexing is a sum of padded arrays.
        return jnp.split(jnp.swapaxes(raw, 0, -1), self.num_parameters)


@dataclasses.dataclass(frozen=True)
class Coupling:
    """A two-sided coupling over the last axis, split into its first c//2 channels and the rest.

    Attributes:
      shape: (h, w, c) or (d,), with at least two channels.
      subnet: `ConvNet` for images, `DenseNet` for vectors.
      cond_dim: length K of the condition; 0 for none, and then a condition that is handed in is not looked at.
      half_map: the map T.
      separate: one subnet for each of T's parameters (RNVP, Dinh et al., arXiv 1605.08803) instead of one for all
        (GLOW, Kingma & Dhariwal, arXiv 1807.03039).
    """

    shape: Shape
    subnet: Subnet
    cond_dim: int = 0
    half_map: HalfMap = Affine()
    separate: bool = False

    def __post_init__(self) -> None:
        if self.shape[-1] < 2:
            raise ValueError(f"a coupling needs at least two channels, got {self.shape}")

    @property
    def out_shape(self) -> Shape:
        return self.shape

    @property
    def _halves(self) -> tuple[Shape, Shape]:
        first = self.shape[-1] // 2
        return (*self.shape[:-1], first), (*self.shape[:-1], self.shape[-1] - first)

    def init(self, key: Array) -> PyTree:
        first, second = self._halves
        keys = jax.random.split(key)
        return {"first": self._init_nets(keys[0], second, first), "second": self._init_nets(keys[1], first, second)}

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        cond = self._condition(x, cond)
        first, second = self._halves
        x1, x2 = jnp.split(x, [first[-1]], axis=-1)
        y1, logdet1 = self.half_map.forward(self._raw(params["first"], x2, cond), x1, first)
        y2, logdet2 = self.half_map.forward(self._raw(params["second"], y1, cond), x2, second)
        return jnp.concatenate([y1, y2], axis=-1), logdet1 + logdet2

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        cond = self._condition(y, cond)
        first, second = self._halves
        y1, y2 = jnp.split(y, [first[-1]], axis=-1)
        x2, logdet2 = self.half_map.inverse(self._raw(params["second"], y1, cond), y2, second)
        x1, logdet1 = self.half_map.inverse(self._raw(params["first"], x2, cond), y1, first)
        return jnp.concatenate([x1, x2], axis=-1), logdet1 + logdet2

    def _init_nets(self, key: Array, source: Shape, target: Shape) -> PyTree:
        p = self.half_map.num_parameters
        if not self.separate:
            return self.subnet.init(key, source, self.cond_dim, p * target[-1])
        keys = jax.random.split(key, p)
        return {f"net_{i}": self.subnet.init(keys[i], source, self.cond_dim, target[-1]) for i in range(p)}

    def _raw(self, params: PyTree, source: Array, cond: Array | None) -> Array:
        """The unconstrained numbers of T for one half, computed from the other."""
        if not self.separate:
            return self.subnet.apply(params, source, cond)
        nets = [params[f"net_{i}"] for i in range(self.half_map.num_parameters)]
        return jnp.concatenate([self.subnet.apply(p, source, cond) for p in nets], axis=-1)

    def _condition(self, x: Array, cond: Array | None) -> Array | None:
        lead = batch_shape(x, self.shape)
        if not self.cond_dim:
            return None
        if cond is None or cond.shape[-1] != self.cond_dim:
            got = None if cond is None else cond.shape
            raise ValueError(f"expected a condition of length {self.cond_dim}, got {got}")
        return jnp.broadcast_to(cond, (*lead, self.cond_dim))


_MIXTURE = LogisticMixture()


def coupling(
    kind: str,
    shape: Shape,
    subnet: Subnet,
    cond_dim: int,
    clamp: float,
    spline: Spline,
    mixture: LogisticMixture = _MIXTURE,
) -> Coupling:
    """A coupling by name, one of `COUPLINGS`; ``clamp`` serves the affine kinds, ``spline`` and ``mixture`` theirs.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in COUPLINGS:
        raise ValueError(f"coupling must be one of {COUPLINGS}, got {kind!r}")
    curves: dict[str, HalfMap] = {"spline": SplineMap(spline), "mixture": MixtureMap(mixture)}
    half_map = curves.get(kind, Affine(clamp, volume_preserving=kind == "gin"))
    return Coupling(shape, subnet, cond_dim, half_map, separate=kind == "rnvp")


COUPLINGS = ("glow", "rnvp", "gin", "spline", "mixture")
