"""Stage `audit` of a joined study, first part: what each way to share gives away of the marked records.

A shared model draws a class by its share among the private records (which is public) and then an image of that class.
E1 counts over such draws. h(t), t' and E2 start from the record and keep its class: E2 speaks of draws of that class
alone and is multiplied by the class's share, which bounds q from below and leaves out what other classes give back.

An image of the private copy is picked at random among its n. E1 counts over copies simulated with the mechanism that
released the real one: they never leave this function, and say what the mechanism does on average.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity import montecarlo, subspace, tprime, verdict
from diffusion_privacy.anonymity.bank import PairMargin
from diffusion_privacy.anonymity.subspace import SubspaceResult
from diffusion_privacy.audits import attacks, membership, neighbours
from diffusion_privacy.data.records import Records
from diffusion_privacy.mechanisms.export import to_uint8
from diffusion_privacy.reports import estimates, schema
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.stages import audit as audit_stage
from diffusion_privacy.stages import cadp_audit, cadp_study, joined_train
from diffusion_privacy.stages import joined_study as common
from diffusion_privacy.stages import study as score_study
from diffusion_privacy.stages.cadp_flow import TrainedFlow
from diffusion_privacy.stages.joined_study import Sets
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng
from diffusion_privacy.types import Array, ConditionalScore, PyTree

_LOG = logging.getLogger(__name__)
_ROWS = 8192

OWN_CLASS = "of draws of the record's own class, times the class's share: other classes are left out"
_COPY_ASSUMES = (
    "an image of the private copy, picked at random; the copies that were counted were simulated by the same mechanism "
    "and flow, and the one that was released is one more draw",
    "a reproduction is what the detector says it is; its misses are allowed for, its blind spots are not",
    "the detector errs on private copies as often as on the images that its error rates were measured on",
)


@dataclasses.dataclass(frozen=True)
class OneRecord:
    """The margin of one record of a bank for an audit that looks at that record alone and calls it number 0."""

    margin: PairMargin

    def __call__(self, params: PyTree, x: Array, record: Array) -> Array:
        return self.margin(params["pair"], x, record + params["first"])


def one_record(detect: PyTree, number: int) -> PyTree:
    """``detect`` of a bank, with record ``number`` as its only one; equal banks share compiled programs."""
    return jax.tree_util.Partial(OneRecord(detect.func), {"pair": detect.args[0], "first": jnp.int32(number)})


def set_up(settings: Joined, workdir: Workdir, sets: Sets) -> audit_stage.Setup:
    """The calibrated detector of all marked records."""
    return audit_stage.set_up(settings.study, workdir, sets.roles)


def detector_entry(settings: Joined, sets: Sets, setup: audit_stage.Setup) -> dict[str, Any]:
    """`schema.Detector`: thresholds of the first marked private record, error rates of the worst of them."""
    own = setup.calibrations[: sets.audited]
    entry = audit_stage.detector_entry(setup.calibrations, settings.study)
    worst = {
        "false_positive_rate": max((c.false_positive_rate for c in own), key=lambda rate: rate.upper),
        "true_positive_rate": min((c.true_positive_rate for c in own), key=lambda rate: rate.lower),
    }
    return {**entry, **{name: estimates.rate_entry(rate) for name, rate in worst.items()}}


def _scaled(found: SubspaceResult, share: float) -> SubspaceResult:
    """E2 of the record's class as a contribution to q of the whole sampler."""
    one = found.estimate
    changed = dataclasses.replace(
        one,
        log_value=one.log_value + math.log(share),
        lower=one.lower * share,
        upper=min(one.upper * share, 1.0),
        reasons=(*one.reasons, OWN_CLASS),
    )
    return dataclasses.replace(found, estimate=changed)


def _as_limit(found: SubspaceResult | None) -> SubspaceResult | None:
    """E2 for the verdict: its limits count, its value does not stand for q, since other classes are left out."""
    if found is None:
        return None
    return dataclasses.replace(found, estimate=dataclasses.replace(found.estimate, log_stderr=math.inf))


def _record_name(setup: audit_stage.Setup, number: int) -> tuple[str, str]:
    role = "private" if number < len(setup.roles.private) else "control"
    return role, f"{role} record {int(setup.roles.marked.index[number])}"


def _facts(setup: audit_stage.Setup, number: int) -> dict[str, Any]:
    marked, kind = setup.roles.marked, setup.study.fingerprint.name
    return {
        "role": _record_name(setup, number)[0],
        "index": int(marked.index[number]),
        "label": int(marked.label[number]),
        "fingerprint": {"kind": kind, **setup.roles.params[number]} if kind != "none" else None,
    }


# --- models -----------------------------------------------------------------------------------------------------------


def _model_record(
    setup: audit_stage.Setup,
    score: ConditionalScore,
    number: int,
    margins: np.ndarray,
    shares: np.ndarray,
    name: str,
    n_train: int,
    chunk: int,
) -> dict[str, Any]:
    """`joined_schema.RecordRisk` of one record under one model."""
    audit, chain, cal = setup.study.audit, setup.chain, setup.calibrations[number]
    image, uid = setup.roles.marked.image[number : number + 1], setup.uids[number : number + 1]
    label = int(setup.roles.marked.label[number])
    own = jax.tree_util.Partial(score.func, *score.args, jnp.int32(label))  # type: ignore[attr-defined]
    detect = one_record(setup.detect, number)
    levels = np.unique(np.round(np.linspace(1, chain.steps, audit.h_levels)).astype(int))
    key = rng.stream(setup.study.seed, f"h.{name}")
    [curve] = tprime.h_curves(chain, own, detect, image, levels, audit.h_draws, key, uids=uid, chunk=chunk)
    direct = audit_stage.direct_result(setup, margins, cal)
    e2 = None
    if shares[label] > 0:
        [found] = subspace.estimate(
            chain,
            own,
            detect,
            image,
            [subspace.design(curve.by_level)],
            rng.stream(setup.study.seed, f"subspace.{name}"),
            uids=uid,
            draws=audit.subspace_draws,
            max_draws=audit.subspace_max_draws,
            level=setup.level,
            chunk=chunk,
        )
        e2 = _scaled(found, float(shares[label]))
    said = verdict.decide(direct, _as_limit(e2), cal.false_positive_rate, 1 / n_train, audit.level)
    gamma = max(audit.gamma, cal.false_positive_rate.upper)
    entry = None if e2 is None else schema.subspace_entry(e2.estimate, e2.hits, e2.pareto_k, e2.max_weight_share)
    return {
        **_facts(setup, number),
        "verdict": audit_stage.verdict_entry(said, _record_name(setup, number)[1]),
        "in_copy": None,
        "direct": schema.direct_entry(direct.estimate, direct.hits),
        "subspace": entry,
        "t_prime": estimates.t_prime_entry(curve, gamma, audit.level),
        "h_curve": estimates.h_curve_entry(curve, audit.level),
    }


def _loss_attack(settings: Joined, score: ConditionalScore, sets: Sets) -> dict[str, Any]:
    most, seed = settings.risk.attack_records, settings.seed
    sides = sets.parts.private, cadp_study.never_seen(sets.parts.test, sets.parts.private)
    # A sample, since a source may hold its records class by class.
    both = [r.take(np.random.default_rng([seed, 21]).permutation(len(r))[:most]) for r in sides]
    image, label = (np.concatenate([getattr(r, field) for r in both]) for field in ("image", "label"))
    found = attacks.loss(score, score_study.make_sde(settings.study), image, label=label, seed=seed)
    what = "the model's denoising loss on a record, lower on what it was trained on; needs the model's weights"
    left_out = len(sets.parts.test) - len(sides[1])
    scores = found[: len(both[0])], found[len(both[0]) :]
    return _attack("loss", what, scores, (both[0].identity, both[1].identity), left_out, settings)


def _attack(
    name: str,
    what: str,
    scores: tuple[np.ndarray, np.ndarray],
    people: tuple[np.ndarray, np.ndarray],
    left_out: int,
    settings: Joined,
) -> dict[str, Any]:
    """`joined_schema.Attack` of the scores of members and others, larger for members, and of whom they are.

    A person's records came to their side together, and are one draw to the interval of the AUC. Limits of a rate are
    exact given its threshold, where everybody has one record.
    """
    level = settings.risk.level
    found = membership.membership(name, *scores, level=level, seed=settings.seed, groups=people)
    points = []
    for point in found.points:
        lower = upper = value = None
        if point.tpr is not None:
            value, lower, upper = point.tpr.value, point.tpr.lower, point.tpr.upper
        points.append(
            {
                "false_positive_rate": point.requested,
                "value": value,
                "lower": lower,
                "upper": upper,
                "level": level,
                "reason": point.reason,
            }
        )
    area = found.auc
    return {
        "name": name,
        "what": what,
        "members": found.members,
        "non_members": found.non_members,
        "left_out": left_out,
        "auc": {"value": area.value, "lower": area.lower, "upper": area.upper, "level": level},
        "points": points,
    }


def audit_model(settings: Joined, workdir: Workdir, sets: Sets, setup: audit_stage.Setup, name: str) -> None:
    """Writes ``audit/NAME.json``: `joined_schema.Risk` of a shared model."""
    private = sets.parts.private
    score = common.load_score(settings, workdir, name, private.num_classes)
    images = workdir.read_arrays(workdir.root / "samples" / f"{name}.npz")["images"]
    count, shares = len(setup.roles.marked), common.class_shares(private)
    margins = montecarlo.margins(setup.detect, images, count, chunk=setup.at_once)
    chunk = joined_train.chunk_size(settings, score, private.image.shape[1:])
    records = []
    for number in range(count):
        found = _model_record(setup, score, number, margins[:, number], shares, name, len(private), chunk)
        _LOG.info("audit %s: %s", name, found["verdict"]["sentence"])
        records.append(found)
    risk = {"records": records, "linkage": None, "attack": _loss_attack(settings, score, sets)}
    workdir.write_json(workdir.path("audit", f"{name}.json"), risk)


# --- the private copy -------------------------------------------------------------------------------------------------


def copy_blocks(
    settings: Joined, flow: TrainedFlow, records: Records, copies: int, name: str, number: int = 0
) -> Iterator[np.ndarray]:
    """Images ``[m, N, H, W, C]`` as M private copies of ``records`` would hold them, some copies at a time; never to
    leave the workdir.

    From the mechanism, the flow and the rounding of the release, with noise from the run's seed.
    """
    several = max(1, _ROWS // len(records))
    for block, start in enumerate(range(0, copies, several)):
        # Every block is full, so that one program serves all of them; the last one is cut.
        key = rng.stream(settings.seed, f"copies.{name}", number, block)
        tiled = records.take(np.tile(np.arange(len(records)), several))
        [images] = cadp_study.study_images(settings.cadp, flow, tiled, (settings.epsilon,), key)
        made = images.reshape(several, len(records), *images.shape[1:])[: copies - start]
        yield as_published(made)


def simulated_copies(
    settings: Joined, flow: TrainedFlow, records: Records, copies: int, name: str, number: int = 0
) -> np.ndarray:
    """All of `copy_blocks` at once, ``[M, N, H, W, C]``: for a few that are trained on."""
    return np.concatenate(list(copy_blocks(settings, flow, records, copies, name, number)))


def as_published(images: np.ndarray) -> np.ndarray:
    """Images as they are after they were written as 8-bit grey levels and read again."""
    return (to_uint8(images).astype(np.float32) / 127.5 - 1).clip(-1, 1)


def detections(setup: audit_stage.Setup, copies: np.ndarray) -> np.ndarray:
    """Images of each copy in which the detector names each marked record, int ``[M, R]``."""
    flat = copies.reshape(-1, *copies.shape[2:])
    margins = montecarlo.margins(setup.detect, flat, len(setup.roles.marked), chunk=setup.at_once)
    return (margins > 0).reshape(copies.shape[0], copies.shape[1], -1).sum(axis=1)


def _copy_record(
    setup: audit_stage.Setup, number: int, hits: int, images: int, n_train: int, in_copy: int
) -> dict[str, Any]:
    audit, cal = setup.study.audit, setup.calibrations[number]
    direct = montecarlo.direct(
        hits, images, tpr_lower=max(cal.true_positive_rate.lower, 1e-12), steps=0, level=setup.level
    )
    said = dataclasses.replace(
        verdict.decide(direct, None, cal.false_positive_rate, 1 / n_train, audit.level), assumes=_COPY_ASSUMES
    )
    entry = audit_stage.verdict_entry(said, _record_name(setup, number)[1])
    entry["sentence"] += f" In the copy that was released {in_copy} of {n_train} images show it."
    return {
        **_facts(setup, number),
        "verdict": entry,
        "in_copy": in_copy,
        "direct": schema.direct_entry(direct.estimate, direct.hits),
        "subspace": None,
        "t_prime": None,
        "h_curve": None,
    }


def _nearest_attack(settings: Joined, sets: Sets, released: Records) -> dict[str, Any]:
    """Minus the distance to the nearest image of the copy with the record's class."""

    def scores(records: Records) -> np.ndarray:
        found = np.full(len(records), -np.inf)
        for label in np.unique(records.label):
            rows = np.flatnonzero(records.label == label)
            shared = released.image[released.label == label]
            if len(shared):
                squared, _ = neighbours.nearest(
                    neighbours.rows(records.image[rows], "records"), neighbours.rows(shared, "private copy")
                )
                found[rows] = -np.sqrt(squared[:, 0])
        return found

    what = "distance from a record to the nearest image of its class in the private copy, smaller for its records"
    strangers = cadp_study.never_seen(sets.parts.test, sets.parts.private)
    left_out = len(sets.parts.test) - len(strangers)
    sides = sets.parts.private, strangers
    both, people = (scores(sides[0]), scores(sides[1])), (sides[0].identity, sides[1].identity)
    return _attack("nearest image", what, both, people, left_out, settings)


def _linkage(settings: Joined, flow: TrainedFlow, private: Records, released: Records) -> dict[str, Any]:
    """`cadp_schema.Linkage` of the copy, within the class where there are several."""
    level, seed = settings.risk.level, settings.seed
    gallery, z = (
        cadp_audit.latents(flow, r.image, r.label, rng.stream(seed, stream), what)
        for r, stream, what in ((private, "gallery", "originals"), (released, "attack", "private copy"))
    )
    several = private.num_classes > 1
    linked = cadp_audit.link(z, released.label, gallery, private.label, level, several, seed)
    return {"name": "private copy", "kind": "released", "epsilon": settings.epsilon, **linked}


def audit_copy(settings: Joined, workdir: Workdir, sets: Sets, setup: audit_stage.Setup) -> None:
    """Writes ``audit/copy.json``: `joined_schema.Risk` of the private copy."""
    private = sets.parts.private
    flow = cadp_study.load_flow(settings.cadp, workdir, private)
    copies = settings.certify.copies
    # Counted a block at a time: memory does not grow with the number of copies.
    hits = sum(detections(setup, block).sum(axis=0) for block in copy_blocks(settings, flow, private, copies, "with"))
    images, count = copies * len(private), len(setup.roles.marked)
    released = common.load_copy(settings, workdir, private).records
    found = detections(setup, released.image[None])[0]
    records = [_copy_record(setup, r, int(hits[r]), images, len(private), int(found[r])) for r in range(count)]
    risk = {
        "records": records,
        "linkage": _linkage(settings, flow, private, released),
        "attack": _nearest_attack(settings, sets, released),
    }
    workdir.write_json(workdir.path("audit", f"{common.COPY}.json"), risk)
