"""Mixing of channels: fixed permutations and learned 1x1 convolutions, all with an exact log-determinant."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.flows.bijection import Shape, constant_logdet, size
from diffusion_privacy.types import Array, PyTree

PARAMETERISATIONS = ("lu", "orthogonal")


def permutations(seed: int, depth: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """``depth`` fixed permutations of ``channels`` things and their inverses, each int32 ``[depth, channels]``.

    A function of its arguments alone: a saved flow needs the seed, not the table. ``(x[p])[inverse] == x``.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    forward = np.stack([generator.permutation(channels) for _ in range(depth)]).astype(np.int32)
    return forward, np.argsort(forward, axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Permutation:
    """y[..., i] = x[..., p(i)] over the last axis, with p fixed by ``seed``. logdet = 0."""

    shape: Shape
    seed: int

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def init(self, key: Array) -> PyTree:
        del key
        return {}

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        return permute(x, permutations(self.seed, 1, self.shape[-1])[0][0]), constant_logdet(x, self.shape)

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        return permute(y, permutations(self.seed, 1, self.shape[-1])[1][0]), constant_logdet(y, self.shape)


def permute(x: Array, order: np.ndarray | Array) -> Array:
    """``x[..., order]``; ``order`` is known to be a permutation, so its gradient needs no accumulation."""
    return x.at[..., order].get(unique_indices=True, mode="promise_in_bounds")


@dataclasses.dataclass(frozen=True)
class Mixing:
    """y = x·W over the last axis, W invertible by construction (Kingma & Dhariwal, arXiv 1807.03039, section 3.2).

    ``lu``: W = L·U with a unit lower and an upper triangular factor, diagonal exp(s); logdet = (positions)·Σ s. The
    permutation of their PLU form is a `Permutation` of its own. ``orthogonal``: W = (I − A)(I + A)⁻¹ with A
    antisymmetric (Cayley), inverse Wᵀ, logdet = 0. Both start at W = I.
    """

    shape: Shape
    parameterisation: str = "lu"

    def __post_init__(self) -> None:
        if self.parameterisation not in PARAMETERISATIONS:
            raise ValueError(f"parameterisation must be one of {PARAMETERISATIONS}, got {self.parameterisation!r}")

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def init(self, key: Array) -> PyTree:
        del key
        c = self.shape[-1]
        if self.parameterisation == "orthogonal":
            return {"skew": jnp.zeros((c, c))}
        return {"lower": jnp.zeros((c, c)), "upper": jnp.zeros((c, c)), "log_diagonal": jnp.zeros(c)}

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        if self.parameterisation == "orthogonal":
            w = _cayley(params["skew"])
        else:
            lower, upper = _triangles(params)
            w = jnp.matmul(lower, upper, precision="highest")
        # Reduced precision (TF32) here would not be undone by the inverse.
        return jnp.matmul(x, w, precision="highest"), self._logdet(params, x)

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        if self.parameterisation == "orthogonal":
            inverse = _cayley(params["skew"]).T
        else:
            lower, upper = _triangles(params)
            eye = jnp.eye(self.shape[-1], dtype=lower.dtype)
            half = jax.scipy.linalg.solve_triangular(lower, eye, lower=True, unit_diagonal=True)
            inverse = jax.scipy.linalg.solve_triangular(upper, half)
        return jnp.matmul(y, inverse, precision="highest"), -self._logdet(params, y)

    def _logdet(self, params: PyTree, x: Array) -> Array:
        if self.parameterisation == "orthogonal":
            return constant_logdet(x, self.shape)
        positions = size(self.shape) // self.shape[-1]
        return constant_logdet(x, self.shape, positions * jnp.sum(params["log_diagonal"]))


def _triangles(params: PyTree) -> tuple[Array, Array]:
    lower = jnp.tril(params["lower"], -1) + jnp.eye(params["lower"].shape[0], dtype=params["lower"].dtype)
    return lower, jnp.triu(params["upper"], 1) + jnp.diag(jnp.exp(params["log_diagonal"]))


def _cayley(skew: Array) -> Array:
    a = (skew - skew.T) / 2
    eye = jnp.eye(a.shape[0], dtype=a.dtype)
    # (I + A)⁻¹ and (I − A) commute, so one solve gives the product in either order.
    return jnp.linalg.solve(eye + a, eye - a)
