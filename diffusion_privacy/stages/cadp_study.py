"""What all stages of a CADP study share: the shares, the trained flow, the mechanism, the released data sets."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.data.pipeline import Batches
from diffusion_privacy.data.records import (
    LIST_OF_CLASSES,
    ROW_HASH,
    SHARED_NAMES,
    Records,
    equal_none,
    split_records,
)
from diffusion_privacy.data.table_rows import RowBatches, Rows
from diffusion_privacy.errors import InputError, within
from diffusion_privacy.flows.objective import FlowModel
from diffusion_privacy.mechanisms import clipping, decoding, receipt, study
from diffusion_privacy.mechanisms.calibration import check_delta
from diffusion_privacy.mechanisms.condition import (
    ConditionMechanism,
    PublicAttributes,
    PublicCondition,
    RandomizedAttributes,
    RandomizedResponse,
)
from diffusion_privacy.mechanisms.decoding import CoarseSelection
from diffusion_privacy.mechanisms.discrete import DiscreteGaussian, DiscreteLaplace
from diffusion_privacy.mechanisms.ledger import Ledger
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism, LaplaceMechanism, Mechanism, MetricMechanism
from diffusion_privacy.mechanisms.relation import Relation, parse_relation
from diffusion_privacy.mechanisms.table import column_condition, row_hashes
from diffusion_privacy.settings_cadp import METRICS, Cadp, CadpTable, PrivateStudy
from diffusion_privacy.stages import cadp_flow, cadp_table_study, private_order, reading
from diffusion_privacy.stages.cadp_flow import TableFlow, TrainedFlow
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import FlowTask
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.types import Array

_LOG = logging.getLogger(__name__)

R = TypeVar("R", Records, Rows)


@dataclasses.dataclass(frozen=True)
class Parts(Generic[R]):
    """The records by share, images or rows; no person is in two.

    Public and test records lie in the order of the source, private ones in that of `private_order`.
    """

    public: R
    private: R
    test: R


@overload
def load_parts(settings: Cadp, workdir: Workdir) -> Parts[Records]: ...
@overload
def load_parts(settings: CadpTable, workdir: Workdir) -> Parts[Rows]: ...
@overload
def load_parts(settings: PrivateStudy, workdir: Workdir) -> Parts[Any]: ...
def load_parts(settings: PrivateStudy, workdir: Workdir) -> Parts[Any]:
    """Loads the source and divides it; writes split.json, in the order of the source, and draws the order of the
    private records, both once.

    Raises:
      InputError: as `reading.write_split` and `private_order.places`.
    """
    parts: Parts[Any]
    if isinstance(settings, CadpTable):
        parts = Parts(*cadp_table_study.load_parts(settings))
    else:
        source = labelled(settings, reading.load(settings.data))
        wanted = settings.split
        parts = Parts(*split_records(source, (wanted.public, wanted.private, wanted.test), settings.seed))
    by_name = {f.name: getattr(parts, f.name) for f in dataclasses.fields(parts)}
    index = {name: part.index for name, part in by_name.items()}
    reading.write_split(workdir, parts.public, index, {name: part.identity for name, part in by_name.items()}, by_name)
    order = private_order.places(workdir, parts.private.index)
    return dataclasses.replace(parts, private=parts.private.take(order))


def target_of(settings: PrivateStudy) -> str:
    """The attribute that classifiers predict; empty where they predict the class, or nothing."""
    return settings.evaluation.target if isinstance(settings, Cadp) else ""


def labelled(settings: PrivateStudy, records: Records) -> Records:
    """The records with the label that classifiers predict: the class, or one attribute.

    Raises:
      InputError: the flow wants attributes, and the source has none, or not that one.
    """
    names, target = records.attribute_names, target_of(settings)
    if settings.flow.condition != "attributes":
        return records
    if records.attributes is None:
        raise InputError(
            "config.data.params.attributes: expected names of attributes, since config.flow.condition is 'attributes'"
        )
    if target not in names:
        raise InputError(f"config.evaluation.target: expected one of {', '.join(names)}, got {target!r}")
    return dataclasses.replace(records, label=records.attributes[:, names.index(target)], num_classes=2)


def never_seen(others: R, members: R) -> R:
    """The test records that a membership attack may call strangers: without images that equal one of ``members``.

    Rows stay: people of a table share their values by nature, and without those that meet the test rows would be the
    rare ones, so that a flow that learnt nobody by heart would seem to have. Equal rows were dealt together and never
    meet; those that a flow cannot tell apart may: `cadp_audit` counts them.

    Raises:
      InputError: fewer than two are left.
    """
    if isinstance(others, Rows):
        return others
    kept = equal_none(others.image, members.image)
    if kept.all():
        return others
    if kept.sum() < 2:
        raise InputError(
            f"{others.name}: expected at least 2 test records that equal none of the {len(members)} that were learnt "
            f"from, got {int(kept.sum())}"
        )
    _LOG.warning("audit: %d test records equal one that was learnt from and are left out", int(np.sum(~kept)))
    return others.take(np.flatnonzero(kept))


def hashes(records: Records | Rows) -> tuple[str, ...]:
    """One hash of the source a record, for the ledger and for the flow's provenance.

    Raises:
      InputError: a source that does not say what its records are.
    """
    if isinstance(records, Rows):
        return row_hashes(records.table)
    if records.source_hash is None:
        raise InputError(f"{records.name}: expected records with source_hash, so that the ledger knows them again")
    return tuple(records.source_hash.tolist())


def hash_kind(records: Records | Rows) -> str:
    """What `hashes` of these records are of, one of `data.records.HASH_KINDS`; empty where the source does not say."""
    return ROW_HASH if isinstance(records, Rows) else records.hash_kind


def make_ledger(settings: PrivateStudy, workdir: Workdir) -> Ledger:
    """The ledger of the private records."""
    release = settings.release
    # Read literally, ~ would be a folder of this workdir, and studies that name one file would not know of each other.
    place = workdir.root / Path(release.ledger).expanduser()
    return Ledger(place, release.total_epsilon, release.delta)


def check_entered(
    settings: PrivateStudy, workdir: Workdir, ledger: Ledger, records: tuple[str, ...] | None = None
) -> None:
    """`InputError` when a data set was released and the ledger does not know of it: its total would be too small.

    An entry of that name may be another study's, see `receipt.paid_by`; ``records`` are the private ones' `hashes`.
    """
    entries = ledger.entries()
    for strength in settings.release.strengths:
        path = release_path(workdir, strength, settings.release.metric)
        if path.exists() and not receipt.paid_by(entries, path, records):
            raise InputError(
                f"{ledger.path}: lacks 'release {path.name}' of the manifest that is in {path}; expected the ledger in "
                "which it was entered"
            )


def check_given_up(ledger: Ledger, parts: Parts[Any]) -> None:
    """`InputError` when records are public in one study of the ledger and private in another, whichever came first.

    Another seed, or other shares, would do so: what a flow learnt without privacy, and hands out, would be of records
    to which an ε is promised.
    """
    ledger.check_public(_public_only(parts), hash_kind(parts.public))
    ledger.check_private(hashes(parts.private), hash_kind(parts.private))


def give_up(ledger: Ledger, parts: Parts[Any]) -> None:
    """Notes in the ledger that the public share is one; before anything is computed from it that leaves the memory.

    Raises:
      InputError: as `check_given_up`.
    """
    check_given_up(ledger, parts)
    ledger.give_up(_public_only(parts), "public share of a study", hash_kind(parts.public))


def _public_only(parts: Parts[Any]) -> tuple[str, ...]:
    """Hashes of the public share without those that the private one has too: copies within a study are not meant here,
    see `FlowProvenance.check`."""
    private = set(hashes(parts.private))
    return tuple(record for record in hashes(parts.public) if record not in private)


def batches(records: Records | Rows, batch_size: int, seed: int) -> Batches:
    """What a flow is trained on: batches with the fields of its condition."""
    if isinstance(records, Rows):
        return RowBatches(records, batch_size, seed, sizes=records.encoder.sizes)
    return Batches(records, batch_size, seed)


def make_model(settings: PrivateStudy, records: Records | Rows, training: bool = False) -> FlowModel:
    """The flow of the config for records of this shape; InputError on an unknown field."""
    with within({"flow": "config.flow.params"}):
        if isinstance(settings, CadpTable) and isinstance(records, Rows):
            return cadp_flow.row_model(settings.flow, records, settings.columns.noise, training)
        if isinstance(records, Rows):
            raise TypeError("rows belong to the study of a table")
        return cadp_flow.image_model(settings.flow, records, training)


def flow_task(settings: PrivateStudy, records: Records | Rows) -> FlowTask:
    """What the loop learns: the flow as it is trained."""
    model = make_model(settings, records, training=True)
    return FlowTask(model, settings.flow.reconstruction, settings.flow.perturbation)


@overload
def load_flow(settings: PrivateStudy, workdir: Workdir, records: Records) -> TrainedFlow: ...
@overload
def load_flow(settings: PrivateStudy, workdir: Workdir, records: Rows) -> TableFlow: ...
def load_flow(settings: PrivateStudy, workdir: Workdir, records: Records | Rows) -> TrainedFlow:
    """The trained flow; InputError when it was not trained yet."""
    model = make_model(settings, records)
    params = jax.tree.map(jnp.asarray, restore_ema(workdir.root / "train" / "flow")[0])
    if isinstance(records, Rows):
        return TableFlow(model, params, records.encoder)
    return TrainedFlow(model, params)


# --- the mechanism ----------------------------------------------------------------------------------------------------


def make_relation(settings: PrivateStudy) -> Relation:
    """The neighbouring relation; that it goes with how the class is released, the settings have seen to."""
    return parse_relation(settings.release.relation, settings.release.records_per_person)


def make_condition(settings: PrivateStudy, records: Records | Rows) -> ConditionMechanism:
    """How the class, the attributes, or the columns apart are released; InputError as `require_stated_classes`."""
    if isinstance(records, Rows):
        return column_condition(records.encoder.sizes, response_epsilon(settings), make_relation(settings))
    if settings.flow.condition == "attributes":
        count, epsilon = len(records.attribute_names), settings.release.label_epsilon
        return RandomizedAttributes.even(epsilon, count) if epsilon > 0 else PublicAttributes(count)
    require_stated_classes(settings, records)
    if settings.release.label_epsilon > 0:
        return RandomizedResponse(settings.release.label_epsilon, records.num_classes)
    return PublicCondition(records.num_classes)


def require_stated_classes(settings: PrivateStudy, records: Records | Rows) -> None:
    """`InputError` where the class is to be randomised and something else that is published would tell it.

    Randomised response publishes any class of the list with some probability: one that a single record has would be
    published, or could not be, by that record alone. Equal names in class folders are listed by class.
    """
    randomised = settings.release.label_epsilon > 0 and settings.flow.condition == "label"
    if not randomised or isinstance(records, Rows):
        return
    if LIST_OF_CLASSES in records.assumed:
        raise InputError(
            "config.data.params.num_classes: expected the number of classes (config.data.params.class_names where they "
            "are folders or names), since release.label_epsilon randomises the class and the list of classes would be "
            "read off the private records"
        )
    if SHARED_NAMES in records.assumed:
        raise InputError(
            "config.data.params.path: files of one name lie in several class folders; expected names that differ, or a "
            "table, since release.label_epsilon randomises the class and such files would be told apart by it"
        )


def response_epsilon(settings: PrivateStudy) -> float | None:
    """ε of randomised response; None where the condition is published as it is."""
    return settings.release.label_epsilon or None


def make_selection(settings: PrivateStudy, dims: int) -> CoarseSelection | None:
    """The coarse latents that carry the record; None for all."""
    coarse = settings.release.coarse
    if coarse > dims:
        raise InputError(f"config.release.coarse: expected at most the {dims} latents of the flow, got {coarse}")
    return CoarseSelection(tuple(range(coarse)), dims) if 0 < coarse < dims else None


def clip_norm(settings: PrivateStudy, dims: int) -> float:
    """The clip radius: a quantile of the prior's norm, the same for every data set."""
    norm: clipping.Norm = "l1" if settings.release.mechanism.endswith("laplace") else "l2"
    return clipping.clip_radius(settings.release.coarse or dims, norm, settings.release.coverage)


def make_mechanism(settings: PrivateStudy, epsilon: float, dims: int, records: int) -> Mechanism:
    """The latent mechanism calibrated to ``epsilon``: the one that releases, and the one that the audit attacks.

    With a metric mechanism ``epsilon`` is its rate.
    """
    release, relation = settings.release, make_relation(settings)
    if release.metric:
        norm: clipping.Norm = "l1" if METRICS[release.mechanism] == "l1" else "l2"
        return MetricMechanism(epsilon, norm)
    radius = clip_norm(settings, dims)
    if release.mechanism.endswith("gaussian"):
        with within({"delta": "config.release.delta"}):
            check_delta(release.delta, records)
    if release.mechanism == "gaussian":
        return GaussianMechanism.calibrated(epsilon, release.delta, radius, relation, records)
    if release.mechanism == "discrete_gaussian":
        return DiscreteGaussian.calibrated(epsilon, release.delta, radius, relation, records)
    if release.mechanism == "laplace":
        return LaplaceMechanism.calibrated(epsilon, radius, relation)
    return DiscreteLaplace.calibrated(epsilon, radius, relation)


def study_images(
    settings: PrivateStudy, flow: TrainedFlow, records: Records | Rows, epsilons: tuple[float, ...], key: Array
) -> np.ndarray:
    """Privatised records ``[E, N, ...]`` at many ε from one unit noise a record: never to leave the workdir.

    A discrete mechanism is stood in for by the continuous one with its noise scale.
    """
    keys = jax.random.split(key, 3)
    given = flow.given(records)
    z, _ = flow.encode(records.image, given, keys[0])
    scales = [make_mechanism(settings, e, z.shape[1], len(records)).noise_scale for e in epsilons]
    latents = _study_latents(
        settings.release.mechanism.removeprefix("discrete_"),
        clip_norm(settings, z.shape[1]),
        make_selection(settings, z.shape[1]),
        settings.release.prior_matched,
        jnp.asarray(scales),
        keys[1:],
        jnp.asarray(z),
    )
    return np.stack([flow.decode(np.asarray(latent), given) for latent in latents])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _study_latents(
    mechanism: str,
    radius: float,
    selection: CoarseSelection | None,
    match: bool,
    scales: Array,
    keys: Array,
    z: Array,
) -> Array:
    """``z[N, D] -> [E, N, D]``: what the decoder gets at each noise scale."""
    chosen = z if selection is None else selection.take(z)
    curve = study.latent_curve_for_internal_study(
        GaussianMechanism if mechanism == "gaussian" else LaplaceMechanism,
        radius,
        scales,
        jax.random.split(keys[0], len(z)),
        chosen,
    )
    if match:
        to_prior = decoding.match_gaussian if mechanism == "gaussian" else decoding.match_laplace
        curve = jax.vmap(to_prior)(curve, scales)
    return curve if selection is None else jax.vmap(lambda row: selection.complete(keys[1], row))(curve)


# --- released data sets -----------------------------------------------------------------------------------------------


def release_path(workdir: Workdir, strength: float, metric: bool = False) -> Path:
    """The folder of one released data set: by the ε of its latent step, or by its rate."""
    return workdir.root / "releases" / f"{'rate' if metric else 'eps'}_{strength:g}"


@dataclasses.dataclass(frozen=True)
class Released(Generic[R]):
    """A released data set as anybody would read it."""

    epsilon: float
    records: R
    manifest: dict[str, Any]

    @property
    def spent(self) -> float:
        """ε in all; where nothing finite is promised end to end, that of the latent step."""
        return float(self.manifest["epsilon"] or self.epsilon)


def load_release(workdir: Workdir, epsilon: float, like: R, target: str = "") -> Released[R]:
    """Reads ``data.npz`` or ``data.csv``, and the manifest of a release.

    Args:
      like: the private records, whose order and source numbers a release shares.
      target: the attribute that is their label, see `target_of`.
    """
    folder = release_path(workdir, epsilon)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a released data set, found none; run --mode=privatize first")
    manifest = workdir.read_json(folder / "manifest.json")
    records: Any
    if isinstance(like, Rows):
        records = cadp_table_study.read_release(folder, like)
        return Released(epsilon, records, manifest)
    arrays = workdir.read_arrays(folder / "data.npz")
    if set(arrays) != {"image", "label"} or len(arrays["image"]) != len(like):
        raise InputError(f"{folder / 'data.npz'}: expected image and label of {len(like)} records")
    images = (arrays["image"].astype(np.float32) / 127.5 - 1).clip(-1, 1)
    condition = arrays["label"].astype(np.int32)
    if condition.ndim == 1:
        return Released(epsilon, dataclasses.replace(like.with_images(images), label=condition), manifest)
    if target not in like.attribute_names or condition.shape[1] != len(like.attribute_names):
        raise InputError(f"{folder / 'data.npz'}: expected the classes of a release, got attributes {condition.shape}")
    label = condition[:, like.attribute_names.index(target)]
    records = dataclasses.replace(like.with_images(images), label=label, attributes=condition)
    return Released(epsilon, records, manifest)
