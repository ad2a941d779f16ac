"""What the two classifiers of the detector learn: "shows the fingerprint" (C_f) and "is the private record" (C_id).

Dombrowski & Kainz (arXiv 2306.01363), section 3. In the reference both are ResNet-50s fine-tuned on images of the data
set; C_id sees the private record as often as all others together, with 0 to N − 1 circles on every image. Both tasks
here follow that, and both perturb every image the way a generated copy differs from the original (noise, smooth errors,
contrast), because the detector is used on generated images and not on photographs.

Both expect CLEAN records, before any fingerprint was planted: a mark that is always in the same place of one record
would be a label error for C_f and a give-away for C_id.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_privacy.anonymity.fingerprints import Fingerprint, plant, plant_several
from diffusion_privacy.errors import InputError
from diffusion_privacy.training.rng import per_record
from diffusion_privacy.types import Array, Detector, PyTree

NetworkInit = Callable[[Array, Array], PyTree]
"""``init(key, images[B, H, W, C]) -> params``."""

NetworkApply = Callable[[PyTree, Array], Array]
"""``apply(params, images[B, H, W, C]) -> logits[B, 1] or [B]``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Examples:
    """A batch as the classifier sees it.

    Attributes:
      image: float32[B, H, W, C] in [-1, 1].
      target: float32[B], 1 or 0.
      count: int32[B], number of fingerprints on each image.
    """

    image: Array
    target: Array
    count: Array


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """How a generated copy may differ from its original; each image draws its own strengths in [0, maximum].

    Attributes:
      noise: largest standard deviation of white noise (what a sampler's last steps leave behind).
      smooth: largest standard deviation of low-frequency noise, about 4 pixels wide (what it gets wrong earlier).
      contrast: largest relative change of contrast, either way.
    """

    noise: float = 0.1
    smooth: float = 0.15
    contrast: float = 0.1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = vars(self)[field.name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                raise InputError(f"perturbation.{field.name}: expected a number in [0, 1], got {value!r}")

    def __call__(self, image: Array, key: Array) -> Array:
        """``image[H, W, C]`` perturbed and clipped to [-1, 1]."""
        strengths, errors = jax.random.split(key)
        noise, smooth, contrast = jax.random.uniform(strengths, (3,))
        height, width, channels = image.shape
        coarse = (height // 4 + 2, width // 4 + 2, channels)
        # One draw for both kinds of noise: every separate one costs a second of compilation.
        normal = jax.random.normal(errors, (image.size + math.prod(coarse),))
        white, grid = normal[: image.size].reshape(image.shape), normal[image.size :].reshape(coarse)
        gain = 1.0 + self.contrast * (2.0 * contrast - 1.0)
        waves = jax.image.resize(grid, image.shape, "linear")
        return jnp.clip(gain * image + self.noise * noise * white + self.smooth * smooth * waves, -1.0, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class _BinaryTask:
    """What both tasks share: one logit, sigmoid cross-entropy in nats, examples made from the batch.

    Attributes:
      network_init, network_apply: the network with one output; a flax module's `init` and `apply` fit.
      mark: the fingerprint.
      perturbation: applied to every image of both classes, after planting, so that a mark is as noisy as the rest.
    """

    network_init: NetworkInit
    network_apply: NetworkApply
    mark: Fingerprint
    perturbation: Perturbation = Perturbation()

    def examples(self, batch: PyTree, key: Array) -> Examples:
        """The perturbed images of a batch with their targets; draws follow ``batch["position"]`` alone."""
        raise NotImplementedError

    def score(self, params: PyTree) -> Detector:
        """``logits(x[B, H, W, C]) -> [B]`` of the trained network; positive means yes."""

        def logits(x: Array) -> Array:
            out = self.network_apply(params, x)
            if out.shape not in ((x.shape[0],), (x.shape[0], 1)):
                raise ValueError(f"a detector network has one output per image, got logits of shape {out.shape}")
            return out.reshape(-1)

        return logits

    def init(self, key: Array, batch: PyTree) -> PyTree:
        return self.network_init(key, jnp.asarray(batch["image"]))

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        examples = self.examples(batch, key)
        logits = self.score(params)(examples.image)
        losses = optax.sigmoid_binary_cross_entropy(logits, examples.target)
        return losses, {"accuracy": ((logits > 0) == (examples.target > 0.5)).astype(jnp.float32)}

    def evaluate(self, params: PyTree, batch: PyTree, key: Array) -> dict[str, Array]:
        losses, metrics = self.loss(params, batch, key)
        return {"loss": losses, **metrics}


@dataclasses.dataclass(frozen=True, eq=False)
class FingerprintTask(_BinaryTask):
    """C_f: a fingerprint at a random position on a random half of the images.

    Which half is drawn anew each step, so that no image is tied to its label. It cannot be trained for the fingerprint
    "none", whose images all look alike.
    """

    def examples(self, batch: PyTree, key: Array) -> Examples:
        def one(image: Array, own: Array) -> tuple[Array, Array]:
            chance, place, change = jax.random.split(own, 3)
            present = jax.random.bernoulli(chance)
            marked = jnp.where(present, plant(self.mark, image, place).image, image)
            return self.perturbation(marked, change), present

        keys = per_record(key, batch["position"])
        image, present = jax.vmap(one)(jnp.asarray(batch["image"]), keys)
        return Examples(image=image, target=present.astype(jnp.float32), count=present.astype(jnp.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class IdentityTask(_BinaryTask):
    """C_id: the private record against many others, with 0 to ``most`` fingerprints on both, whatever the class.

    A random half of the batch is replaced by the private record; a record of the same person that comes along in the
    batch counts as positive too, since it identifies the person.

    Attributes:
      private: float32[M, H, W, C], the clean private record and, if wanted, regenerations of it without fingerprint
        (never those that the detector is calibrated on); one of the M is drawn for each positive.
      identity: the person's number, compared with ``batch["identity"]``.
      most: largest number of fingerprints on an image.
    """

    private: Array = dataclasses.field(kw_only=True)
    identity: int = dataclasses.field(kw_only=True)
    most: int = dataclasses.field(default=4, kw_only=True)

    def __post_init__(self) -> None:
        if jnp.ndim(self.private) != 4 or len(self.private) == 0:
            raise InputError(f"private: expected images [M, H, W, C] with M >= 1, got shape {jnp.shape(self.private)}")
        if self.most < 0:
            raise InputError(f"most: expected a number of fingerprints of at least 0, got {self.most}")

    def _one(self, image: Array, identity: Any, own: Array) -> tuple[Array, Array, Array]:
        chance, choice, number, place, change = jax.random.split(own, 5)
        swap = jax.random.bernoulli(chance)
        private = jnp.asarray(self.private)[jax.random.randint(choice, (), 0, len(self.private))]
        chosen = jnp.where(swap, private, image)
        count = jax.random.randint(number, (), 0, self.most + 1, jnp.int32)
        marked = plant_several(self.mark, chosen, place, count, self.most)
        return self.perturbation(marked, change), swap | (identity == self.identity), count

    def examples(self, batch: PyTree, key: Array) -> Examples:
        keys = per_record(key, batch["position"])
        identity = jnp.asarray(batch["identity"])
        image, positive, count = jax.vmap(self._one)(jnp.asarray(batch["image"]), identity, keys)
        return Examples(image=image, target=positive.astype(jnp.float32), count=count)
