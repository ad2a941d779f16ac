"""A private data set: encode, clip, add fresh noise, decode; and the manifest that says what was promised.

`privatise` has no key or seed argument. Its noise comes from the operating system inside the call, so neither a
configuration nor a test can make it repeat itself; noise from a given key exists only in `study`, whose results no
writer accepts. Networks come as callables ``encode(x[B, ...], c[B]) -> z[B, D]`` and ``decode(z[B, D], c[B]) -> x``.

The end-to-end guarantee covers what f⁻¹ publishes only if the flow does not depend on the records released:

- ``public``: trained on other records. Both sets of hashes must be given and must be disjoint.
- ``dp-sgd``: trained on these records with a known privacy event, which is composed.
- ``mechanism-only``: trained on these records without one. The latent step alone carries ε; there is no end-to-end
  guarantee. Only on explicit request.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from diffusion_privacy import __version__
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import noise
from diffusion_privacy.mechanisms.accounting import Spend, account, record_spend
from diffusion_privacy.mechanisms.condition import ConditionMechanism
from diffusion_privacy.mechanisms.decoding import CoarseSelection, match_prior
from diffusion_privacy.mechanisms.discrete import DiscreteGaussian, DiscreteLaplace
from diffusion_privacy.mechanisms.ledger import record_hashes
from diffusion_privacy.mechanisms.mechanism import (
    GaussianMechanism,
    LaplaceMechanism,
    Mechanism,
    MetricMechanism,
    many_at_scale,
)
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD, Neighbours, Relation, require_relation
from diffusion_privacy.types import Array

logger = logging.getLogger(__name__)

FlowTraining = Literal["public", "dp-sgd", "mechanism-only"]
FLOW_TRAININGS: tuple[FlowTraining, ...] = ("public", "dp-sgd", "mechanism-only")

CLASS_IS_PUBLIC = "the class of every record"
"""Among what a manifest calls public, where the condition may not differ between neighbours."""

Encode = Callable[[Array, Array], Array]
Decode = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class FlowProvenance:
    """How the flow relates to the records it will protect.

    Attributes:
      training: one of `FLOW_TRAININGS`.
      trained_on: `ledger.record_hashes` of its training records (of the same arrays that `privatise` gets); empty for a
        flow trained on nothing of this kind. Required for ``public``, where the disjointness is checked.
      spend: the privacy event of its training; required for ``dp-sgd``, refused otherwise.
    """

    training: FlowTraining
    trained_on: frozenset[str] | None = None
    spend: Spend | None = None

    def __post_init__(self) -> None:
        if self.training not in FLOW_TRAININGS:
            raise InputError(f"flow_training: expected one of {FLOW_TRAININGS}, got {self.training!r}")
        if self.training == "public" and self.trained_on is None:
            raise InputError("flow_training: 'public' needs the hashes of the flow's training records to be checked")
        if (self.training == "dp-sgd") != (self.spend is not None):
            raise InputError("flow_training: a privacy event of the training is needed for 'dp-sgd' and for no other")

    def check(self, hashes: Sequence[str]) -> None:
        """`InputError` when the flow is called public but was trained on any of these records."""
        if self.training == "public" and self.trained_on is not None:
            shared = len(self.trained_on.intersection(hashes))
            if shared:
                raise InputError(
                    f"flow_training: {shared} of the {len(hashes)} records were in the flow's training set; train it "
                    "on other data, train it with DP-SGD, or ask for 'mechanism-only' (no end-to-end guarantee)"
                )


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a release says about itself. Holds no seed, no key, and no statistic of the private records.

    Attributes:
      mechanism, norm, clip_norm, sensitivity, noise_scale: the latent step; sensitivity in `norm` under `relation`;
        clip_norm and sensitivity are None for metric noise.
      relation: neighbouring relation in words.
      epsilon, delta: of condition, latent and (DP-SGD) flow training together, in nats; epsilon is None when nothing
        finite is promised.
      epsilon_method: how it was composed (`accounting.Account.method`).
      latent_epsilon, condition_epsilon: the parts, each at `delta` (None: public, not promised).
      condition: how the class was released.
      guarantee: the promise in words, limits included.
      public: what is taken to be public knowledge.
      flow_training: `FlowTraining`.
      arithmetic: how the noise was computed.
      decoding: ``"prior-matched"`` or ``"plain"``.
      selected_latents, latent_dim: how many coordinates carry the record; the rest are drawn from the prior.
      clip_share: share of PUBLIC latents that the clip shortens; None when none were given. The share among the private
        records would be a statistic of them outside the guarantee, and is not computed.
      count_in, count_out: numbers of records, always equal.
      composition: totals over earlier releases (see `export.publish`).
      warnings: what a reader must not overlook.
      versions: of the packages that computed it.
    """

    mechanism: str
    norm: str
    clip_norm: float | None
    sensitivity: float | None
    relation: str
    epsilon: float | None
    delta: float
    epsilon_method: str
    latent_epsilon: float | None
    condition_epsilon: float | None
    noise_scale: float
    condition: str
    guarantee: str
    public: tuple[str, ...]
    flow_training: str
    arithmetic: str
    decoding: str
    selected_latents: int
    latent_dim: int
    clip_share: float | None
    count_in: int
    count_out: int
    composition: dict[str, Any]
    warnings: tuple[str, ...]
    versions: dict[str, str]
    schema: int = 1


@dataclasses.dataclass(frozen=True)
class Privatised:
    """A private data set in memory, made by `privatise` only.

    Attributes:
      data: decoded records float32 [N, ...].
      labels: published classes int32 [N].
      manifest: its promise.
      spend: event of the condition and latent steps, for the ledger.
      flow: where the flow came from.
      hashes: record hashes, for the ledger; never written to the release.
    """

    data: np.ndarray
    labels: np.ndarray
    manifest: Manifest
    spend: Spend
    flow: FlowProvenance
    hashes: tuple[str, ...]


def versions() -> dict[str, str]:
    """Versions of this package and of those that compute a release."""
    names = ("jax", "numpy", "scipy", "dp-accounting")
    return {"diffusion-privacy": __version__} | {name: importlib.metadata.version(name) for name in names}


def noised(mechanism: Mechanism, z: Array) -> np.ndarray:
    """Fresh private latents: ``z[B, D] -> z̃[B, D]`` float32, each record by itself with its own entropy."""
    if isinstance(mechanism, DiscreteGaussian | DiscreteLaplace):
        return np.asarray(mechanism.many(noise.os_bytes, np.asarray(z)), np.float32)
    if not isinstance(mechanism, GaussianMechanism | LaplaceMechanism | MetricMechanism):
        raise InputError(f"mechanism: expected one that this program knows how to run, got {mechanism!r}")
    keys = noise.fresh_keys(z.shape[0])
    return np.asarray(many_at_scale(mechanism.unscaled(), mechanism.noise_scale, keys, jnp.asarray(z)), np.float32)


def privatise(
    encode: Encode,
    decode: Decode,
    records: np.ndarray,
    labels: np.ndarray,
    *,
    mechanism: Mechanism,
    condition: ConditionMechanism,
    relation: Relation,
    delta: float,
    flow: FlowProvenance,
    selection: CoarseSelection | None = None,
    match: bool = True,
    person: np.ndarray | None = None,
    public_latents: np.ndarray | None = None,
    batch_size: int = 256,
) -> Privatised:
    """One private record for each record, in the same order.

    Under ``relation`` the output as a whole is (manifest.epsilon, manifest.delta)-private: the condition is released
    first, then the latent given it, each record apart (parallel composition); what follows is post-processing. See
    the module for what the flow's training adds or takes away.

    Args:
      encode, decode: the flow, batched; encode sees the PUBLISHED classes.
      records: float [N, ...], finite.
      labels: private classes int [N].
      delta: δ at which the total is stated; 0 for a pure guarantee.
      selection: coordinates to privatise; None for all. The mechanism's C must be meant for that many.
      match: bring the noised latent back to the prior before decoding.
      person: int [N], equal for records of one person; None when each record is another person.
      public_latents: [M, D] latents of public records, for clip_share.
      batch_size: records encoded and decoded at once; the last batch is padded by repeating, and the padding dropped
        again.

    Raises:
      InputError: unspecified relation, a flow called public that was not, NaN in a record, a class out of range, a
        person with more records than the relation says.
    """
    require_relation(relation)
    records = np.asarray(records)
    count = records.shape[0]
    _check_records(records, labels, delta)
    persons = _check_persons(person, count, relation)
    hashes = record_hashes(records)
    flow.check(hashes)
    published = condition.many(noise.os_bytes, labels)
    parts, dim = [], 0
    for start in range(0, count, batch_size):
        real = np.arange(start, min(start + batch_size, count))
        index = np.resize(real, batch_size)
        classes = jnp.asarray(published[index])
        z = encode(jnp.asarray(records[index], jnp.float32), classes)[: real.size]
        if z.ndim != 2:
            raise ValueError(f"encode must return [B, D], got {z.shape}")
        dim = z.shape[1]
        private = _private_latents(mechanism, z, selection, match)
        padded = jnp.asarray(private[np.resize(np.arange(real.size), batch_size)])
        parts.append(np.asarray(decode(padded, classes), np.float32)[: real.size])
    data = np.concatenate(parts)
    if data.shape[0] != count:
        raise ValueError(f"decode returned {data.shape[0]} records for {count}")
    manifest = _manifest(mechanism, condition, relation, delta, flow, persons, count, dim, selection, match)
    if public_latents is not None:
        manifest = dataclasses.replace(manifest, clip_share=public_clip_share(mechanism, public_latents, selection))
    for warning in manifest.warnings:
        logger.warning("%s", warning)
    return Privatised(data, published, manifest, record_spend(mechanism, condition, relation), flow, hashes)


def _private_latents(mechanism: Mechanism, z: Array, selection: CoarseSelection | None, match: bool) -> np.ndarray:
    """``z[B, D]`` to what the inverse flow gets, [B, D]: noised, matched to the prior, completed from it."""
    private = jnp.asarray(noised(mechanism, z if selection is None else selection.take(z)))
    if match and not isinstance(mechanism, MetricMechanism):
        private = match_prior(private, mechanism.name, mechanism.noise_scale)
    if selection is not None:
        private = selection.complete(noise.fresh_key(), private)
    return np.asarray(private)


def _check_records(records: np.ndarray, labels: np.ndarray, delta: float) -> None:
    if records.shape[0] == 0:
        raise InputError("records: expected at least one record, got none")
    if np.shape(labels) != (records.shape[0],):
        raise InputError(f"labels: expected one class for each of {records.shape[0]} records, got {np.shape(labels)}")
    bad = np.flatnonzero(~np.isfinite(records.reshape(records.shape[0], -1)).all(axis=1))
    if bad.size:
        raise InputError(
            f"records: record {bad[0]} holds NaN or infinity ({bad.size} such records); expected finite values"
        )
    if not 0.0 <= delta < 1.0 / records.shape[0]:
        raise InputError(f"delta: expected 0 <= δ < 1/n = {1.0 / records.shape[0]:.3g}, got {delta!r}")


def _check_persons(person: np.ndarray | None, count: int, relation: Relation) -> int:
    """Largest number of records of one person; `InputError` when a person-level relation allows fewer."""
    if person is None:
        return 1
    if np.shape(person) != (count,):
        raise InputError(f"person: expected one number for each of {count} records, got shape {np.shape(person)}")
    most = int(np.unique(person, return_counts=True)[1].max())
    if 1 < relation.records_per_person < most:
        raise InputError(f"relation: a person has {most} records, the relation covers {relation.records_per_person}")
    return most


def _manifest(
    mechanism: Mechanism,
    condition: ConditionMechanism,
    relation: Relation,
    delta: float,
    flow: FlowProvenance,
    persons: int,
    count: int,
    dim: int,
    selection: CoarseSelection | None,
    match: bool,
) -> Manifest:
    latent = account([Spend(mechanism.event(relation), "replace-one")], delta)
    response = account([Spend(condition.event(relation), "replace-one")], delta)
    spends = [record_spend(mechanism, condition, relation)] + ([flow.spend] if flow.spend else [])
    whole = account(spends, delta)
    metric = isinstance(mechanism, MetricMechanism)
    sensitivity = mechanism.sensitivity(relation)
    public = ["the number of records"]
    public += [] if flow.training == "mechanism-only" else ["the flow's parameters"]
    same = relation.neighbours is Neighbours.SAME_CONDITION
    public += [CLASS_IS_PUBLIC] if same else []
    public += [] if selection is None else [f"which {len(selection.indices)} of {dim} latent coordinates are used"]
    warnings = _warnings(flow, relation, persons, mechanism)
    return Manifest(
        mechanism=mechanism.name,
        norm=mechanism.norm,
        clip_norm=None if metric else mechanism.sensitivity(REPLACE_RECORD) / 2.0,
        sensitivity=None if metric else sensitivity,
        relation=relation.describe(),
        epsilon=_finite(whole.epsilon),
        delta=whole.delta,
        epsilon_method=whole.method,
        latent_epsilon=_finite(latent.epsilon),
        condition_epsilon=None if same else _finite(response.epsilon),
        noise_scale=mechanism.noise_scale,
        condition=condition.name,
        guarantee=_guarantee(mechanism, flow, _finite(whole.epsilon), whole.delta, relation),
        public=tuple(public),
        flow_training=flow.training,
        arithmetic=mechanism.arithmetic,
        decoding="prior-matched" if match and not metric else "plain",
        selected_latents=dim if selection is None else len(selection.indices),
        latent_dim=dim,
        clip_share=None,
        count_in=count,
        count_out=count,
        composition={"ledger": False, "note": "earlier releases of the same records, if any, are not counted"},
        warnings=warnings,
        versions=versions(),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _guarantee(
    mechanism: Mechanism, flow: FlowProvenance, epsilon: float | None, delta: float, relation: Relation
) -> str:
    if isinstance(mechanism, MetricMechanism):
        promise = mechanism.statement()
    elif epsilon is None:
        return f"none: the release is not differentially private under {relation.describe()}"
    else:
        promise = f"({epsilon:.6g}, {delta:g})-differentially private under {relation.describe()}"
    if flow.training == "mechanism-only":
        return f"none end to end; the latent step alone: {promise}"
    return promise


def _warnings(flow: FlowProvenance, relation: Relation, persons: int, mechanism: Mechanism) -> tuple[str, ...]:
    found = []
    if flow.training == "mechanism-only":
        found.append("the flow was trained on these records without privacy: there is no end-to-end guarantee")
    if persons > 1 and relation.records_per_person == 1:
        found.append("some people have several records; the guarantee is for one record, not for a person")
    if isinstance(mechanism, MetricMechanism):
        found.append("metric privacy is weaker than differential privacy: distant records are told apart")
    return tuple(found)


def public_clip_share(
    mechanism: Mechanism, public_latents: np.ndarray, selection: CoarseSelection | None
) -> float | None:
    """Share of PUBLIC latents [M, D] that the clip shortens; None for metric noise, which has no ball."""
    if isinstance(mechanism, MetricMechanism):
        return None
    chosen = jnp.asarray(public_latents) if selection is None else selection.take(jnp.asarray(public_latents))
    order = 1 if mechanism.norm == "l1" else 2
    radius = mechanism.sensitivity(REPLACE_RECORD) / 2.0
    return float(np.mean(np.linalg.norm(np.asarray(chosen, np.float64), ord=order, axis=1) > radius))
