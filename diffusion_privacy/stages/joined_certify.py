"""Stage `audit` of a joined study, second part: what each guarantee is worth in hits of the detector (E6).

For each marked private record p the data set is taken with p replaced by another record of its class, and shared in
the same way: privatised anew, trained anew. How often that shows p bounds q of the real thing (`anonymity.inherited`):

    copy         many copies; exact over their images, given the flow
    copy_model   M models, each trained on a copy of its own; a limit of a mean over models, given the flow
    dp_model     M models trained with DP-SGD; a limit of a mean over models

A guarantee holds at every δ with an ε of its own. All of them hold together, so that the least of the bounds over a
fixed list of δ is one too. Limits are divided by the lower limit of the detector's true-positive rate, as E1's are, and
the error is shared between the two. Where no number of hits could make the bound say something, nothing is trained.
Nothing of this is given away.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_privacy.anonymity import inherited, montecarlo, verdict
from diffusion_privacy.anonymity.inherited import Pooled
from diffusion_privacy.anonymity.intervals import outwards
from diffusion_privacy.data.records import Records
from diffusion_privacy.reports import wording
from diffusion_privacy.rounding import promised
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.stages import audit as audit_stage
from diffusion_privacy.stages import cadp_study, joined_audit, joined_guarantee, joined_train
from diffusion_privacy.stages import joined_study as common
from diffusion_privacy.stages.joined_study import Sets
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.training.state import TrainConfig

_LOG = logging.getLogger(__name__)
_SEED_STEP = 104_729

DELTAS = (1e-4, 1e-3, 0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""δ at which a guarantee is read besides its own; fixed, so that the least bound needs no correction."""

_EVENT = "the training guarantee holds as stated, in the audited record, under its own relation"
_INDEPENDENT = "the models without the record were trained independently, each with its own seeds, by the same training"
_AVERAGE = "it speaks of what such a way shows on average, not of the one thing that was made"
_MISSES = "a reproduction is what the detector says it is; its misses are allowed for, its blind spots are not"
GIVEN_FLOW = "it holds given the flow, which all of them share: over the noise of the mechanism and what follows"


@dataclasses.dataclass(frozen=True)
class _Way:
    """How a way is shared without the record.

    Attributes:
      units: copies or models at most.
      measure: ``(settings, workdir, setup, records, number) -> Pooled``.
      copies: whether a unit is a copy, of which every image is an independent draw.
      given_flow: whether the units share the flow.
    """

    units: int
    measure: Callable[[Joined, Workdir, audit_stage.Setup, Records, int], Pooled]
    copies: bool
    given_flow: bool


def _confidence(settings: Joined) -> float:
    """One-sided, of the rate; the detector's true-positive rate errs with as much, and both with (1 − level)/2."""
    return 0.5 * (1 + verdict.part_level(settings.risk.level))


def _copies(settings: Joined, workdir: Workdir, setup: audit_stage.Setup, other: Records, number: int) -> Pooled:
    flow = cadp_study.load_flow(settings.cadp, workdir, other)
    blocks = joined_audit.copy_blocks(settings, flow, other, settings.certify.copies, "without", number)
    hits = np.concatenate([joined_audit.detections(setup, block)[:, number] for block in blocks])
    return inherited.pooled_copies(hits, np.full(len(hits), len(other)), _confidence(settings))


def _of_models(
    settings: Joined,
    workdir: Workdir,
    setup: audit_stage.Setup,
    sets: list[Records],
    config: TrainConfig,
    number: int,
    name: str,
) -> Pooled:
    """Trains a model on each set, with seeds of its own, and counts the images in which the record is named."""
    detect, count, hits = joined_audit.one_record(setup.detect, number), settings.certify.samples, []
    for model, records in enumerate(sets):
        folder = workdir.path("certify", f"{name}_{number}_{model}")
        seed = (settings.seed + _SEED_STEP * (model + 1)) % 2**32
        joined_train.fit_score(settings, workdir, f"{name} {number}, {model}", records, config, seed, folder)
        score = common.score_task(settings, records.num_classes).conditional_score(restore_ema(folder)[0])
        images, _ = joined_train.draw(settings, score, records, count, f"certify.{name}.{number}", model)
        hits.append(int(np.sum(montecarlo.margins(detect, images, 1) > 0)))
    return inherited.pooled(np.array(hits), np.full(len(hits), count), _confidence(settings))


def _copy_models(settings: Joined, workdir: Workdir, setup: audit_stage.Setup, other: Records, number: int) -> Pooled:
    flow = cadp_study.load_flow(settings.cadp, workdir, other)
    copies = joined_audit.simulated_copies(settings, flow, other, settings.certify.copy_models, "trained", number)
    sets = [other.with_images(images) for images in copies]
    return _of_models(settings, workdir, setup, sets, settings.score.training, number, "copy_model")


def _dp_models(settings: Joined, workdir: Workdir, setup: audit_stage.Setup, other: Records, number: int) -> Pooled:
    sets = [other] * settings.certify.dp_models
    return _of_models(settings, workdir, setup, sets, settings.private_training, number, "dp_model")


def _ways(settings: Joined) -> dict[str, _Way]:
    certify = settings.certify
    return {
        "copy": _Way(certify.copies, _copies, True, True),
        "copy_model": _Way(certify.copy_models, _copy_models, False, True),
        "dp_model": _Way(certify.dp_models, _dp_models, False, False),
    }


def profile(settings: Joined, workdir: Workdir, way: str) -> list[tuple[float, float]]:
    """(ε, δ) pairs that the way's stages promise together, at its own δ and at each of `DELTAS`; finite ones only."""
    deltas = (settings.release.delta, *DELTAS)
    found = [(joined_guarantee.promise(settings, workdir, way, delta).account.epsilon, delta) for delta in deltas]
    return [(epsilon, delta) for epsilon, delta in found if math.isfinite(epsilon)]


def least(pairs: list[tuple[float, float]], rate: float, tpr_lower: float) -> tuple[float, tuple[float, float]]:
    """Least bound of q from a rate without the record, and the (ε, δ) that gives it.

    min over pairs of (e^ε rate + δ)/tpr_lower, at most 1. Each pair holds, so the least one does.

    Args:
      pairs: at least one.
      rate: of the detector on things made without the record, or its limit.
      tpr_lower: lower limit of the share of true returns that the detector sees, in (0, 1].
    """
    bounds = [(min((math.exp(min(e, 700.0)) * rate + d) / tpr_lower, 1.0), (e, d)) for e, d in pairs]
    return min(bounds, key=lambda bound: bound[0])


def _needed(pairs: list[tuple[float, float]], bound: float, confidence: float, per_copy: int | None) -> int | None:
    """Copies, or models, without a hit that would certify ``bound``: the least over the pairs."""
    found = []
    for epsilon, delta in pairs:
        if per_copy is None:
            found.append(inherited.models_needed(bound, epsilon, delta, confidence=confidence))
        else:
            images = inherited.images_needed(bound, epsilon, delta, confidence=confidence)
            found.append(None if images is None else -(-images // per_copy))
    known = [number for number in found if number is not None]
    return min(known) if known else None


def _without_a_hit(way: _Way, confidence: float, images: int) -> Pooled:
    count = max(way.units, 1)
    pool = inherited.pooled_copies if way.copies else inherited.pooled
    return pool(np.zeros(count), np.full(count, images), confidence)


def _entry(settings: Joined, way: _Way, pairs: list[tuple[float, float]], found: Pooled | None, **facts: Any) -> Any:
    """`joined_schema.Certified`; ``found`` is None where nothing was made, because nothing could have been shown."""
    tpr, bound, size = facts["tpr_lower"], facts["bound"], facts["size"]
    confidence, assumes = _confidence(settings), [_EVENT, _AVERAGE, _MISSES]
    assumes[1:1] = ([] if way.copies else [_INDEPENDENT]) + ([GIVEN_FLOW] if way.given_flow else [])
    value = upper = 1.0
    reasons = [f"even without a hit in {way.units} of them the bound would be 1: none was made"]
    if found is not None:
        value, _ = least(pairs, found.value, 1.0)
        upper, (epsilon, delta) = least(pairs, found.upper, tpr)
        reasons = [] if upper < 1 else ["the bound is 1: too few of them, or too large an ε"]
        assumes.append(
            f"the guarantee is read at ε = {promised(epsilon, 4)}, δ = {promised(delta)}, where it bounds q best"
        )
    return {
        "index": facts["index"],
        "value": min(value, upper),
        "upper": upper,
        "level": settings.risk.level,
        "without": {
            "value": 0.0 if found is None else found.value,
            "lower": 0.0,
            "upper": 1.0 if found is None else found.upper,
            "level": 2 * confidence - 1,
        },
        "models": 0 if found is None else found.models,
        "images": 0 if found is None else found.images,
        "models_needed": _needed(pairs, bound * tpr, confidence, size if way.copies else None),
        "reliable": upper < 1,
        "assumes": assumes,
        "reasons": reasons,
    }


def _certificate(
    settings: Joined, workdir: Workdir, sets: Sets, setup: audit_stage.Setup, name: str, number: int
) -> dict[str, Any]:
    way, pairs, size = _ways(settings)[name], profile(settings, workdir, name), len(sets.parts.private)
    facts = {
        "index": int(sets.roles.marked.index[number]),
        "bound": 1 / size,
        "size": size,
        "tpr_lower": max(setup.calibrations[number].true_positive_rate.lower, 1e-12),
    }
    hopeful = _without_a_hit(way, _confidence(settings), size if way.copies else settings.certify.samples)
    if way.units == 0 or least(pairs, hopeful.upper, facts["tpr_lower"])[0] >= 1:
        return dict(_entry(settings, way, pairs, None, **facts))
    with workdir.timed(f"certify {name}, record {number}"):
        found = way.measure(settings, workdir, setup, common.without(sets.parts, number), number)
    entry = dict(_entry(settings, way, pairs, found, **facts))
    _LOG.info(
        "certify %s: record %d, q <= %s at %s (rate without it at most %s over %d)",
        name,
        entry["index"],
        outwards(entry["upper"], "up"),
        wording.percent(entry["level"]),
        outwards(found.upper, "up"),
        found.models,
    )
    return entry


def certify(settings: Joined, workdir: Workdir, sets: Sets, setup: audit_stage.Setup) -> None:
    """Writes ``certify.json``: for each way with a promise the certificates of its marked private records."""
    path = workdir.path("certify.json")
    if path.exists():
        return
    found: dict[str, list[Any]] = {}
    for name in _ways(settings):
        promised = joined_guarantee.promise(settings, workdir, name).guarantee
        numbers = range(sets.audited) if promised else ()
        found[name] = [_certificate(settings, workdir, sets, setup, name, number) for number in numbers]
    workdir.write_json(path, found)


def audit(settings: Joined, workdir: Workdir) -> None:
    """Risk of every way to share, and what each guarantee is worth; what is finished is left as it is."""
    wanted = [workdir.root / "audit" / f"{name}.json" for name in (*common.MODELS, common.COPY)]
    if all(path.exists() for path in (*wanted, workdir.root / "certify.json")):
        return
    sets = common.load_sets(settings, workdir)
    common.note(common.make_ledger(settings, workdir), common.AUDIT_STAGE, None, sets.parts.private)
    with workdir.timed("audit calibration"):
        setup = joined_audit.set_up(settings, workdir, sets)
    workdir.write_json(workdir.path("audit", "detector.json"), joined_audit.detector_entry(settings, sets, setup))
    for name, path in zip((*common.MODELS, common.COPY), wanted, strict=True):
        if path.exists():
            continue
        with workdir.timed(f"audit {name}"):
            if name == common.COPY:
                joined_audit.audit_copy(settings, workdir, sets, setup)
            else:
                joined_audit.audit_model(settings, workdir, sets, setup, name)
    certify(settings, workdir, sets, setup)
