"""Detectors of several records at once: one fingerprint classifier, one identity classifier with an output a record.

The paper trains one C_id a record (Dombrowski & Kainz, arXiv 2306.01363, section 3.2). Here the audited records,
private and control, share one softmax with a class for everybody else; the score of record r is its log-odds against
all other classes. One network then serves every record of an audit, in one compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from diffusion_privacy.anonymity import lanes
from diffusion_privacy.anonymity.detector_tasks import NetworkApply, NetworkInit, Perturbation
from diffusion_privacy.anonymity.fingerprints import Fingerprint, plant_several
from diffusion_privacy.training.rng import per_record
from diffusion_privacy.types import Array, PyTree

Scores = Callable[[PyTree, Array], tuple[Array, Array]]
"""``(params, x[B, ...]) -> (C_f [B], C_id [B, R])``, hashable: `PairScores` or `reidentification.EmbeddingScores`."""


@dataclasses.dataclass(frozen=True, eq=False)
class IdentityBankTask:
    """C_id for R records: class r < R is audited record r, class R is everybody else.

    Half of each batch is replaced by audited records, drawn evenly; every image carries 0 to ``most`` fingerprints
    whatever its class, so that the fingerprint says nothing about identity.

    Attributes:
      network_init, network_apply: a network with R + 1 outputs.
      mark: the fingerprint.
      records: CLEAN audited records, float32 ``[R, H, W, C]``.
      identities: their persons, int ``[R]``; another image of the same person counts as that record.
      perturbation: what both classes undergo, see `detector_tasks.Perturbation`.
      most: largest number of fingerprints on an image.
    """

    network_init: NetworkInit
    network_apply: NetworkApply
    mark: Fingerprint
    records: np.ndarray
    identities: np.ndarray
    perturbation: Perturbation = dataclasses.field(default_factory=Perturbation)
    most: int = 4

    def _one(self, image: Array, identity: Array, own: Array) -> tuple[Array, Array]:
        chance, choice, number, place, change = jax.random.split(own, 5)
        count = len(self.records)
        which = jax.random.randint(choice, (), 0, count)
        swap = jax.random.bernoulli(chance)
        chosen = jnp.where(swap, jnp.asarray(self.records)[which], image)
        same = jnp.asarray(self.identities) == identity
        native = jnp.where(jnp.any(same), jnp.argmax(same), count)
        marks = jax.random.randint(number, (), 0, self.most + 1, jnp.int32)
        marked = plant_several(self.mark, chosen, place, marks, self.most)
        return self.perturbation(marked, change), jnp.where(swap, which, native)

    def init(self, key: Array, batch: PyTree) -> PyTree:
        return self.network_init(key, jnp.asarray(batch["image"]))

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        keys = per_record(key, batch["position"])
        image, target = jax.vmap(self._one)(jnp.asarray(batch["image"]), jnp.asarray(batch["identity"]), keys)
        logits = self.network_apply(params, image)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        return losses, {"accuracy": (jnp.argmax(logits, axis=1) == target).astype(jnp.float32)}

    def evaluate(self, params: PyTree, batch: PyTree, key: Array) -> dict[str, Array]:
        losses, metrics = self.loss(params, batch, key)
        return {"loss": losses, **metrics}


def log_odds(logits: Array) -> Array:
    """``[B, R]``: log p_r − log(1 − p_r) in nats of each audited class, from softmax logits ``[B, R + 1]``."""
    count = logits.shape[1]
    others = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, logits[:, None, :])
    return (logits - jax.nn.logsumexp(others, axis=2))[:, :-1]


@dataclasses.dataclass(frozen=True)
class PairScores:
    """C_f and C_id of a bank. Hashable, so that equal banks share compiled programs.

    Attributes:
      fingerprint: ``apply(params, x) -> [B, 1]``.
      identity: ``apply(params, x) -> [B, R + 1]``.
    """

    fingerprint: NetworkApply
    identity: NetworkApply

    def __call__(self, params: PyTree, x: Array) -> tuple[Array, Array]:
        """(C_f ``[B]``, C_id ``[B, R]``) in nats of log-odds."""
        return self.fingerprint(params["fingerprint"], x)[:, 0], log_odds(self.identity(params["identity"], x))


@dataclasses.dataclass(frozen=True)
class PairMargin:
    """Margin of the pair for a given record: min over the parts of (score − threshold) / scale.

    ``params`` adds ``thresholds [R, 2]`` and ``scales [R, 2]`` (fingerprint, identity) to those of `PairScores`.
    """

    scores: Scores

    def __call__(self, params: PyTree, x: Array, record: Array) -> Array:
        """``[B]``; positive means both parts fire for record number ``record[B]``."""
        f, identity = self.scores(params, x)
        own = jnp.take_along_axis(identity, record[:, None], axis=1)[:, 0]
        parts = jnp.stack([f, own], axis=1)
        return jnp.min((parts - params["thresholds"][record]) / params["scales"][record], axis=1)


def _score_lanes(scores: Scores, operands: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    f, identity = scores(operands, batch["x"])
    return {"fingerprint": f, "identity": identity}


def evaluate(
    scores: Scores, params: PyTree, images: np.ndarray, *, chunk: int = 256, mesh: Mesh | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(C_f ``[N]``, C_id ``[N, R]``) of ``images[N, H, W, C]``, in one compiled program.

    Raises:
      FloatingPointError: a score is not finite.
    """
    out = lanes.run(_score_lanes, scores, params, {"x": np.asarray(images, np.float32)}, chunk=chunk, mesh=mesh)
    if not all(np.all(np.isfinite(z)) for z in out.values()):
        raise FloatingPointError("a detector network returned a score that is not finite")
    return out["fingerprint"], out["identity"]
