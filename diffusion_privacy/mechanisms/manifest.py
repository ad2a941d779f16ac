"""What a release says about itself: where its flow came from, what it promises, what it takes to be public.

The end-to-end guarantee covers what f⁻¹ publishes only if the flow does not depend on the records released:

- ``public``: trained on other records. Both sets of hashes must be given and must be disjoint, and of one kind: those
  of two kinds are disjoint whatever the records.
- ``dp-sgd``: trained on these records with a known privacy event, which is composed.
- ``mechanism-only``: trained on these records without one. The latent step alone carries ε; there is no end-to-end
  guarantee. Only on explicit request.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from diffusion_privacy import __version__
from diffusion_privacy.data.records import HASH_KINDS, LIST_OF_CLASSES
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend, account, record_spend
from diffusion_privacy.mechanisms.condition import ConditionMechanism, RandomizedResponse
from diffusion_privacy.mechanisms.decoding import CoarseSelection
from diffusion_privacy.mechanisms.ledger import event_to_json
from diffusion_privacy.mechanisms.mechanism import Mechanism, MetricMechanism
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD, Neighbours, Relation
from diffusion_privacy.rounding import promised

FlowTraining = Literal["public", "dp-sgd", "mechanism-only"]
FLOW_TRAININGS: tuple[FlowTraining, ...] = ("public", "dp-sgd", "mechanism-only")

SOURCE, PREPARED_VALUES = "source", "prepared values"
"""What a record is known by, see `Manifest.record_identity`."""

CLASS_IS_PUBLIC = "the class of every record"
"""Among what a manifest calls public, where the condition may not differ between neighbours."""

ORDER_IS_PUBLIC = "the order of the records"
"""Among what a manifest calls public, unless the order is `RANDOM_ORDER`."""

RANDOM_ORDER, GIVEN_ORDER = "random", "as the records came in"
"""What `Manifest.order` may say."""


@dataclasses.dataclass(frozen=True)
class FlowProvenance:
    """How the flow relates to the records it will protect.

    Attributes:
      training: one of `FLOW_TRAININGS`.
      trained_on: hashes of its training records, of the kind that `privatise` gets or makes (source hashes, else
        `ledger.value_hashes` of the arrays); empty for a flow trained on nothing of this kind. Required for ``public``,
        where the disjointness is checked.
      spend: the privacy event of its training; required for ``dp-sgd``, refused otherwise.
      kind: what ``trained_on`` are hashes of, one of `data.records.HASH_KINDS` (`Records.hash_kind` for source hashes);
        empty where that is not known. The manifest of a release then warns that the check may have seen nothing.
      stage: name of the ledger's entry that pays for the training; required for ``dp-sgd``, refused otherwise. Two runs
        with equal settings have equal events, and are two mechanisms: the name tells which of them this flow is.

    Raises:
      InputError: an unknown ``training`` or ``kind``; hashes, an event or its entry's name missing, or one too many.
    """

    training: FlowTraining
    trained_on: frozenset[str] | None = None
    spend: Spend | None = None
    kind: str = ""
    stage: str = ""

    def __post_init__(self) -> None:
        if self.training not in FLOW_TRAININGS:
            raise InputError(f"flow_training: expected one of {FLOW_TRAININGS}, got {self.training!r}")
        if self.training == "public" and self.trained_on is None:
            raise InputError("flow_training: 'public' needs the hashes of the flow's training records to be checked")
        if (self.training == "dp-sgd") != (self.spend is not None):
            raise InputError("flow_training: a privacy event of the training is needed for 'dp-sgd' and for no other")
        if (self.spend is not None) != bool(self.stage):
            raise InputError(
                "flow_training: the name of the ledger's entry is needed with a privacy event, and only then"
            )
        if self.kind and self.kind not in HASH_KINDS:
            raise InputError(f"flow_training.kind: expected one of {HASH_KINDS}, or '', got {self.kind!r}")

    def check(self, hashes: Sequence[str], kind: str = "") -> None:
        """That a flow which is called public was trained on none of these records.

        Args:
          hashes: of the records, one each.
          kind: what they are hashes of, one of `data.records.HASH_KINDS`; empty where that is not known.

        Raises:
          InputError: it was trained on some of them; or both kinds are known and differ, so that nothing can be said.
        """
        if self.training != "public" or not self.trained_on:
            return
        if self.kind and kind and self.kind != kind:
            raise InputError(
                f"flow_training: the hashes of the flow's training records are of {self.kind}, those of the records "
                f"are of {kind}; expected one kind, since those of two never meet"
            )
        shared = len(self.trained_on.intersection(hashes))
        if shared:
            raise InputError(
                f"flow_training: {shared} of the {len(hashes)} records are in the flow's training set, as they are "
                "or as exact copies; expected a flow trained on other data (name the persons, so that copies stay "
                "in one share), or with DP-SGD, or 'mechanism-only' (no end-to-end guarantee)"
            )

    def may_be_blind(self, kind: str) -> bool:
        """Whether `check` of hashes of this ``kind`` compares some with others without knowing both kinds."""
        return self.training == "public" and bool(self.trained_on) and not (self.kind and kind)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a release says about itself. Holds no seed, no key, and no statistic of the private records.

    Attributes:
      mechanism, norm, clip_norm, sensitivity, noise_scale: the latent step; sensitivity in `norm` under `relation`;
        clip_norm and sensitivity are None for metric noise.
      relation: neighbouring relation in words.
      epsilon, delta: of condition, latent and (DP-SGD) flow training together, in nats; epsilon is None when nothing
        finite is promised end to end, as for a flow called ``mechanism-only``.
      epsilon_method: how it was composed (`accounting.Account.method`).
      latent_epsilon, condition_epsilon: the parts, each at `delta` (None: public, not promised).
      flow_epsilon, flow_event: of the flow's DP-SGD training alone, at `delta`, and its privacy event as the ledger has
        it; None where the flow was not trained so. Included in `epsilon`.
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
      record_identity: what a record is to the ledger and to the check of the flow: ``"source"`` (a hash of its source,
        however it was prepared) or ``"prepared values"`` (another preparation makes another record of it, so the ledger
        counts this release against all records).
      composition: totals over earlier releases, and the `id` of its entry in the ledger (see `export.publish`).
      warnings: what a reader must not overlook.
      versions: of the packages that computed it.
      preparation: what was done to the stored images before anything else (`data.records.Records`); empty for nothing.
      order: `RANDOM_ORDER`: the records lie in an order that was drawn uniformly, whatever they are, and is kept
        secret; or `GIVEN_ORDER`: a record's place may tell which one it came from, and ``public`` says so.
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
    flow_epsilon: float | None
    flow_event: dict[str, Any] | None
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
    record_identity: str
    composition: dict[str, Any]
    warnings: tuple[str, ...]
    versions: dict[str, str]
    preparation: tuple[str, ...] = ()
    order: str = GIVEN_ORDER
    schema: int = 2


def versions() -> dict[str, str]:
    """Versions of this package and of those that compute a release."""
    names = ("jax", "numpy", "scipy", "dp-accounting")
    return {"diffusion-privacy": __version__} | {name: importlib.metadata.version(name) for name in names}


def describe(
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
    known_by: str,
    hash_kind: str,
    random_order: bool = False,
    assumed: Sequence[str] = (),
) -> Manifest:
    """The manifest of a release by `mechanism` and ``condition`` under ``relation``, before the ledger knows of it.

    Args:
      persons: largest number of records of one person.
      count: number of records.
      dim: length of the latents.
      known_by: `SOURCE` or `PREPARED_VALUES`.
      hash_kind: what the records' hashes are of, see `FlowProvenance.check`.
      random_order, assumed: see `release.privatise`.

    Raises:
      InputError: a guarantee for a person by a flow whose training counts single records.
    """
    if flow.spend is not None and relation.records_per_person > 1:
        raise InputError(
            f"relation: {relation.records_per_person} records a person with a flow trained by DP-SGD, which counts "
            "single records; expected 1"
        )
    latent = account([Spend(mechanism.event(relation), "replace-one")], delta)
    response = account([Spend(condition.event(relation), "replace-one")], delta)
    spends = [record_spend(mechanism, condition, relation)] + ([flow.spend] if flow.spend else [])
    whole = account(spends, delta)
    metric = isinstance(mechanism, MetricMechanism)
    sensitivity = mechanism.sensitivity(relation)
    same = relation.neighbours is Neighbours.SAME_CONDITION
    public = [
        "the number of records",
        *([] if random_order else [ORDER_IS_PUBLIC]),
        *([] if flow.training == "mechanism-only" else ["the flow's parameters"]),
        *([f"the {condition.subject} of every record"] if same else []),
        *([LIST_OF_CLASSES] if isinstance(condition, RandomizedResponse) else []),
        *([] if selection is None else [f"which {len(selection.indices)} of {dim} latent coordinates are used"]),
        *assumed,
    ]
    return Manifest(
        mechanism=mechanism.name,
        norm=mechanism.norm,
        clip_norm=None if metric else mechanism.sensitivity(REPLACE_RECORD) / 2.0,
        sensitivity=None if metric else sensitivity,
        relation=relation.describe(),
        epsilon=None if flow.training == "mechanism-only" else _finite(whole.epsilon),
        delta=whole.delta,
        epsilon_method=whole.method,
        latent_epsilon=_finite(latent.epsilon),
        condition_epsilon=None if same else _finite(response.epsilon),
        flow_epsilon=_finite(account([flow.spend], delta).epsilon) if flow.spend else None,
        flow_event={**event_to_json(flow.spend.event), "adjacency": flow.spend.adjacency} if flow.spend else None,
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
        record_identity=known_by,
        composition={"ledger": False, "note": "earlier releases of the same records, if any, are not counted"},
        warnings=_warnings(flow, relation, persons, mechanism, hash_kind),
        versions=versions(),
        order=RANDOM_ORDER if random_order else GIVEN_ORDER,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _guarantee(
    mechanism: Mechanism, flow: FlowProvenance, epsilon: float | None, delta: float, relation: Relation
) -> str:
    if isinstance(mechanism, MetricMechanism):
        promise = mechanism.statement() + ("; the flow's own training is not in it" if flow.spend else "")
    elif epsilon is None:
        return f"none: the release is not differentially private under {relation.describe()}"
    else:
        promise = f"({promised(epsilon)}, {promised(delta)})-differentially private under {relation.describe()}"
    if flow.training == "mechanism-only":
        return f"none end to end; the latent step alone: {promise}"
    return promise


def _warnings(
    flow: FlowProvenance, relation: Relation, persons: int, mechanism: Mechanism, hash_kind: str
) -> tuple[str, ...]:
    found = []
    if flow.may_be_blind(hash_kind):
        found.append(
            "that the flow was trained on other records rests on hashes of which it was not said what they are of; "
            "those of two kinds never meet"
        )
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
