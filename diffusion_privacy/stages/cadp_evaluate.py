"""Stage `evaluate`: what a release is good for: classifiers trained on it, on originals and on controls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffusion_privacy import settings as settings_module
from diffusion_privacy.audits import fidelity
from diffusion_privacy.data.records import Records
from diffusion_privacy.settings_cadp import Cadp
from diffusion_privacy.stages import cadp_arms, cadp_private_arm, cadp_study
from diffusion_privacy.stages.cadp_arms import Arm
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import ArmsTask
from diffusion_privacy.training import rng
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.training.loop import train as run_loop
from diffusion_privacy.types import PyTree

_SHOWN = 10


def interval(values: np.ndarray, level: float) -> dict[str, Any]:
    """Mean over seeds with a Student t interval, cut to [0, 1]; it covers training, not the choice of test records."""
    from scipy import stats

    n = len(values)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    mean = float(np.mean(values))
    return {
        "value": mean,
        "lower": max(0.0, mean - half),
        "upper": min(1.0, mean + half),
        "level": level,
        "seeds": [float(v) for v in values],
    }


def make_arms(settings: Cadp, workdir: Workdir, parts: cadp_study.Parts, flow: cadp_study.TrainedFlow) -> list[Arm]:
    """Every training set: originals, public records, releases with their private test sets, control, DP-Pix."""
    private, test = parts.private, parts.test
    target = settings.evaluation.target
    releases = [cadp_study.load_release(workdir, e, private, target) for e in settings.release.epsilons]
    key, by = rng.stream(settings.seed, "private_test"), flow.model.condition
    unknown = cadp_arms.with_guessed_condition(test, parts.public, by, rng.stream(settings.seed, "private_test_class"))
    tests = cadp_study.study_images(settings, flow, unknown, settings.release.epsilons, key)
    arms = [Arm("original", "original", None, (private,)), Arm("public", "public", None, (parts.public,))]
    for release, images in zip(releases, tests, strict=True):
        arms.append(
            Arm(
                f"released {release.epsilon:g}", "released", release.spent, (release.records,), test.with_images(images)
            )
        )
    draws = range(settings.evaluation.seeds)
    arms.append(Arm("control", "control", None, tuple(_control(settings, flow, releases[0].records, d) for d in draws)))
    if settings.evaluation.pixel_block:
        for e in settings.release.epsilons:
            sets = tuple(cadp_arms.pixelised(settings, private, e, d) for d in draws)
            arms.append(Arm(f"pixels {e:g}", "pixels", e, sets))
    return arms


def _control(settings: Cadp, flow: cadp_study.TrainedFlow, released: Records, draw: int) -> Records:
    """Images that the flow draws for the published classes: nothing of a private record is in them."""
    images = flow.sample(flow.given(released), rng.stream(settings.seed, "control", draw))
    return released.with_images(images)


def _fit(settings: Cadp, workdir: Workdir, arms: list[Arm], classes: int) -> tuple[ArmsTask, PyTree]:
    task, options = cadp_arms.make_task(settings, len(arms), classes), settings.evaluation
    batches = cadp_arms.ArmBatches(arms, options.training.batch_size, settings.seed, options.seeds)
    folder = workdir.path("train", "classifiers")
    identity = {"config": settings_module.digest(settings_module.to_dict(options))}
    run_loop(task, batches, options.training, workdir=folder, seed=settings.seed, name="classifiers", identity=identity)
    return task, restore_ema(folder)[0]


def _likeness(task: ArmsTask, params: PyTree, originals: Records, other: Records) -> dict[str, Any]:
    """Likeness of each image to the original in its place, and of the set to the originals.

    None of it is published with a release. Features are those of a classifier trained on the originals.
    """
    window = min(7, *(s - 1 + s % 2 for s in originals.image.shape[1:3]))
    ssim = fidelity.ssim(originals.image, other.image, window=window)
    real, made = (cadp_arms.features(task, params, records.image) for records in (originals, other))
    inside = fidelity.precision_recall(real, made)
    return {
        **mean_psnr(originals.image, other.image),
        "ssim": float(np.mean(ssim)),
        "frechet": fidelity.frechet_distance(real, made),
        "precision": inside.precision.value,
        "recall": inside.recall.value,
    }


def mean_psnr(originals: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """``psnr_db`` and ``equal`` of `cadp_schema.Likeness`, of images in the same place.

    An image equal to its original has an infinite ratio and would be all of the mean. The most alike must not vanish
    from a measure of likeness either: they are counted.
    """
    psnr = fidelity.psnr(originals, other)
    differ = np.isfinite(psnr)
    return {"psnr_db": float(np.mean(psnr[differ])) if differ.any() else None, "equal": int(np.sum(~differ))}


def _entries(settings: Cadp, parts: cadp_study.Parts, arms: list[Arm], task: ArmsTask, params: PyTree) -> list[Any]:
    level, entries = settings.evaluation.level, []
    scores = cadp_arms.accuracies(task, params, [parts.test] * len(arms))
    private_scores = cadp_arms.accuracies(task, params, [arm.private_test or parts.test for arm in arms])
    for i, arm in enumerate(arms):
        compared = arm.kind in ("released", "control", "pixels")
        entries.append(
            {
                "name": arm.name,
                "kind": arm.kind,
                "epsilon": arm.epsilon,
                "n_train": len(arm.records),
                "accuracy": interval(scores[i], level),
                "accuracy_private_test": None if arm.private_test is None else interval(private_scores[i], level),
                "likeness": _likeness(task, params, parts.private, arm.records) if compared else None,
            }
        )
    return entries


def _dp_accuracies(
    settings: Cadp, workdir: Workdir, private: Records, test: Records, epsilons: tuple[float, ...]
) -> np.ndarray:
    options = settings.evaluation
    if options.dp_arm == "loop" and options.dp_training is not None:
        return cadp_private_arm.accuracies(settings, workdir, private, test, epsilons, options.dp_training)
    return cadp_arms.dp_gradient_accuracies(settings, private, test, epsilons)


def _dp_entries(settings: Cadp, workdir: Workdir, parts: cadp_study.Parts) -> list[dict[str, Any]]:
    options = settings.evaluation
    if not options.dp_steps:
        return []
    latent, target = settings.release.epsilons, options.target
    # All that the release beside it spends.
    spends = tuple(cadp_study.load_release(workdir, e, parts.private, target).spent for e in latent)
    found = _dp_accuracies(settings, workdir, parts.private, parts.test, spends)
    return [
        {
            "name": f"dp-sgd {e:g}",
            "kind": "dp-sgd",
            "epsilon": spend,
            "n_train": len(parts.private),
            "accuracy": interval(row, options.level),
            "accuracy_private_test": None,
            "likeness": None,
        }
        for e, spend, row in zip(latent, spends, found, strict=True)
    ]


def evaluate(settings: Cadp, workdir: Workdir) -> None:
    """Trains and scores the classifiers of every arm; writes evaluation.json and the images that the report shows."""
    path = workdir.root / "evaluation.json"
    if path.exists():
        return
    parts = cadp_study.load_parts(settings, workdir)
    flow = cadp_study.load_flow(settings, workdir, parts.private)
    with workdir.timed("evaluate arms"):
        arms = make_arms(settings, workdir, parts, flow)
        task, params = _fit(settings, workdir, arms, parts.private.num_classes)
        entries = _entries(settings, parts, arms, task, params)
    with workdir.timed("evaluate DP-SGD"):
        entries += _dp_entries(settings, workdir, parts)
    by_name = {arm.name: arm.records.image[:_SHOWN] for arm in arms if arm.kind in ("original", "released", "control")}
    workdir.write_arrays(workdir.path("evaluation_images.npz"), {k.replace(" ", "_"): v for k, v in by_name.items()})
    workdir.write_json(path, {"n_test": len(parts.test), "level": settings.evaluation.level, "arms": entries})
