"""Stages `privatize`, `train` and `sample` of a joined study: everything that could be shared.

The ledger is written before a record is touched: the release and the private training are paid for first, the training
of the copy's model is entered as what it is, post-processing, and then come the stages without an event, which make the
total of the run "no guarantee". What a single way to share rests on is read from the same entries (`joined_guarantee`).
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy import settings as settings_module
from diffusion_privacy.anonymity import lanes, montecarlo
from diffusion_privacy.data.pipeline import Batches
from diffusion_privacy.data.records import Records
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import within
from diffusion_privacy.mechanisms.accounting import Spend
from diffusion_privacy.mechanisms.ledger import Entry
from diffusion_privacy.reports.joined_wording import MARKED_FIRST
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.stages import cadp_privatize, cadp_study, cadp_train, dp_training, watching
from diffusion_privacy.stages import joined_study as common
from diffusion_privacy.stages import sample as sample_stage
from diffusion_privacy.stages import study as score_study
from diffusion_privacy.stages import train as train_stage
from diffusion_privacy.stages.watching import Watch
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import privacy, rng
from diffusion_privacy.training.loop import Pay
from diffusion_privacy.training.state import TrainConfig
from diffusion_privacy.types import Array, ConditionalScore, PyTree


def privatize(settings: Joined, workdir: Workdir) -> None:
    """Trains the flow and releases the private copy, paid for in the ledger; what is there already stays."""
    if cadp_study.release_path(workdir, settings.epsilon).exists():
        return
    score_study.check(settings.study)
    sets = common.load_sets(settings, workdir)
    private = sets.parts.private
    cadp_study.make_model(settings.cadp, private)
    ledger, planned = common.make_ledger(settings, workdir), _planned(settings, workdir, private)
    # All that will be spent is looked at before anything is: the flow takes long, and a release cannot be taken back.
    hashes = cadp_study.hashes(private)
    cadp_privatize.check_budget(settings.cadp, ledger, settings.release.epsilons, private, hashes, planned)
    cadp_train.fit_flow(settings.cadp, workdir, sets.parts)
    cadp_privatize.release_all(settings.cadp, workdir, sets.parts, (MARKED_FIRST,))


def _planned(settings: Joined, workdir: Workdir, private: Records) -> list[Entry]:
    """The private training that comes after the release, unless this run's own is paid for already.

    Not by the name of an entry: studies that share a ledger all train a ``dp_model``.

    Raises:
      InputError: its settings do not go with the number of records.
    """
    config = settings.private_training
    with within({"training": "config.private_training"}):
        plan = privacy.make_plan(config.privacy, records=len(private), batch_size=config.batch_size, steps=config.steps)
    spend = dp_training.spend_of_plan(plan)
    hashes, kind = cadp_study.hashes(private), cadp_study.hash_kind(private)
    entry = Entry("train dp_model", spend, hashes, dp_training.RELATION, kind=kind)
    paid = dp_training.goes_on(common.make_ledger(settings, workdir), common.dp_folder(workdir))
    return [] if paid else [entry]


def fit_score(
    settings: Joined,
    workdir: Workdir,
    name: str,
    records: Records,
    config: TrainConfig,
    seed: int,
    folder: Path,
    held_out: Records | None = None,
    pay: Pay | None = None,
) -> None:
    """Trains one conditional score model in ``folder``; with ``held_out`` its pictures are drawn, if any are wanted.

    Without ``pay`` a private run is in no ledger: of such a one nothing may be given away.
    """
    task = common.score_task(settings, records.num_classes)
    identity = {"config": settings_module.digest({"score": settings_module.to_dict(settings)["score"], "name": name})}
    chain, shape, key = make_chain(settings), records.image.shape[1:], rng.stream(settings.seed, "grid")

    def picture(params: PyTree, count: int) -> np.ndarray:
        labels = np.arange(count) % records.num_classes
        return montecarlo.sample_labelled(
            chain, task.conditional_score(params), shape, labels, key, chunk=min(count, 64)
        )

    watching.train(
        task,
        Batches(records, config.batch_size, seed),
        config,
        Watch(settings.outputs, settings.profile, held_out, picture),
        workdir=folder,
        seed=seed,
        name=name,
        identity=identity,
        pay=pay,
    )


def train(settings: Joined, workdir: Workdir) -> None:
    """Trains every model of the study; one that is finished costs nothing, an interrupted one goes on.

    Raises:
      InputError: the ledger has no room for the private training, or knows of a study with another split; there is no
        private copy yet.
    """
    done = workdir.path("train", "done.json")
    if done.exists():
        return
    sets = common.load_sets(settings, workdir)
    private, test, seed = sets.parts.private, sets.parts.test, settings.seed
    released = common.load_copy(settings, workdir, private).records
    ledger, hashes, kind = (
        common.make_ledger(settings, workdir),
        cadp_study.hashes(private),
        cadp_study.hash_kind(private),
    )
    cadp_study.give_up(ledger, sets.parts)
    config, pay = settings.private_training, dp_training.payment(ledger, "train dp_model", hashes, kind)
    with workdir.timed("train dp_model"):
        fit_score(settings, workdir, "dp_model", private, config, seed, common.dp_folder(workdir), test, pay)
    common.note(ledger, common.COPY_STAGE, _nothing(), private)
    with workdir.timed("train copy_model"):
        fit_score(
            settings,
            workdir,
            "copy_model",
            released,
            settings.score.training,
            seed,
            workdir.path("train", "copy_model"),
            test,
        )
    common.note(ledger, common.RAW_STAGE, None, private)
    with workdir.timed("train raw_model"):
        fit_score(
            settings,
            workdir,
            "raw_model",
            private,
            settings.score.training,
            seed,
            workdir.path("train", "raw_model"),
            test,
        )
    common.note(ledger, common.DETECTOR_STAGE, None, private)
    train_stage.fit_scores(settings.study, workdir, sets.roles, [score_study.REFERENCE])
    train_stage.fit_detector(settings.study, workdir, sets.roles)
    workdir.write_json(done, {"models": [*common.MODELS, score_study.REFERENCE, "fingerprint", "identity"]})


def _nothing() -> Spend:
    """Post-processing costs nothing."""
    import dp_accounting

    return Spend(dp_accounting.NoOpDpEvent(), "replace-one")


def make_chain(settings: Joined) -> Chain:
    """The sampler of every shared model."""
    return score_study.make_chain(settings.study, score_study.make_sde(settings.study))


def chunk_size(settings: Joined, score: ConditionalScore, shape: tuple[int, ...]) -> int:
    """Lanes a device handles at a time: as configured, or as many as the memory budget allows."""
    if settings.risk.chunk:
        return settings.risk.chunk
    of_first_class = jax.tree_util.Partial(_of_first_class, score)
    return lanes.chunk_for_budget(of_first_class, shape, settings.risk.memory_gb * 2**30, ceiling=256)


def _of_first_class(score: ConditionalScore, x: Array, t: Array) -> Array:
    return score(jnp.zeros(x.shape[0], jnp.int32), x, t)


def draw(
    settings: Joined, score: ConditionalScore, private: Records, count: int, name: str, number: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(images ``[N, H, W, C]``, classes ``[N]``) of a model: a class by its share, then an image of it."""
    shape, chain = private.image.shape[1:], make_chain(settings)
    labels = common.draw_labels(settings, private, count, name, number)
    key = rng.stream(settings.seed, f"sample.{name}", number)
    chunk = chunk_size(settings, score, shape)
    return montecarlo.sample_labelled(chain, score, shape, labels, key, chunk=chunk), labels


def sample(settings: Joined, workdir: Workdir) -> None:
    """Draws the labelled images that E1 counts and classifiers learn from, and the reference's unlabelled ones."""
    names = (*common.MODELS, score_study.REFERENCE)
    if all((workdir.root / "samples" / f"{name}.npz").exists() for name in names):
        return
    sets = common.load_sets(settings, workdir)
    private = sets.parts.private
    for name in common.MODELS:
        path = workdir.path("samples", f"{name}.npz")
        if path.exists():
            continue
        score = common.load_score(settings, workdir, name, private.num_classes)
        with workdir.timed(f"sample {name}"):
            images, labels = draw(settings, score, private, settings.risk.samples, name)
        workdir.write_arrays(path, {"images": images, "labels": labels})
    sample_stage.draw_all(settings.study, workdir, sets.roles, {score_study.REFERENCE: settings.detector.negatives})
