"""Stage `audit`: calibrate the detector, draw h(t), estimate q by E1 and E2, decide; one result file a model."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity import bank, montecarlo, subspace, summary, tprime, verdict
from diffusion_privacy.anonymity.detectors import PairCalibration, calibrate_pair_scores
from diffusion_privacy.anonymity.montecarlo import DirectResult
from diffusion_privacy.anonymity.subspace import SubspaceResult
from diffusion_privacy.anonymity.tprime import HCurve
from diffusion_privacy.anonymity.verdict import Verdict
from diffusion_privacy.audits import neighbours
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import estimates, schema, wording
from diffusion_privacy.reports.arrays import Listed, ModelArrays, Regenerated, save_arrays
from diffusion_privacy.settings import Study
from diffusion_privacy.stages import audit_baselines, audit_estimators, audit_screen, spaces
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.memory import chunk_size, detector_at_once
from diffusion_privacy.stages.spaces import Space
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng, sharding
from diffusion_privacy.training.metrics import read_csv
from diffusion_privacy.types import PyTree, ScoreFn

_LOG = logging.getLogger(__name__)
_SHOWN = 64
_SHOWN_DRAWS = 6


@dataclasses.dataclass(frozen=True)
class Setup:
    """What does not change between the models of a study; the calibrated detector of all audited records among it.

    ``at_once``: images that the detector looks at at a time on one device.
    """

    study: Study
    workdir: Workdir
    roles: common.Roles
    chain: Chain
    detect: PyTree
    calibrations: list[PairCalibration]
    at_once: int = 256

    @property
    def level(self) -> float:
        return verdict.part_level(self.study.audit.level)

    @property
    def uids(self) -> np.ndarray:
        return np.asarray(self.roles.marked.index)


def set_up(study: Study, workdir: Workdir, roles: common.Roles) -> Setup:
    """Calibrates the detector of all audited records on what the reference draws."""
    chain = common.make_chain(study, common.make_sde(study))
    return Setup(study, workdir, roles, chain, *_calibrate(study, workdir, roles, chain))


def _positives(
    study: Study, chain: Chain, score: ScoreFn, space: Space, margin: PyTree, roles: common.Roles
) -> np.ndarray:
    """``[R, M, H, W, C]``: the reference's regenerations of each audited record from a small noise level.

    The reference is a general denoiser that never saw the private record: what it returns has lost more than a copy
    that a memorising model draws, so that the true-positive rate errs on the safe side. An audited model itself would
    not do: a memoriser regenerates its own records and never a control.
    """
    level = max(1, int(np.searchsorted(chain.times, study.detector.positive_time)))
    records = space.encode(roles.marked.image)
    chunk = chunk_size(study, space.measured(score, margin), records.shape[1:])
    drawn, _ = tprime.regenerated_images(
        chain,
        score,
        space.detector(margin),
        records,
        np.array([level]),
        study.detector.positives,
        rng.stream(study.seed, "positives"),
        uids=np.asarray(roles.marked.index),
        chunk=chunk,
    )
    images = space.decode(drawn.reshape(-1, *drawn.shape[3:]))
    return images.reshape(len(records), -1, *images.shape[1:])


def _calibrate(
    study: Study, workdir: Workdir, roles: common.Roles, chain: Chain
) -> tuple[PyTree, list[PairCalibration], int]:
    """One pair a record, the same for every model of the study, and how many images it looks at at a time."""
    scores, params, floors = common.pair_scores(study, workdir, roles)
    margin = bank.PairMargin(scores)
    count, config = len(roles.marked), study.detector
    drawn = workdir.read_arrays(workdir.root / "samples" / f"{common.REFERENCE}.npz")["images"]
    at_once = detector_at_once(study, scores, params, drawn.shape[1:])
    negatives = bank.evaluate(scores, params, drawn, chunk=at_once)
    blank = {"thresholds": jnp.zeros((count, 2)), "scales": jnp.ones((count, 2))}
    uncalibrated = jax.tree_util.Partial(margin, {**params, **blank})
    reference = common.load_score(study, workdir, common.REFERENCE)
    space = spaces.load(study, workdir, common.REFERENCE)
    positives = _positives(study, chain, reference, space, uncalibrated, roles)
    f, identity = bank.evaluate(scores, params, positives.reshape(-1, *positives.shape[2:]), chunk=at_once)
    f, identity = f.reshape(count, -1), identity.reshape(count, -1, count)
    found = []
    for r in range(count):
        try:
            cal = calibrate_pair_scores(
                (negatives[0], negatives[1][:, r]),
                (f[r], identity[r, :, r]),
                config.false_positive_rate,
                floors=(0.0, float(floors[r])),
                level=verdict.part_level(study.audit.level),
            )
        except InputError as error:
            raise InputError(f"detector of record {int(roles.marked.index[r])}: {error}") from error
        _LOG.info(
            "detector of record %d: returns seen %.3f, false alarms %d of %d, thresholds %.2f and %.2f%s",
            roles.marked.index[r],
            cal.true_positive_rate.value,
            cal.false_positive_rate.hits,
            cal.false_positive_rate.n,
            *cal.thresholds,
            f" ({'; '.join(cal.reasons)})" if cal.reasons else "",
        )
        found.append(cal)
    table = {
        "thresholds": jnp.asarray([c.thresholds for c in found], jnp.float32),
        "scales": jnp.asarray([c.scales for c in found], jnp.float32),
    }
    return jax.tree_util.Partial(margin, {**params, **table}), found, at_once


def _curves(setup: Setup, score: ScoreFn, detect: PyTree, records: np.ndarray, name: str, chunk: int) -> list[HCurve]:
    config = setup.study.audit
    levels = np.unique(np.round(np.linspace(1, setup.chain.steps, config.h_levels)).astype(int))
    key = rng.stream(setup.study.seed, f"h.{name}")
    return tprime.h_curves(
        setup.chain, score, detect, records, levels, config.h_draws, key, uids=setup.uids, chunk=chunk
    )


def _subspaces(
    setup: Setup, score: ScoreFn, detect: PyTree, records: np.ndarray, curves: list[HCurve], name: str, chunk: int
) -> list[SubspaceResult]:
    """E2 of every record, on the levels that its h(t) proposes."""
    config = setup.study.audit
    return subspace.estimate(
        setup.chain,
        score,
        detect,
        records,
        [subspace.design(curve.by_level) for curve in curves],
        rng.stream(setup.study.seed, f"subspace.{name}"),
        uids=setup.uids,
        draws=config.subspace_draws,
        max_draws=config.subspace_max_draws,
        level=setup.level,
        chunk=chunk,
    )


def direct_result(setup: Setup, margins: np.ndarray, calibration: PairCalibration) -> DirectResult:
    """E1 of one record from its margins ``[N]``, at the level that a verdict asks of its parts."""
    return montecarlo.direct(
        int(np.sum(margins > 0)),
        len(margins),
        tpr_lower=max(calibration.true_positive_rate.lower, 1e-12),
        steps=setup.chain.steps,
        level=setup.level,
    )


def _sentence(found: Verdict, name: str) -> str:
    lower, upper = wording.rate(found.lower, "down"), wording.rate(found.upper, "up")
    sure, unit = wording.percent(found.level), wording.RATE_UNIT
    bound = wording.rate(found.bound)
    if found.status == verdict.LEAKS:
        return f"The {name} comes back: {lower} to {upper} {unit} show it, with {sure} confidence."
    if found.status == verdict.CLEAN:
        return (
            f"No leak of the {name} above {bound} {unit} (what a memoriser of all records would show): at most {upper} "
            f"{unit} show it, with {sure} confidence."
        )
    return f"Not certified for the {name}: between {lower} and {upper} {unit} show it, with {sure} confidence."


def verdict_entry(found: Verdict, name: str) -> dict[str, Any]:
    """A verdict on the record ``name`` as `schema.Verdict`."""
    return {
        "status": found.status,
        "bound": found.bound,
        "lower": found.lower,
        "estimate": found.estimate,
        "upper": found.upper,
        "level": found.level,
        "sentence": _sentence(found, name),
        "assumes": list(found.assumes),
        "samples_needed": found.samples_needed,
        "more_samples": found.more_samples,
    }


def _record(
    setup: Setup,
    number: int,
    curve: HCurve,
    direct: DirectResult,
    e2: SubspaceResult,
    cal: PairCalibration,
    bound: float,
    further: list[summary.Row],
) -> dict[str, Any]:
    level = setup.study.audit.level
    found = verdict.decide(direct, e2, cal.false_positive_rate, bound, level)
    marked = setup.roles.marked
    role = "private" if number == 0 else "control"
    kind = setup.study.fingerprint.name
    gamma = max(setup.study.audit.gamma, cal.false_positive_rate.upper)
    return {
        "role": role,
        "index": int(marked.index[number]),
        "label": int(marked.label[number]),
        "fingerprint": {"kind": kind, **setup.roles.params[number]} if kind != "none" else None,
        "t_prime": estimates.t_prime_entry(curve, gamma, level),
        "h_curve": estimates.h_curve_entry(curve, level),
        "direct": schema.direct_entry(direct.estimate, direct.hits),
        "subspace": schema.subspace_entry(e2.estimate, e2.hits, e2.pareto_k, e2.max_weight_share),
        "estimators": [schema.estimator_entry(row) for row in further],
        "verdict": verdict_entry(found, f"{role} record {int(marked.index[number])}"),
    }


def _training(setup: Setup, name: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    columns = read_csv(setup.workdir.root / "train" / name / "metrics.csv")
    kept = np.isfinite(columns["loss"])
    steps, loss = columns["step"][kept].astype(int), columns["loss"][kept]
    summary = {
        "metric": "denoising loss",
        "unit": "mean squared error of the predicted noise",
        "points": len(loss),
        "first": float(loss[0]) if len(loss) else None,
        "last": float(loss[-1]) if len(loss) else None,
        "lowest": float(np.min(loss)) if len(loss) else None,
    }
    return summary, steps, loss


def _arrays(
    setup: Setup,
    score: ScoreFn,
    space: Space,
    records: np.ndarray,
    name: str,
    samples: np.ndarray,
    steps: np.ndarray,
    loss: np.ndarray,
    listed: Listed | None,
    chunk: int,
) -> ModelArrays:
    """What the figures show; the regenerated images are the first draws of the h(t) curve itself."""
    roles, chain = setup.roles, setup.chain
    shown = samples[: min(_SHOWN, len(samples))]
    squared, nearest = neighbours.nearest(
        neighbours.rows(shown, "samples"), neighbours.rows(roles.train[name].image, "training records")
    )
    levels = np.unique(np.round(np.linspace(1, chain.steps, min(8, chain.steps))).astype(int))
    drawn, margins = tprime.regenerated_images(
        chain,
        score,
        space.detector(setup.detect),
        records[:2],
        levels,
        _SHOWN_DRAWS,
        rng.stream(setup.study.seed, f"h.{name}"),
        uids=setup.uids[:2],
        chunk=chunk,
    )
    images = space.decode(drawn.reshape(-1, *drawn.shape[3:]))
    images = images.reshape(*drawn.shape[:3], *images.shape[1:])
    return ModelArrays(
        samples=shown,
        nearest=roles.train[name].image[nearest[:, 0]],
        distances=np.sqrt(squared[:, 0]),
        regenerated={
            role: Regenerated(chain.times[levels], images[i], margins[i] > 0)
            for i, role in enumerate(("private", "control"))
        },
        private_image=roles.marked.image[0],
        private_original=roles.private.image[0],
        control_images=roles.marked.image[1:],
        steps=steps,
        loss=loss,
        listed=listed,
    )


def detector_entry(calibrations: list[PairCalibration], study: Study) -> dict[str, Any]:
    """The first private record's detector as `schema.Detector`."""
    private = calibrations[0]
    return {
        "false_positive_rate": estimates.rate_entry(private.false_positive_rate),
        "true_positive_rate": estimates.rate_entry(private.true_positive_rate),
        "thresholds": {"fingerprint": private.thresholds[0], "identity": private.thresholds[1]},
        "requested_false_positive_rate": study.detector.false_positive_rate,
        "positive_time": study.detector.positive_time,
        "reasons": [list(c.reasons) for c in calibrations],
    }


def audit_model(setup: Setup, name: str) -> None:
    """Audits one trained model and writes ``audit/NAME.json`` and ``audit/NAME.npz``."""
    study, chain = setup.study, setup.chain
    score = common.load_score(study, setup.workdir, name)
    space = spaces.load(study, setup.workdir, name)
    images, detect = space.encode(setup.roles.marked.image), space.detector(setup.detect)
    chunk = chunk_size(study, space.measured(score, setup.detect), images.shape[1:])
    curves = _curves(setup, score, detect, images, name, chunk)
    _LOG.info("audit %s: h(t) drawn at %d levels for %d records", name, len(curves[0].levels), len(curves))
    drawn = setup.workdir.read_arrays(setup.workdir.root / "samples" / f"{name}.npz")
    samples = drawn["images"]
    margins = montecarlo.margins(setup.detect, samples, len(images), chunk=setup.at_once)
    e2 = _subspaces(setup, score, detect, images, curves, name, chunk)
    _LOG.info("audit %s: subspaces integrated, %s paths", name, [r.estimate.n for r in e2])
    n_train = len(setup.roles.train[name])
    calibrations = setup.calibrations
    direct = [direct_result(setup, margins[:, r], calibrations[r]) for r in range(len(images))]
    twin = None
    if "counterfactual" in study.audit.estimators:
        twin = common.load_score(study, setup.workdir, common.TWINS[name])
    further = audit_estimators.further(study, chain, score, detect, images, setup.uids, e2, twin, name, chunk)
    records = [
        _record(setup, r, curves[r], direct[r], e2[r], calibrations[r], 1 / n_train, further[r])
        for r in range(len(images))
    ]
    summary, steps, loss = _training(setup, name)
    screened, listed = audit_screen.screen(study, setup.workdir, setup.roles, chain, score, space, samples, name, chunk)
    arrays = _arrays(setup, score, space, images, name, samples, steps, loss, listed, chunk)
    path = setup.workdir.path("audit", f"{name}.npz")
    sharding.once(lambda: save_arrays(path, arrays), path.name)
    entry = {
        "n_train": n_train,
        "epochs": study.score.training.steps * study.score.training.batch_size / n_train,
        "steps": study.score.training.steps,
        "memoriser_rate": 1 / n_train,
        "training_curve": summary,
        "sampler": {"name": study.sampler.kernel, **dataclasses.asdict(study.sampler)},
        "n_samples": len(samples),
        "expected_if_memorised": len(samples) / n_train,
        "detector": detector_entry(calibrations, study),
        "records": records,
        "baselines": audit_baselines.rows(study, setup.workdir, setup.roles, score, space, drawn, name, setup.at_once),
        "screening": screened,
    }
    setup.workdir.write_json(setup.workdir.path("audit", f"{name}.json"), entry)


def audit(study: Study, workdir: Workdir) -> None:
    """Audits every model that has no result yet."""
    missing = [n for n in common.MODELS if not workdir.path("audit", f"{n}.json").exists()]
    if not missing:
        return
    with workdir.timed("audit calibration"):
        setup = set_up(study, workdir, common.load_roles(study, workdir))
    for name in missing:
        with workdir.timed(f"audit {name}"):
            audit_model(setup, name)
