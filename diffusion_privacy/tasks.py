"""What the one training loop can learn. A new kind of model is one more class."""

from __future__ import annotations

import dataclasses
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_privacy.anonymity.bank import IdentityBankTask
from diffusion_privacy.anonymity.detector_tasks import FingerprintTask, IdentityTask
from diffusion_privacy.anonymity.reidentification import EmbeddingTask
from diffusion_privacy.diffusion import latent, objective
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.errors import InputError
from diffusion_privacy.flows import objective as flow_objective
from diffusion_privacy.flows.objective import FlowModel
from diffusion_privacy.types import SDE, Array, ConditionalScore, PyTree, ScoreFn


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

    def check(self) -> None:
        """Raises InputError where the network has a dropout: it is given no keys for it here, and would ignore it."""
        if getattr(self.network, "dropout", 0) > 0:
            raise InputError("network.dropout: expected 0, score models are trained without")

    def init(self, key: Array, batch: PyTree) -> PyTree:
        label = jnp.asarray(batch["label"][:1]) if self.conditional else None
        return self.network.init(key, jnp.asarray(batch["image"][:1]), jnp.ones(1), label)

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        self.check()
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
        """The trained score of one class, or of a model without classes, as a pytree over ``params``.

        Args:
          params: of the network.
          label: a scalar or ``[B]``, of a conditional model; None for one that is not.

        Raises:
          InputError: no label for a conditional model. The network would take its null class, which no record trained.
        """
        if self.conditional and label is None:
            raise InputError("label: expected a class, the model was trained with one for each record; got None")
        return objective.score_fn(self.apply, jax.tree.map(jnp.asarray, params), self.sde, self.prediction, label)

    def conditional_score(self, params: PyTree) -> ConditionalScore:
        """The trained score with the label as its first argument, as a pytree over ``params``."""
        return objective.conditional_score_fn(self.apply, jax.tree.map(jnp.asarray, params), self.sde, self.prediction)


@dataclasses.dataclass(frozen=True)
class _Encoder:
    network: nn.Module

    def __call__(self, params: PyTree, x: Array) -> tuple[Array, Array]:
        return cast(tuple[Array, Array], self.network.apply(params, x, method="encode"))


@dataclasses.dataclass(frozen=True)
class _Decoder:
    network: nn.Module

    def __call__(self, params: PyTree, z: Array) -> Array:
        return cast(Array, self.network.apply(params, z, method="decode"))


@dataclasses.dataclass(frozen=True)
class AutoencoderTask:
    """The variational autoencoder of latent diffusion (`diffusion.latent`).

    Attributes:
      network: ``x -> x̂`` with the methods ``encode`` (mean, log-variance) and ``decode``.
      std, kl_weight: see `latent.autoencoder_loss`.
    """

    network: nn.Module
    std: float = 0.1
    kl_weight: float = 1.0

    @property
    def encoder(self) -> latent.Encode:
        """``(params, x) -> (mean, log-variance)``; hashable."""
        return _Encoder(self.network)

    @property
    def decoder(self) -> latent.Decode:
        """``(params, z) -> x̂``; hashable."""
        return _Decoder(self.network)

    def init(self, key: Array, batch: PyTree) -> PyTree:
        return self.network.init(key, jnp.asarray(batch["image"][:1]))

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        return latent.autoencoder_loss(
            self.encoder,
            self.decoder,
            params,
            jnp.asarray(batch["image"]),
            key,
            jnp.asarray(batch["position"]),
            std=self.std,
            kl_weight=self.kl_weight,
        )

    def evaluate(self, params: PyTree, batch: PyTree, key: Array) -> dict[str, Array]:
        losses, metrics = self.loss(params, batch, key)
        return {"loss": losses, **metrics}


@dataclasses.dataclass(frozen=True)
class FlowTask:
    """Maximum likelihood of a conditional flow (`flows.objective`).

    Attributes:
      model: the flow with its preprocessing and the meaning of its condition.
      reconstruction, perturbation: see `flows.objective.loss`.
    """

    model: FlowModel
    reconstruction: float = 0.0
    perturbation: float = 0.0

    def init(self, key: Array, batch: PyTree) -> PyTree:
        del batch
        return self.model.init(key)

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        fields = {name: jnp.asarray(value) for name, value in batch.items()}
        return flow_objective.loss(
            self.model, params, fields, key, reconstruction=self.reconstruction, perturbation=self.perturbation
        )

    def evaluate(self, params: PyTree, batch: PyTree, key: Array) -> dict[str, Array]:
        nll, metrics = flow_objective.loss(
            self.model, params, {name: jnp.asarray(value) for name, value in batch.items()}, key
        )
        return {"loss": nll, **metrics}


@dataclasses.dataclass(frozen=True)
class ClassifierTask:
    """Cross-entropy in nats of one classifier, ``(params, images) -> logits``."""

    classify: Classify

    def init(self, key: Array, batch: PyTree) -> PyTree:
        return self.classify.init(key, jnp.asarray(batch["image"]))

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        logp = jax.nn.log_softmax(self.classify(params, jnp.asarray(batch["image"])))
        label = jnp.asarray(batch["label"])
        losses = -jnp.take_along_axis(logp, label[:, None], axis=-1)[:, 0]
        return losses, {"accuracy": (jnp.argmax(logp, axis=-1) == label).astype(jnp.float32)}

    def evaluate(self, params: PyTree, batch: PyTree, key: Array) -> dict[str, Array]:
        losses, metrics = self.loss(params, batch, key)
        return {"loss": losses, **metrics}


@dataclasses.dataclass(frozen=True)
class ArmsTask:
    """A x S classifiers trained side by side: A arms (training sets), S seeds each, in one program.

    Batches hold ``image[B, A, S, ...]`` and ``label[B, A, S]``, every classifier's own row. The loss is the sum over
    classifiers, whose gradients do not meet as long as they are not clipped together. Seed s starts alike in every arm.
    """

    network: nn.Module
    arms: int
    seeds: int

    def init(self, key: Array, batch: PyTree) -> PyTree:
        image = jnp.asarray(batch["image"])[:1, 0, 0]
        one = jax.vmap(lambda k: self.network.init(k, image))(jax.random.split(key, self.seeds))
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.arms, *leaf.shape)), one)

    def logits(self, params: PyTree, image: Array) -> Array:
        """``params [A, S, ...], image[B, A, S, ...] -> [B, A, S, K]``."""
        over_seeds = jax.vmap(self.network.apply, in_axes=(0, 1), out_axes=1)
        return cast(Array, jax.vmap(over_seeds, in_axes=(0, 1), out_axes=1)(params, image))

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        losses = self._cross_entropy(params, batch)
        return jnp.sum(losses, axis=(1, 2)), {"per_classifier": jnp.mean(losses, axis=(1, 2))}

    def evaluate(self, params: PyTree, batch: PyTree, key: Array) -> dict[str, Array]:
        del key
        return {"loss": jnp.mean(self._cross_entropy(params, batch), axis=(1, 2))}

    def _cross_entropy(self, params: PyTree, batch: PyTree) -> Array:
        logp = jax.nn.log_softmax(self.logits(params, jnp.asarray(batch["image"])))
        return -jnp.take_along_axis(logp, jnp.asarray(batch["label"])[..., None], axis=-1)[..., 0]


TASKS: dict[str, type] = {
    "score": ScoreTask,
    "autoencoder": AutoencoderTask,
    "flow": FlowTask,
    "classifier": ClassifierTask,
    "arms": ArmsTask,
    "fingerprint": FingerprintTask,
    "identity": IdentityTask,
    "identity_bank": IdentityBankTask,
    "embedding": EmbeddingTask,
}
"""Everything that the one loop can learn, by name: where to look. Stages construct the tasks themselves."""
