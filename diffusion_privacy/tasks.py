"""What the one training loop can learn. A new kind of model is one more class."""

from __future__ import annotations

import dataclasses
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_privacy.diffusion import objective
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.types import SDE, Array, PyTree, ScoreFn


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """``apply(params, x, t, label)`` of a flax network; hashable, so that equal networks share compiled programs."""

    network: nn.Module
    sde: SDE

    def __call__(self, params: PyTree, x: Array, t: Array, label: Array | None = None) -> Array:
        # Inputs at unit scale under every SDE; the identity for VP.
        n = jnp.sqrt(self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2)
        return cast(Array, self.network.apply(params, x / expand(n, x), t, label))


@dataclasses.dataclass(frozen=True)
class Classify:
    """``apply(params, x) -> logits`` of a flax network; hashable."""

    network: nn.Module

    def __call__(self, params: PyTree, x: Array) -> Array:
        return cast(Array, self.network.apply(params, x))

    def init(self, key: Array, images: Array) -> PyTree:
        """Parameters; one image is enough to know the shapes."""
        return self.network.init(key, images[:1])


@dataclasses.dataclass(frozen=True)
class ScoreTask:
    """Denoising score matching (`diffusion.objective`).

    Attributes:
      network: a denoiser, ``(x, t, label) -> [B, ...]``.
      sde: the forward process.
      batch_size: of the whole batch over all devices.
      prediction, weighting: see `objective.denoising_loss`.
      conditional: give the network the record's label.
    """

    network: nn.Module
    sde: SDE
    batch_size: int
    prediction: str = "eps"
    weighting: str = "simple"
    conditional: bool = False

    @property
    def apply(self) -> Denoiser:
        """The network as the objective and the samplers call it."""
        return Denoiser(self.network, self.sde)

    def init(self, key: Array, batch: PyTree) -> PyTree:
        label = jnp.asarray(batch["label"][:1]) if self.conditional else None
        return self.network.init(key, jnp.asarray(batch["image"][:1]), jnp.ones(1), label)

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        losses = objective.denoising_loss(
            self.apply,
            params,
            self.sde,
            jnp.asarray(batch["image"]),
            key,
            jnp.asarray(batch["position"]),
            batch_size=self.batch_size,
            prediction=self.prediction,
            weighting=self.weighting,
            label=jnp.asarray(batch["label"]) if self.conditional else None,
        )
        return losses, {}

    def evaluate(self, params: PyTree, batch: PyTree, key: Array) -> dict[str, Array]:
        return {"loss": self.loss(params, batch, key)[0]}

    def score(self, params: PyTree, label: Array | None = None) -> ScoreFn:
        """The trained score, as a pytree over ``params``."""
        return objective.score_fn(self.apply, jax.tree.map(jnp.asarray, params), self.sde, self.prediction, label)
