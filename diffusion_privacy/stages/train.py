"""Stage `train`: the two score models, their reference, and the detector's two classifiers, all by the one loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_privacy import settings
from diffusion_privacy.anonymity import montecarlo, reidentification
from diffusion_privacy.anonymity.bank import IdentityBankTask
from diffusion_privacy.anonymity.detector_tasks import FingerprintTask
from diffusion_privacy.anonymity.reidentification import EmbeddingTask
from diffusion_privacy.data.latents import LatentRecords
from diffusion_privacy.data.pipeline import Batches
from diffusion_privacy.data.records import Records
from diffusion_privacy.errors import within
from diffusion_privacy.settings import Study
from diffusion_privacy.stages import audit_estimators, spaces, watching
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.spaces import Space
from diffusion_privacy.stages.watching import Draw, Watch
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng
from diffusion_privacy.training.state import TrainConfig
from diffusion_privacy.types import PyTree, Task


def _fit(
    task: Task,
    records: Records | LatentRecords,
    config: TrainConfig,
    study: Study,
    workdir: Workdir,
    name: str,
    watch: Watch,
) -> None:
    # The seed does not enter the order of another model's records: each has its own stream.
    batches = Batches(records, config.batch_size, study.seed)
    identity = {"config": settings.digest({"score": settings.to_dict(study)["score"], "name": name})}
    folder = workdir.path("train", name)
    watching.train(task, batches, config, watch, workdir=folder, seed=study.seed, name=name, identity=identity)


def train(study: Study, workdir: Workdir) -> None:
    """Trains every model of the study; one that is finished costs nothing, an interrupted one goes on."""
    common.check(study)
    roles = common.load_roles(study, workdir)
    done = workdir.root / "train" / "done.json"
    if done.exists():
        return
    names = common.trained(study)
    fit_scores(study, workdir, roles, names)
    fit_detector(study, workdir, roles)
    workdir.write_json(done, {"models": [*names, "fingerprint", "identity"]})


def fit_scores(study: Study, workdir: Workdir, roles: common.Roles, names: Sequence[str]) -> None:
    """Trains the score models ``names``, each on ``roles.train[name]``, and before it its autoencoder if it has one."""
    task = common.score_task(study)
    chain = common.make_chain(study, task.sde)
    # Before an autoencoder is trained for nothing.
    shape = spaces.planned_shape(study, roles.private.image.shape[1:])
    audit_estimators.check(study, chain, shape)
    # One key: a picture shows what became of the same noise.
    key = rng.stream(study.seed, "grid")
    for name in names:
        space = spaces.fit(study, workdir, name, roles.train[name])

        def draw(params: PyTree, count: int, space: Space = space) -> np.ndarray:
            drawn = montecarlo.sample(chain, task.score(params), shape, count, key, chunk=min(count, 64))
            return space.decode(drawn)

        watch = Watch(study.outputs, study.profile, *_pictured(study, space, roles.held_out, draw))
        with workdir.timed(f"train {name}"), within({"training": "config.score.training"}):
            _fit(task, space.records(roles.train[name]), study.score.training, study, workdir, name, watch)


def _pictured(study: Study, space: Space, held_out: Records, draw: Draw) -> tuple[Any, Draw | None]:
    """What a picture during training needs; nothing is encoded where there are no pictures."""
    if not study.outputs.grid_every:
        return None, None
    return space.records(held_out.take(np.arange(min(len(held_out), watching.HELD_OUT)))), draw


def fit_detector(study: Study, workdir: Workdir, roles: common.Roles) -> None:
    """Trains C_f and C_id on the clean records of the largest set."""
    mark = common.make_mark(study.fingerprint)
    nets, change = common.classifiers(study), common.perturbation(study)
    clean, watch = _clean(roles), Watch(study.outputs, study.profile)
    with workdir.timed("train fingerprint detector"):
        c_f = FingerprintTask(nets["fingerprint"].init, nets["fingerprint"], mark, change)
        _fit(c_f, clean, study.detector.training, study, workdir, "fingerprint", watch)
    with workdir.timed("train identity detector"):
        c_id = _identity_task(study, roles, clean)
        _fit(c_id, clean, study.detector.training, study, workdir, "identity", watch)


def _identity_task(study: Study, roles: common.Roles, clean: Records) -> Task:
    mark = common.make_mark(study.fingerprint)
    network, change = common.classifiers(study)["identity"], common.perturbation(study)
    most = study.detector.most_fingerprints
    if study.detector.identity == "embedding":
        # The records come in the order in which the seed dealt them: the first are as good as any.
        pool = clean.take(np.arange(min(len(clean), reidentification.pool_size(clean.image.shape[1:]))))
        return EmbeddingTask(network.init, network, mark, pool.image, pool.identity, change, most)
    audited = np.concatenate([roles.private.image, roles.controls.image])
    people = np.concatenate([roles.private.identity, roles.controls.identity])
    return IdentityBankTask(network.init, network, mark, audited, people, change, most)


def _clean(roles: common.Roles) -> Records:
    """All training records without any fingerprint: what the careful model is trained on, before planting."""
    images = np.array(roles.train["careful"].image)
    images[roles.train["careful"].index == roles.private.index[0]] = roles.private.image[0]
    return roles.train["careful"].with_images(images)
