"""Stage `evaluate` of a joined study: what somebody can do with each shared thing, and with nothing else.

Classifiers are trained on the shared images (several seeds each, all in one program) and tested on real records that
nobody learned from; the set of shared images is compared with the test records. Beside the four ways stand yardsticks:
the private records themselves, the public ones, and draws of the flow, which hold nothing of the private records.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from diffusion_privacy import settings as settings_module
from diffusion_privacy.audits import fidelity
from diffusion_privacy.data.records import Records
from diffusion_privacy.networks.dense_classifier import DenseClassifier
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.stages import cadp_arms, cadp_study
from diffusion_privacy.stages import joined_study as common
from diffusion_privacy.stages.cadp_arms import Arm, ArmBatches
from diffusion_privacy.stages.cadp_evaluate import interval
from diffusion_privacy.stages.joined_audit import as_published
from diffusion_privacy.stages.joined_study import Sets
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import ArmsTask
from diffusion_privacy.training import rng
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.training.loop import train as run_loop
from diffusion_privacy.types import PyTree

_RESAMPLES = 200

YARDSTICKS = {
    "originals": "the private records as they are, marks included: what sharing everything would be worth",
    "public": "the public records alone: what can be had without the private ones",
    "flow": "images that the flow draws for the private records' classes: nothing of a private record is in them",
}


def _shared(settings: Joined, workdir: Workdir, sets: Sets, name: str) -> Records:
    """The first images of a model with the classes that they were drawn for, as anybody would write them to files."""
    arrays = workdir.read_arrays(workdir.root / "samples" / f"{name}.npz")
    count, private = settings.risk.evaluation_samples, sets.parts.private
    images, labels = as_published(arrays["images"][:count]), arrays["labels"][:count].astype(np.int32)
    number = np.arange(count, dtype=np.int32)
    return Records(images, labels, number, number, private.num_classes, name, private.levels)


def arms(settings: Joined, workdir: Workdir, sets: Sets) -> list[Arm]:
    """The public records first, in whose classifier's features sets are compared; then the ways, then yardsticks."""
    private, public = sets.parts.private, sets.parts.public
    flow = cadp_study.load_flow(settings.cadp, workdir, private)
    drawn = tuple(
        private.with_images(as_published(flow.sample(private.label, rng.stream(settings.seed, "control", seed))))
        for seed in range(settings.evaluation.seeds)
    )
    shared = [Arm(name, "shared", None, (_shared(settings, workdir, sets, name),)) for name in common.MODELS]
    copy = common.load_copy(settings, workdir, private).records
    return [
        Arm("public", "public", None, (public,)),
        *shared,
        Arm(common.COPY, "released", settings.epsilon, (copy,)),
        Arm("originals", "original", None, (private,)),
        Arm("flow", "control", None, drawn),
    ]


def _fit(settings: Joined, workdir: Workdir, chosen: list[Arm], classes: int) -> tuple[ArmsTask, PyTree]:
    options = settings.evaluation
    task = ArmsTask(DenseClassifier(classes, options.hidden), len(chosen), options.seeds)
    batches = ArmBatches(chosen, options.training.batch_size, settings.seed, options.seeds)
    folder = workdir.path("train", "classifiers")
    identity = {"config": settings_module.digest(settings_module.to_dict(options))}
    run_loop(task, batches, options.training, workdir=folder, seed=settings.seed, name="classifiers", identity=identity)
    return task, restore_ema(folder)[0]


def _frechet(real: np.ndarray, shared: np.ndarray, level: float, seed: int) -> dict[str, float]:
    """Distance with a normal interval, whose standard error comes from resampling both sides.

    A resample repeats rows, which moves the distance upwards by a bias of its own; its spread is what is used.
    """
    generator = np.random.default_rng(seed)
    value = fidelity.frechet_distance(real, shared)
    again = [
        fidelity.frechet_distance(*(x[generator.integers(0, len(x), len(x))] for x in (real, shared)))
        for _ in range(_RESAMPLES)
    ]
    half = float(special.ndtri(0.5 * (1 + level)) * np.std(again, ddof=1))
    return {"value": value, "lower": max(0.0, value - half), "upper": value + half, "level": level}


def _utility(settings: Joined, arm: Arm, scores: np.ndarray, real: np.ndarray, shared: np.ndarray) -> dict[str, Any]:
    """`joined_schema.Utility`; ``real`` and ``shared`` are features of as many records of both sides."""
    level = settings.evaluation.level
    inside = fidelity.precision_recall(real, shared, level=level)
    found: dict[str, Any] = {
        "n_train": len(arm.records),
        "accuracy": interval(scores, level),
        "frechet": _frechet(real, shared, level, settings.seed),
    }
    for name in ("precision", "recall"):
        rate = getattr(inside, name)
        found[name] = {field: getattr(rate, field) for field in ("value", "lower", "upper", "level")}
    return found


def evaluate(settings: Joined, workdir: Workdir) -> None:
    """Writes ``evaluation.json``: `joined_schema.Utility` by way and by yardstick."""
    path = workdir.root / "evaluation.json"
    if path.exists():
        return
    sets = common.load_sets(settings, workdir)
    test = sets.parts.test
    common.note(common.make_ledger(settings, workdir), common.AUDIT_STAGE, None, sets.parts.private)
    with workdir.timed("evaluate"):
        chosen = arms(settings, workdir, sets)
        task, params = _fit(settings, workdir, chosen, test.num_classes)
        scores = cadp_arms.accuracies(task, params, [test] * len(chosen))
        # A Fréchet distance depends on how many rows both sides have: the same for all.
        count = min(len(arm.records) for arm in chosen)
        pick = np.sort(np.random.default_rng(settings.seed).permutation(len(test))[:count])
        real = cadp_arms.features(task, params, test.image[pick])
        entries = {}
        for i, arm in enumerate(chosen):
            order = np.random.default_rng([settings.seed, i]).permutation(len(arm.records))[:count]
            shared = cadp_arms.features(task, params, arm.records.image[np.sort(order)])
            entries[arm.name] = _utility(settings, arm, scores[i], real, shared)
    workdir.write_json(path, {"level": settings.evaluation.level, "compared": count, "sets": entries})
