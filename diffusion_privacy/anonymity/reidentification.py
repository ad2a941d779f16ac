"""One re-identification embedding for all records: "is this image that record?" as a cosine, for any record.

One classifier a record (Dombrowski & Kainz, arXiv 2306.01363) or one output a record (`bank`) must be trained with the
audited records at hand. An embedding is trained once, to bring two views of a record together and to keep different
records apart; afterwards a record is one more vector, with a threshold of its own.

The loss is InfoNCE (van den Oord et al., arXiv 1807.03748, eq. 4) on cosines over a temperature, as in SimCLR (Chen et
al., arXiv 2002.05709), with one difference: negatives are drawn from a pool of records and not from the rest of the
batch. They depend on the step alone, so that a result does not depend on how the batch is split over devices.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity.detector_tasks import NetworkApply, NetworkInit, Perturbation
from diffusion_privacy.anonymity.fingerprints import Fingerprint, plant_several
from diffusion_privacy.errors import InputError
from diffusion_privacy.training.rng import per_record
from diffusion_privacy.types import Array, Detector, PyTree

POOL, POOL_VALUES = 4096, 2**26
"""Most records of a pool, and most numbers of them all: it is compiled in, and 4,096 images of 512 pixels are 4 GB."""


def pool_size(shape: tuple[int, ...]) -> int:
    """Most records of this shape that a pool holds, 2 or more."""
    return max(2, min(POOL, POOL_VALUES // math.prod(shape)))


def info_nce(one: Array, two: Array, negatives: Array, allowed: Array, temperature: float) -> Array:
    """−log of the positive's softmax share among itself and the allowed negatives, both ways averaged, nats ``[B]``.

    Args:
      one, two: unit vectors ``[B, d]``, two views of each record.
      negatives: unit vectors ``[K, d]``.
      allowed: bool ``[B, K]``, False where the negative is the same person.
      temperature: τ > 0; similarities are cosines over τ.
    """
    positive = jnp.sum(one * two, axis=1) / temperature

    def against(anchor: Array) -> Array:
        others = jnp.where(allowed, anchor @ negatives.T / temperature, -jnp.inf)
        return jnp.logaddexp(positive, jax.nn.logsumexp(others, axis=1)) - positive

    return 0.5 * (against(one) + against(two))


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddingTask:
    """The contrastive task. Views are perturbed copies, each with 0 to ``most`` random fingerprints of its own.

    Positive and negative views are marked alike, so that the fingerprint says nothing about identity.

    Attributes:
      network_init, network_apply: an embedding ``[B, H, W, C] -> [B, d]`` of unit length (`networks.embedding`).
      mark: the fingerprint.
      pool: CLEAN records that negatives are drawn from, float32 ``[P, H, W, C]``, at most `POOL` of them.
      identities: their persons, int ``[P]``; a record is never its own person's negative.
      perturbation: see `detector_tasks.Perturbation`.
      most: largest number of fingerprints on an image.
      negatives: K, drawn anew each step for the whole batch.
      temperature: τ.

    Raises:
      InputError: a pool that does not fit its identities or is too large, or a setting out of range.
    """

    network_init: NetworkInit
    network_apply: NetworkApply
    mark: Fingerprint
    pool: np.ndarray
    identities: np.ndarray
    perturbation: Perturbation = dataclasses.field(default_factory=Perturbation)
    most: int = 4
    negatives: int = 128
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if np.ndim(self.pool) != 4 or not 2 <= len(self.pool) <= POOL or np.shape(self.identities) != (len(self.pool),):
            raise InputError(
                f"embedding.pool: expected 2 … {POOL} images [P, H, W, C] with a person each, "
                f"got {np.shape(self.pool)} and {np.shape(self.identities)}"
            )
        if self.most < 0 or self.negatives < 1 or not self.temperature > 0:
            raise InputError(
                f"embedding: expected most >= 0, negatives >= 1 and temperature > 0, "
                f"got {self.most}, {self.negatives} and {self.temperature}"
            )

    def _view(self, image: Array, key: Array) -> Array:
        number, place, change = jax.random.split(key, 3)
        marks = jax.random.randint(number, (), 0, self.most + 1, jnp.int32)
        return self.perturbation(plant_several(self.mark, image, place, marks, self.most), change)

    def views(self, batch: PyTree, key: Array) -> tuple[Array, Array]:
        """``(images [2B + K, H, W, C], rows of the pool [K])``: both views of the batch, then the negatives."""
        own, shared = jax.random.split(key)
        first, second = (per_record(k, batch["position"]) for k in jax.random.split(own))
        which, others = jax.random.split(shared)
        rows = jax.random.randint(which, (self.negatives,), 0, len(self.pool))
        image = jnp.asarray(batch["image"])
        images = jnp.concatenate([image, image, jnp.asarray(self.pool)[rows]])
        keys = jnp.concatenate([first, second, jax.random.split(others, self.negatives)])
        return jax.vmap(self._view)(images, keys), rows

    def init(self, key: Array, batch: PyTree) -> PyTree:
        return self.network_init(key, jnp.asarray(batch["image"])[:1])

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        images, rows = self.views(batch, key)
        vectors, size = self.network_apply(params, images), len(batch["image"])
        one, two, others = vectors[:size], vectors[size : 2 * size], vectors[2 * size :]
        allowed = jnp.asarray(batch["identity"])[:, None] != jnp.asarray(self.identities)[rows][None]
        closest = jnp.max(jnp.where(allowed, one @ others.T, -jnp.inf), axis=1)
        right = (jnp.sum(one * two, axis=1) > closest).astype(jnp.float32)
        return info_nce(one, two, others, allowed, self.temperature), {"accuracy": right}

    def evaluate(self, params: PyTree, batch: PyTree, key: Array) -> dict[str, Array]:
        losses, metrics = self.loss(params, batch, key)
        return {"loss": losses, **metrics}


@dataclasses.dataclass(frozen=True)
class _Cosine:
    network: NetworkApply

    def __call__(self, params: PyTree, vector: Array, x: Array) -> Array:
        return self.network(params, x) @ vector


def similarity(network: NetworkApply, params: PyTree, record: Array) -> Detector:
    """Score of one record: cosine of ``x[B, ...]`` with the clean ``record[...]``, in [-1, 1].

    `detectors.calibrate` gives it a conformal threshold.
    """
    vector = network(params, jnp.asarray(record)[None])[0]
    return jax.tree_util.Partial(_Cosine(network), params, vector)


@dataclasses.dataclass(frozen=True)
class EmbeddingScores:
    """C_f and the cosines of R records: takes the place of `bank.PairScores`. Hashable.

    ``params``: ``fingerprint``, ``identity`` (the embedding's) and ``vectors [R, d]``, the records' embeddings.

    Attributes:
      fingerprint: ``apply(params, x) -> [B, 1]``.
      embedding: ``apply(params, x) -> [B, d]``.
    """

    fingerprint: NetworkApply
    embedding: NetworkApply

    def __call__(self, params: PyTree, x: Array) -> tuple[Array, Array]:
        """(C_f ``[B]`` in nats of log-odds, cosines ``[B, R]``)."""
        cosines = self.embedding(params["identity"], x) @ params["vectors"].T
        return self.fingerprint(params["fingerprint"], x)[:, 0], cosines
