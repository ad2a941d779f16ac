"""A private data set: encode, clip, add fresh noise, decode; and the manifest that says what was promised.

`privatise` has no key or seed argument. Its noise comes from the operating system inside the call, so neither a
configuration nor a test can make it repeat itself; noise from a given key exists only in `study`, whose results no
writer accepts. Networks come as callables ``encode(x[B, ...], c[B]) -> z[B, D]`` and ``decode(z[B, D], c[B]) -> x``.

What the flow's training adds to the promise, or takes from it, is said in `manifest`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.data.records import HASH_KINDS, VALUE_HASH
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import noise
from diffusion_privacy.mechanisms.accounting import Spend, record_spend
from diffusion_privacy.mechanisms.condition import ConditionMechanism
from diffusion_privacy.mechanisms.decoding import CoarseSelection, match_prior
from diffusion_privacy.mechanisms.discrete import DiscreteGaussian, DiscreteLaplace
from diffusion_privacy.mechanisms.ledger import value_hashes
from diffusion_privacy.mechanisms.manifest import (
    PREPARED_VALUES,
    SOURCE,
    FlowProvenance,
    Manifest,
    describe,
    public_clip_share,
)
from diffusion_privacy.mechanisms.mechanism import (
    GaussianMechanism,
    LaplaceMechanism,
    Mechanism,
    MetricMechanism,
    many_at_scale,
)
from diffusion_privacy.mechanisms.relation import Relation, require_relation
from diffusion_privacy.types import Array

logger = logging.getLogger(__name__)

Encode = Callable[[Array, Array], Array]
Decode = Callable[[Array, Array], Array]

_SHIPPED = (GaussianMechanism, LaplaceMechanism, MetricMechanism)


@dataclasses.dataclass(frozen=True)
class Privatised:
    """A private data set in memory, made by `privatise` only.

    Attributes:
      data: decoded records float32 [N, ...].
      labels: published classes int32 [N], or attributes int32 [N, A].
      manifest: its promise.
      spend: event of the condition and latent steps, for the ledger.
      flow: where the flow came from.
      hashes: source hashes of the records, for the ledger; never written to the release. None where the source was not
        at hand.
      relation: that ``spend`` was computed for.
      hash_kind: what ``hashes`` are of, one of `data.records.HASH_KINDS`; empty where that is not known.
    """

    data: np.ndarray
    labels: np.ndarray
    manifest: Manifest
    spend: Spend
    flow: FlowProvenance
    hashes: tuple[str, ...] | None
    relation: Relation
    hash_kind: str = ""


def noised(mechanism: Mechanism, z: Array) -> np.ndarray:
    """Fresh private latents: ``z[B, D] -> z̃[B, D]`` float32, each record by itself with its own entropy.

    Raises:
      ValueError: a mechanism of one's own that returns another shape.
    """
    if isinstance(mechanism, DiscreteGaussian | DiscreteLaplace):
        return np.asarray(mechanism.many(noise.os_bytes, np.asarray(z)), np.float32)
    keys = noise.fresh_keys(z.shape[0])
    if isinstance(mechanism, _SHIPPED) and type(mechanism) in _SHIPPED:
        # Not of a subclass, whose own __call__ would be passed over.
        return np.asarray(many_at_scale(mechanism.unscaled(), mechanism.noise_scale, keys, jnp.asarray(z)), np.float32)
    private = np.asarray(jax.vmap(mechanism)(keys, jnp.asarray(z)), np.float32)
    if private.shape != z.shape:
        raise ValueError(f"mechanism must return a latent like the one it got, {z.shape[1:]}, got {private.shape[1:]}")
    return private


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
    hashes: Sequence[str] | None = None,
    hash_kind: str = "",
    public_latents: np.ndarray | None = None,
    random_order: bool = False,
    assumed: Sequence[str] = (),
    batch_size: int = 256,
) -> Privatised:
    """One private record for each record, in the same order.

    Under ``relation`` the output as a whole is (manifest.epsilon, manifest.delta)-private: the condition is released
    first, then the latent given it, each record apart (parallel composition); what follows is post-processing.

    Args:
      encode, decode: the flow, batched; encode sees the PUBLISHED classes.
      records: float [N, ...], finite.
      labels: private classes int [N], or attributes int [N, A] for a condition of attributes.
      delta: δ at which the total is stated; 0 for a pure guarantee.
      selection: coordinates to privatise; None for all. The mechanism's C must be meant for that many.
      match: bring the noised latent back to the prior before decoding.
      person: int [N], equal for records of one person; None when each record is another person.
      hashes: one hash a record, of its source (`Records.source_hash`, `table.row_hashes`); None where only these arrays
        are at hand, which are then hashed as prepared values. The flow's ``trained_on`` must be of the same kind.
      hash_kind: what ``hashes`` are of (`Records.hash_kind`), one of `data.records.HASH_KINDS`; empty where that is not
        known. Known kinds that differ are refused; where one is not known, the manifest warns.
      public_latents: [M, D] latents of public records, for clip_share.
      random_order: whether the caller has put the records into an order that was drawn uniformly from fresh entropy
        and that nobody else knows. Otherwise a record's place may tell which it is, and the manifest calls the order
        public.
      assumed: what else must be public, in words, such as `data.records.CLASSES_KEPT`; for the manifest.
      batch_size: records encoded and decoded at once; the last batch is padded by repeating, and the padding dropped
        again.

    Raises:
      InputError: unspecified relation, a flow called public that was not or whose hashes are of another kind, a
        ``hash_kind`` that is none, NaN in a record, a class out of range, a person with more records than the relation
        says.
      ValueError: ``encode`` or ``decode`` gives another shape than records and latents have.
    """
    require_relation(relation)
    records = np.asarray(records)
    count = records.shape[0]
    _check_records(records, labels, delta)
    persons = _check_persons(person, count, relation)
    identities, kind = _identities(records, hashes, hash_kind)
    flow.check(identities, kind)
    published = condition.many(noise.os_bytes, labels)
    data, dim = _copies(encode, decode, records, published, mechanism, selection, match, batch_size)
    if data.shape != records.shape:
        raise ValueError(f"decode must return records like those given, {records.shape}, got {data.shape}")
    known_by = PREPARED_VALUES if hashes is None else SOURCE
    manifest = describe(
        mechanism, condition, relation, delta, flow, persons, count, dim, selection, match, known_by, kind,
        random_order, assumed,
    )  # fmt: skip
    if public_latents is not None:
        manifest = dataclasses.replace(manifest, clip_share=public_clip_share(mechanism, public_latents, selection))
    for warning in manifest.warnings:
        logger.warning("%s", warning)
    known = None if hashes is None else tuple(hashes)
    spend = record_spend(mechanism, condition, relation)
    return Privatised(data, published, manifest, spend, flow, known, relation, hash_kind)


def _copies(
    encode: Encode,
    decode: Decode,
    records: np.ndarray,
    published: np.ndarray,
    mechanism: Mechanism,
    selection: CoarseSelection | None,
    match: bool,
    batch_size: int,
) -> tuple[np.ndarray, int]:
    """What is decoded from the private latents of ``records``, in their order, and the length D of a latent."""
    count, parts, dim = len(records), [], 0
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
    return np.concatenate(parts), dim


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
    if np.ndim(labels) not in (1, 2) or np.shape(labels)[0] != records.shape[0]:
        raise InputError(
            f"labels: expected a class or a row of attributes for each of {records.shape[0]} records, got "
            f"{np.shape(labels)}"
        )
    bad = np.flatnonzero(~np.isfinite(records.reshape(records.shape[0], -1)).all(axis=1))
    if bad.size:
        raise InputError(
            f"records: record {bad[0]} holds NaN or infinity ({bad.size} such records); expected finite values"
        )
    if not 0.0 <= delta < 1.0 / records.shape[0]:
        raise InputError(f"delta: expected 0 <= δ < 1/n = {1.0 / records.shape[0]:.3g}, got {delta!r}")


def _identities(records: np.ndarray, hashes: Sequence[str] | None, hash_kind: str) -> tuple[Sequence[str], str]:
    """One hash a record for the check of the flow, and what they are of."""
    if hash_kind and (hashes is None or hash_kind not in HASH_KINDS):
        raise InputError(f"hash_kind: expected one of {HASH_KINDS} beside hashes, or '', got {hash_kind!r}")
    if hashes is None:
        return value_hashes(records), VALUE_HASH
    if len(hashes) != len(records):
        raise InputError(f"hashes: expected one for each of {len(records)} records, got {len(hashes)}")
    return hashes, hash_kind


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
