"""Learned scale and shift: per channel (ActNorm) and per condition (class-wise Gaussian latents)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from diffusion_privacy.flows.bijection import Shape, batch_shape, constant_logdet, size, sum_record
from diffusion_privacy.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class ActNorm:
    """y = (x + b)·exp(s), one b and one s a channel (Kingma & Dhariwal, arXiv 1807.03039, section 3.1).

    Starts as the identity instead of from the first batch: an initialisation that reads data would make the parameters
    depend on records outside the optimiser, where neither a seed nor DP-SGD sees it. logdet = (positions)·Σ s.
    """

    shape: Shape

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def init(self, key: Array) -> PyTree:
        del key
        return {"bias": jnp.zeros(self.shape[-1]), "log_scale": jnp.zeros(self.shape[-1])}

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        return (x + params["bias"]) * jnp.exp(params["log_scale"]), self._logdet(params, x)

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        x = y * jnp.exp(-params["log_scale"]) - params["bias"]
        return x, -self._logdet(params, y)

    def _logdet(self, params: PyTree, x: Array) -> Array:
        positions = size(self.shape) // self.shape[-1]
        return constant_logdet(x, self.shape, positions * jnp.sum(params["log_scale"]))


@dataclasses.dataclass(frozen=True)
class ClassGaussian:
    """Class-wise Gaussian latents N(mu_y, diag sigma_y²), written as the last bijection of a flow.

    z = (h − mu_y)/sigma_y, logdet = −Σ log sigma_y, with mu_y = cᵀM and log sigma_y = cᵀS for a condition c (one-hot or
    attributes, where the effects add). The density is the one of N(mu_y, sigma_y²) on h, but every latent that leaves
    the flow is N(0, I) under the model, so that clipping radii and prior-matched decoding need no case of their own.
    The "ICA" variant of the paper; Sorrenson et al. (arXiv 2001.04872), eq. 3. Zero start: one N(0, I) for all classes.
    """

    shape: Shape
    cond_dim: int

    def __post_init__(self) -> None:
        if len(self.shape) != 1 or self.cond_dim < 1:
            raise ValueError(f"class-wise latents need a vector and a condition, got {self.shape}, {self.cond_dim}")

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def init(self, key: Array) -> PyTree:
        del key
        return {"mean": jnp.zeros((self.cond_dim, *self.shape)), "log_std": jnp.zeros((self.cond_dim, *self.shape))}

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        mean, log_std = self._moments(params, x, cond)
        return (x - mean) * jnp.exp(-log_std), -sum_record(log_std, self.shape)

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        mean, log_std = self._moments(params, y, cond)
        return y * jnp.exp(log_std) + mean, sum_record(log_std, self.shape)

    def _moments(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        if cond is None:
            raise ValueError("class-wise latents need a condition")
        shape = (*batch_shape(x, self.shape), *self.shape)
        mean, log_std = (jnp.matmul(cond, params[name], precision="highest") for name in ("mean", "log_std"))
        return jnp.broadcast_to(mean, shape), jnp.broadcast_to(log_std, shape)
