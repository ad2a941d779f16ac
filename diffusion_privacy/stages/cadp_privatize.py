"""Stage `privatize`: the private records through the mechanism, once for each ε, paid for in the ledger.

Every release draws its own noise from the operating system: two runs of this stage give different records.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_privacy.data.records import CLASSES_KEPT, Records
from diffusion_privacy.data.table_rows import Rows
from diffusion_privacy.errors import InputError, within
from diffusion_privacy.mechanisms.accounting import record_spend
from diffusion_privacy.mechanisms.export import publish
from diffusion_privacy.mechanisms.ledger import Entry, Ledger, total
from diffusion_privacy.mechanisms.manifest import FlowProvenance
from diffusion_privacy.mechanisms.release import Privatised, privatise
from diffusion_privacy.mechanisms.table import PrivatisedTable, privatise_table, publish_table
from diffusion_privacy.rounding import promised
from diffusion_privacy.settings_cadp import Cadp, PrivateStudy
from diffusion_privacy.stages import cadp_study as common
from diffusion_privacy.stages import dp_training, private_order
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng

_LOG = logging.getLogger(__name__)

ROWS_KEPT = "which rows of the source are complete"
"""Among what a manifest calls public, where incomplete rows are left out of a table."""


def provenance(settings: PrivateStudy, workdir: Workdir, ledger: Ledger) -> FlowProvenance:
    """What the release may say of the flow; `privatise` holds it against the records, one by one.

    Raises:
      InputError: nothing was trained yet, or it is declared ``dp-sgd``, but not trained so, or not paid for.
    """
    written = workdir.root / "train" / "trained_on.json"
    if not written.exists():
        raise InputError(f"{written}: expected what the flow learnt from, found none; run --mode=train first")
    learnt = workdir.read_json(written)
    # Earlier versions did not write the kind: the manifest says so, since nothing else can be said.
    trained_on, kind = frozenset(learnt["hashes"]), learnt.get("kind", "")
    declared = settings.release.flow_training
    spend, stage, folder = None, "", workdir.root / "train" / "flow"
    if declared == "dp-sgd":
        spend, stage = dp_training.require_paid(ledger, folder), dp_training.stage_of(folder)
    return FlowProvenance(declared, trained_on, spend, kind, stage)  # type: ignore[arg-type]


def check_budget(
    settings: PrivateStudy,
    ledger: Ledger,
    epsilons: Sequence[float],
    private: Records | Rows,
    hashes: tuple[str, ...],
    planned: Sequence[Entry] = (),
) -> None:
    """`InputError` when these releases, with what is ``planned`` besides, would exceed what the ledger allows."""
    relation, condition = common.make_relation(settings), common.make_condition(settings, private)
    dims, entries, kind = int(private.image[0].size), ledger.entries(), common.hash_kind(private)
    for epsilon in epsilons:
        mechanism = common.make_mechanism(settings, epsilon, dims, len(private))
        spend = record_spend(mechanism, condition, relation)
        entries.append(Entry(f"release {epsilon:g}", spend, hashes, relation, kind=kind))
    found = total([*entries, *planned], settings.release.delta).account.epsilon
    besides = f" and {', '.join(entry.stage for entry in planned)}" if planned else ""
    _LOG.info("privatize: ε = %s at δ = %g after these releases%s", promised(found, 4), ledger.delta, besides)
    if found > ledger.epsilon * (1 + 1e-9):
        raise InputError(
            f"{ledger.path}: {len(epsilons)} releases{besides} would bring ε to {promised(found, 4)}; "
            f"config.release.total_epsilon allows {ledger.epsilon:g} at δ = {ledger.delta:g}"
        )


def check_release(
    settings: PrivateStudy,
    workdir: Workdir,
    private: Records | Rows,
    planned: Sequence[Entry] = (),
) -> None:
    """Refuses settings with which nothing could be released, before anything is trained, paid for or given up.

    Args:
      private: the private records.
      planned: what else will be entered into the ledger before the releases are.

    Raises:
      InputError: δ, a flow, a number of latents or squares of DP-Pix
        that do not go with the records; releases that the ledger does not allow.
    """
    dims = int(private.image[0].size)
    common.make_condition(settings, private)
    common.make_selection(settings, dims)
    common.make_model(settings, private)
    _check_evaluation(settings, private)
    metric = settings.release.metric
    strengths = [s for s in settings.release.strengths if not common.release_path(workdir, s, metric).exists()]
    for strength in strengths:
        common.make_mechanism(settings, strength, dims, len(private))
    if not metric:
        check_budget(
            settings, common.make_ledger(settings, workdir), strengths, private, common.hashes(private), planned
        )


def _check_evaluation(settings: PrivateStudy, private: Records | Rows) -> None:
    """A release cannot be taken back, and its workdir is bound to what `evaluate` is to do with it."""
    if not isinstance(settings, Cadp) or not settings.evaluation.pixel_block or settings.release.metric:
        return
    (height, width), block = private.image.shape[1:3], settings.evaluation.pixel_block
    if height % block or width % block:
        raise InputError(
            f"config.evaluation.pixel_block: expected a divisor of {height} and {width}, or 0 for none, got {block}"
        )


def _release(
    settings: PrivateStudy,
    epsilon: float,
    flow: common.TrainedFlow,
    source: FlowProvenance,
    private: Records | Rows,
    public_z: np.ndarray,
    random_order: bool,
    assumed: Sequence[str],
) -> Privatised | PrivatisedTable:
    dims, release = flow.model.dims, settings.release
    mechanism = common.make_mechanism(settings, epsilon, dims, len(private))
    relation, selection = common.make_relation(settings), common.make_selection(settings, dims)
    if isinstance(private, Rows):
        return privatise_table(
            private.table, private.encoder, flow.release_encode, flow.release_decode,
            mechanism=mechanism, relation=relation, delta=release.delta, flow=source,
            response_epsilon=common.response_epsilon(settings), selection=selection, match=release.prior_matched,
            public_latents=public_z, random_order=random_order, assumed=assumed,
        )  # fmt: skip
    return privatise(
        flow.release_encode, flow.release_decode, private.image, flow.given(private),
        mechanism=mechanism, condition=common.make_condition(settings, private), relation=relation,
        delta=release.delta, flow=source, selection=selection, match=release.prior_matched,
        person=private.identity, hashes=common.hashes(private), hash_kind=common.hash_kind(private),
        public_latents=public_z, random_order=random_order, assumed=assumed,
    )  # fmt: skip


def assumed_public(settings: PrivateStudy, records: Records | Rows) -> tuple[str, ...]:
    """What the source makes depend on the records, and the manifest must call public: who is kept at all."""
    if isinstance(records, Records):
        return tuple(fact for fact in records.assumed if fact == CLASSES_KEPT)
    policies = settings.data.params.get("missing", "error")
    drop = "drop" in (policies.values() if isinstance(policies, Mapping) else (policies,))
    return (ROWS_KEPT,) if drop else ()


def privatize(settings: PrivateStudy, workdir: Workdir) -> None:
    """Writes the data sets that are not there yet: images and data.npz, or data.csv; manifest.json.

    In ``releases/eps_E`` for each ε, or ``releases/rate_R`` for each rate of metric privacy.

    Raises:
      InputError: the flow learned from these records and is declared neither ``dp-sgd``, with the checkpoint and the
        ledger to show for it, nor ``mechanism-only``; the ledger is exhausted, lacks a release that is there, has
        records of the public share as private ones or of the private share as public ones; the relation, ε or δ is
        missing or out of range. No release is left half-written.
    """
    metric = settings.release.metric
    if any(not common.release_path(workdir, s, metric).exists() for s in settings.release.strengths):
        release_all(settings, workdir, common.load_parts(settings, workdir))


def release_all(
    settings: PrivateStudy, workdir: Workdir, parts: common.Parts[Any], assumed: Sequence[str] = ()
) -> None:
    """`privatize` of records that are at hand; the public ones only say how often the clip shortens a latent.

    Args:
      parts: with the private records in the order of ``workdir``, see `private_order`.
      assumed: what else is public, for the manifest.
    """
    metric = settings.release.metric
    missing = [s for s in settings.release.strengths if not common.release_path(workdir, s, metric).exists()]
    if not missing:
        return
    private = parts.private
    # Everything that can be refused is refused before the flow is read, and before the first of several releases.
    hashes = common.hashes(private)
    ledger = common.make_ledger(settings, workdir)
    common.check_entered(settings, workdir, ledger, hashes)
    common.check_given_up(ledger, parts)
    source = provenance(settings, workdir, ledger)
    with within({"flow_training": "config.release.flow_training"}):
        source.check(hashes, common.hash_kind(private))
    if metric:
        _LOG.warning("privatize: metric privacy is no ε; the ledger will say that these records have no guarantee")
    else:
        check_budget(settings, ledger, missing, private, hashes)
    flow = common.load_flow(settings, workdir, private)
    # Once more where the flow was trained by an earlier version, which wrote no note.
    common.give_up(ledger, parts)
    shuffled, public = private_order.is_random(workdir), (*assumed_public(settings, private), *assumed)
    with workdir.timed("privatize"):
        public_z, _ = flow.encode(parts.public.image, flow.given(parts.public), rng.stream(settings.seed, "clip_share"))
        for strength in missing:
            made = _release(settings, strength, flow, source, private, public_z, shuffled, public)
            if isinstance(made, Privatised) and isinstance(private, Records):
                manifest = dataclasses.replace(made.manifest, preparation=private.preparation)
                made = dataclasses.replace(made, manifest=manifest)
            path = common.release_path(workdir, strength, metric)
            if isinstance(made, PrivatisedTable):
                promise, folder = made.release.manifest, publish_table(made, path, ledger=ledger)
            else:
                names = private.attribute_names if made.labels.ndim == 2 and isinstance(private, Records) else None
                promise, folder = made.manifest, publish(made, path, ledger=ledger, class_names=names)
            _LOG.info("privatize: %s, %s", folder, promise.guarantee)
