"""Stage `audit` of a joined study, second part: what each guarantee is worth in hits of the detector (E6).

For each marked private record p the data set is taken with p replaced by another record of its class, and shared in
the same way: privatised anew, trained anew. How often that shows p bounds q of the real thing (`anonymity.inherited`):

    copy         many copies; exact over their images, given the flow
    copy_model   M models side by side, each trained on a copy of its own; a limit of a mean over models
    dp_model     M models trained with DP-SGD one after the other; the same

The rates are of the detector; its misses are not allowed for. Nothing of this is given away.
"""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy import settings as settings_module
from diffusion_privacy.anonymity import inherited, montecarlo
from diffusion_privacy.anonymity.inherited import Pooled
from diffusion_privacy.data.records import Records
from diffusion_privacy.errors import InputError
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.stages import audit as audit_stage
from diffusion_privacy.stages import cadp_study, joined_audit, joined_guarantee, joined_train
from diffusion_privacy.stages import joined_study as common
from diffusion_privacy.stages.cadp_arms import Arm, ArmBatches
from diffusion_privacy.stages.joined_study import Sets
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import SideBySide
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.training.loop import train as run_loop

_LOG = logging.getLogger(__name__)
_SEED_STEP = 104_729

GIVEN_FLOW = "over the noise of the mechanism, given the flow, whose images in a copy are independent draws"


def without(sets: Sets, number: int) -> Records:
    """The private records with marked record ``number`` replaced by the first test record of its class, unmarked.

    Raises:
      InputError: no test record has that class.
    """
    private, test = sets.parts.private, sets.parts.test
    same = np.flatnonzero(test.label == private.label[number])
    if not same.size:
        raise InputError(f"config.split.test: expected a test record of class {int(private.label[number])}")
    images = np.array(private.image)
    images[number] = test.image[same[0]]
    return private.with_images(images)


def _confidence(settings: Joined) -> float:
    """One-sided, so that the two-sided level of the estimate is the study's."""
    return 0.5 * (1 + settings.risk.level)


def _copies(settings: Joined, workdir: Workdir, setup: audit_stage.Setup, other: Records, number: int) -> Pooled:
    flow = cadp_study.load_flow(settings.cadp, workdir, other)
    copies = joined_audit.simulated_copies(settings, flow, other, settings.certify.copies, "without", number)
    hits = joined_audit.detections(setup, copies)[:, number]
    return inherited.pooled_copies(hits, np.full(len(hits), len(other)), _confidence(settings))


def _hits(
    settings: Joined, setup: audit_stage.Setup, params: Any, private: Records, number: int, name: str, model: int
) -> int:
    """Images of one model in which the detector names the record that it never saw."""
    score = common.score_task(settings, private.num_classes).conditional_score(params)
    count = settings.certify.samples
    images, _ = joined_train.draw(settings, score, private, count, f"certify.{name}.{number}", model)
    margins = montecarlo.margins(joined_audit.one_record(setup.detect, number), images, 1)
    return int(np.sum(margins > 0))


def _pooled(settings: Joined, hits: list[int]) -> Pooled:
    images = np.full(len(hits), settings.certify.samples)
    return inherited.pooled(np.array(hits), images, _confidence(settings))


def _copy_models(settings: Joined, workdir: Workdir, setup: audit_stage.Setup, other: Records, number: int) -> Pooled:
    """Trains the models by one program; each has a copy, an initialisation, an order and noise of its own."""
    count, config, seed = settings.certify.copy_models, settings.score.training, settings.seed
    flow = cadp_study.load_flow(settings.cadp, workdir, other)
    copies = joined_audit.simulated_copies(settings, flow, other, count, "trained", number)
    arm = Arm("copies", "study", None, tuple(other.with_images(images) for images in copies))
    folder = workdir.path("certify", f"copy_models_{number}")
    task = SideBySide(common.score_task(settings, other.num_classes), count)
    run_loop(
        task,
        ArmBatches([arm], config.batch_size, (seed + _SEED_STEP) % 2**32, count),
        config,
        workdir=folder,
        seed=(seed + _SEED_STEP) % 2**32,
        name="copy models",
        identity={"config": settings_module.digest(settings_module.to_dict(settings)["score"])},
    )
    params = restore_ema(folder)[0]
    hits = []
    for model in range(count):
        own = jax.tree.map(lambda leaf, m=model: jnp.asarray(leaf[m]), params)
        hits.append(_hits(settings, setup, own, other, number, "copy_model", model))
    return _pooled(settings, hits)


def _dp_models(settings: Joined, workdir: Workdir, setup: audit_stage.Setup, other: Records, number: int) -> Pooled:
    hits = []
    for model in range(settings.certify.dp_models):
        name, seed = f"dp_model_{number}_{model}", (settings.seed + _SEED_STEP * (model + 2)) % 2**32
        joined_train.fit_score(
            settings, workdir, name, other, settings.private_training, seed, workdir.path("certify", name)
        )
        params = restore_ema(workdir.root / "certify" / name)[0]
        hits.append(_hits(settings, setup, params, other, number, "dp_model", model))
    return _pooled(settings, hits)


def _entry(settings: Joined, found: Pooled, epsilon: float, delta: float, index: int, bound: float, copy: bool) -> Any:
    """`joined_schema.Certified`."""
    steps = 0 if copy else settings.sampler.steps
    estimate = inherited.inherited(found, epsilon, delta, steps=steps)
    if copy:
        images = inherited.images_needed(bound, epsilon, delta, confidence=found.confidence)
        per_copy = found.images // found.models
        needed = None if images is None else -(-images // per_copy)
    else:
        needed = inherited.models_needed(bound, epsilon, delta, confidence=found.confidence)
    assumes = list(inherited.ASSUMES)
    if copy:
        assumes[1:3] = [GIVEN_FLOW, "it speaks of what the mechanism releases on average, not of the one release"]
    return {
        "index": index,
        "value": estimate.value,
        "upper": estimate.upper,
        "level": estimate.level,
        "without": {"value": found.value, "lower": 0.0, "upper": found.upper, "level": estimate.level},
        "models": found.models,
        "images": found.images,
        "models_needed": needed,
        "reliable": estimate.reliable,
        "assumes": assumes,
        "reasons": list(estimate.reasons),
    }


def certify(settings: Joined, workdir: Workdir, sets: Sets, setup: audit_stage.Setup) -> None:
    """Writes ``certify.json``: for each way with a promise the certificates of its marked private records."""
    path = workdir.path("certify.json")
    if path.exists():
        return
    ways = {"copy": _copies, "copy_model": _copy_models, "dp_model": _dp_models}
    found: dict[str, list[Any]] = {}
    bound = 1 / len(sets.parts.private)
    for name, way in ways.items():
        promise = joined_guarantee.promise(settings, workdir, name)
        found[name] = []
        if not promise.guarantee:
            continue
        for number in range(sets.audited):
            with workdir.timed(f"certify {name}, record {number}"):
                rate = way(settings, workdir, setup, without(sets, number), number)
            index = int(sets.roles.marked.index[number])
            spent = promise.account
            entry = _entry(settings, rate, spent.epsilon, spent.delta, index, bound, name == common.COPY)
            _LOG.info(
                "certify %s: record %d, q <= %.3g at %.0f %% (rate without it at most %.3g over %d)",
                name,
                index,
                entry["upper"],
                100 * entry["level"],
                rate.upper,
                rate.models,
            )
            found[name].append(entry)
    workdir.write_json(path, found)


def audit(settings: Joined, workdir: Workdir) -> None:
    """Risk of every way to share, and what each guarantee is worth; what is finished is left as it is."""
    wanted = [workdir.root / "audit" / f"{name}.json" for name in (*common.MODELS, common.COPY)]
    if all(path.exists() for path in (*wanted, workdir.root / "certify.json")):
        return
    sets = common.load_sets(settings, workdir)
    common.note(common.make_ledger(settings, workdir), common.AUDIT_STAGE, None, cadp_study.hashes(sets.parts.private))
    with workdir.timed("audit calibration"):
        setup = joined_audit.set_up(settings, workdir, sets)
    workdir.write_json(
        workdir.path("audit", "detector.json"), audit_stage.detector_entry(setup.calibrations, settings.study)
    )
    for name, path in zip((*common.MODELS, common.COPY), wanted, strict=True):
        if path.exists():
            continue
        with workdir.timed(f"audit {name}"):
            if name == common.COPY:
                joined_audit.audit_copy(settings, workdir, sets, setup)
            else:
                joined_audit.audit_model(settings, workdir, sets, setup, name)
    certify(settings, workdir, sets, setup)
