"""What all stages of the anonymity study share: the records, their roles, and the trained models."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity import fingerprints
from diffusion_privacy.anonymity.bank import PairScores, Scores, evaluate
from diffusion_privacy.anonymity.conformal import conformal_threshold
from diffusion_privacy.anonymity.detector_tasks import Perturbation
from diffusion_privacy.anonymity.fingerprints import Fingerprint, Planted
from diffusion_privacy.anonymity.reidentification import EmbeddingScores
from diffusion_privacy.audits import one_run
from diffusion_privacy.data import records as records_module
from diffusion_privacy.data.records import Records, equal_none
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import SDES
from diffusion_privacy.errors import InputError, within
from diffusion_privacy.networks.build import build
from diffusion_privacy.settings import Named, Sampler, Study
from diffusion_privacy.stages import reading
from diffusion_privacy.stages.memory import detector_at_once
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import Classify, ScoreTask
from diffusion_privacy.training import rng
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.training.programs import kept
from diffusion_privacy.types import SDE, Array, PyTree, ScoreFn

_LOG = logging.getLogger(__name__)

MODELS = ("careless", "careful")
"""The two models that are audited."""
REFERENCE = "reference"
"""The careful model's twin that never saw the private record; detectors are calibrated on what it draws."""
TWINS = {"careless": "careless_twin", "careful": REFERENCE}
"""Each model's twin: the same settings and records, but for those of the private person."""


@dataclasses.dataclass(frozen=True)
class Roles:
    """The records by role, clean and as trained on.

    Attributes:
      private, controls: the audited records without a fingerprint.
      marked: ``[1 + controls]`` the same, private first, each with its fingerprint.
      params: where each fingerprint lies, JSON-ready, in the order of ``marked``.
      held_out: records that no model saw.
      train: by model, what it is trained on (the private record with its fingerprint where it belongs).
      canaries: planted for the one-run audit; None for none.
      included: bool ``[canaries]``, the coins: which of them every model was trained on.
    """

    private: Records
    controls: Records
    marked: Records
    params: list[dict[str, Any]]
    held_out: Records
    train: dict[str, Records]
    canaries: Records | None = None
    included: np.ndarray | None = None


def trained(study: Study) -> list[str]:
    """The score models that the study trains: the audited ones, the reference, and what else the config needs."""
    others = [TWINS["careless"]] if "counterfactual" in study.audit.estimators else []
    return [*MODELS, REFERENCE, *others]


def _people(source: Records, study: Study) -> list[np.ndarray]:
    """Rows of the source by person, in the order in which the seed deals them, the private person first."""
    order = records_module.random_order(len(source), study.seed, 1)
    private = study.split.private
    if private is not None:
        at = np.flatnonzero(source.index == private)
        if at.size == 0:
            raise InputError(f"config.split.private: the source has no record {private}")
        order = np.concatenate([at, order[order != at[0]]])
    _, first = np.unique(source.identity[order], return_index=True)
    people = [np.flatnonzero(source.identity == person) for person in source.identity[order][np.sort(first)]]
    # The private record first: it need not be the first of its person.
    people[0] = np.concatenate([order[:1], people[0][people[0] != order[0]]])
    return people


def split(study: Study, source: Records) -> dict[str, np.ndarray]:
    """Row numbers of the source by role; no person is in two of careful (with all its parts but the planted canaries),
    canaries, controls and held_out.

    ``left_out`` are further records of people who are controls.

    Raises:
      InputError: the source has too few records or people.
    """
    people, wanted = _people(source, study), study.split
    # From the far end, so that the private person, who comes first, is never held out.
    held: dict[str, list[int]] = {"controls": [], "held_out": []}
    for name, count in (("controls", wanted.controls), ("held_out", wanted.held_out)):
        while len(held[name]) < count and len(people) > 1:
            held[name].extend(int(i) for i in people.pop())
    if len(people) <= wanted.canaries:
        raise InputError(f"config.split.canaries: expected fewer than {len(people)} people, got {wanted.canaries}")
    # One record a person, or coins would not be independent.
    canaries = np.array([int(people.pop()[0]) for _ in range(wanted.canaries)], int)
    planted = canaries[one_run.flip_coins(wanted.canaries, study.seed)]
    careful = [int(i) for person in people for i in person]
    if len(held["held_out"]) < wanted.held_out or len(careful) <= wanted.careless:
        raise InputError(
            f"config.split: {len(source)} records are too few for careless = {wanted.careless} of a larger set, "
            f"controls = {wanted.controls} and held_out = {wanted.held_out}"
        )
    private = careful[0]
    rows = {
        "private": [private],
        "controls": held["controls"][: wanted.controls],
        "held_out": held["held_out"],
        "left_out": held["controls"][wanted.controls :],
        "canaries": canaries,
        "planted": planted,
        "careless": [*careful[: wanted.careless], *planted],
        "careful": [*careful, *planted],
        "reference": [*careful[len(people[0]) :], *planted],
        "careless_twin": [*careful[len(people[0]) : wanted.careless], *planted],
    }
    return {name: np.array(value, int) for name, value in rows.items()}


@kept
def planting(mark: Fingerprint) -> Callable[[Array, Array], Planted]:
    """`fingerprints.plant_batch` of this mark, compiled: ``(images[B, H, W, C], keys[B])``."""
    program = jax.jit(lambda images, keys: fingerprints.plant_batch(mark, images, keys))
    return cast(Callable[[Array, Array], Planted], program)


def _mark_places(chosen: Named) -> dict[str, str]:
    where = "config.fingerprint"
    return {"fingerprint": where, "fingerprint.name": f"{where}.name", f"fingerprint.{chosen.name}": f"{where}.params"}


def make_mark(chosen: Named) -> Fingerprint:
    """The fingerprint of this name and fields; InputError, with the field of the config, on a wrong one."""
    with within(_mark_places(chosen)):
        return fingerprints.fingerprint(chosen.name, **chosen.params)


def plant(chosen: Named, images: np.ndarray, keys: Array) -> Planted:
    """``images[B, H, W, C]`` with the fingerprint of the config, each by its key ``keys[B]``.

    Raises:
      InputError: as `make_mark`; it does not fit the images.
    """
    with within(_mark_places(chosen)):
        return planting(make_mark(chosen))(jnp.asarray(images), keys)


def load_roles(study: Study, workdir: Workdir, source: Records | None = None) -> Roles:
    """Loads the source unless it is given, splits it and plants the fingerprints; writes split.json once.

    Raises:
      InputError: too few records, or others than when the workdir was made (`reading.write_split`).
    """
    source = reading.load(study.data) if source is None else source
    rows = split(study, source)
    train = {name: source.take(rows[name]) for name in trained(study)}
    _write_split(workdir, source, rows, train["careful"])
    private, controls = source.take(rows["private"]), source.take(rows["controls"])
    clean = source.take(np.concatenate([rows["private"], rows["controls"]]))
    keys = rng.per_record(rng.stream(study.seed, "fingerprint"), jnp.asarray(clean.index))
    planted = plant(study.fingerprint, clean.image, keys)
    marked = clean.with_images(np.asarray(planted.image))
    params = [
        {name: np.asarray(value)[i].tolist() for name, value in planted.params.items()} for i in range(len(clean))
    ]
    for name in MODELS:
        images = np.array(train[name].image)
        images[train[name].index == private.index[0]] = marked.image[0]
        train[name] = train[name].with_images(images)
    canaries = source.take(rows["canaries"]) if len(rows["canaries"]) else None
    included = np.isin(rows["canaries"], rows["planted"]) if canaries is not None else None
    return Roles(private, controls, marked, params, source.take(rows["held_out"]), train, canaries, included)


def _write_split(workdir: Workdir, source: Records, rows: dict[str, np.ndarray], careful: Records) -> None:
    """`reading.write_split`; the other sets are parts of those with a digest, at places that the settings decide."""
    apart = ("private", "controls", "held_out", "canaries")
    sets = {"careful": careful, **{name: source.take(rows[name]) for name in apart if len(rows[name])}}
    index = {name: source.index[value] for name, value in rows.items()}
    who = {name: source.identity[value] for name, value in rows.items()}
    reading.write_split(workdir, source, index, who, sets)


def never_seen(roles: Roles, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Held-out and control records ``[m, H, W, C]`` and their numbers ``[m]``, without those that were seen after all.

    One that equals a training record of the model ``name`` is left out (`equal_none` says why), with a line in the log.
    """
    images = np.concatenate([roles.held_out.image, roles.controls.image])
    numbers = np.concatenate([roles.held_out.index, roles.controls.index])
    kept = equal_none(images, roles.train[name].image)
    if not kept.all():
        _LOG.warning("audit %s: %d held-out records equal a training record", name, int(np.sum(~kept)))
    return images[kept], numbers[kept]


def make_sde(study: Study) -> SDE:
    """The forward process of the config; InputError on an unknown name or field."""
    return sde_of(study.score.sde)


def sde_of(chosen: Named, where: str = "config.score.sde") -> SDE:
    """The forward process of this name and fields; ``where`` names their place in messages.

    Raises:
      InputError: an unknown name or field.
    """
    if chosen.name not in SDES:
        raise InputError(f"{where}.name: expected one of {', '.join(SDES)}, got {chosen.name!r}")
    try:
        return SDES[chosen.name](**chosen.params)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}.params: {error}") from error


def make_chain(study: Study, sde: SDE) -> Chain:
    """The sampler under audit; InputError if its settings do not fit the forward process."""
    return chain_of(study.sampler, sde)


def chain_of(sampler: Sampler, sde: SDE, where: str = "config.sampler") -> Chain:
    """The reverse chain of these settings; ``where`` names their place in messages.

    Raises:
      InputError: they do not fit the forward process.
    """
    try:
        chain = Chain(sde, sampler.steps, sampler.kernel, sampler.spacing, sampler.clip_x0)
        _ = chain.times, chain.alpha
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return chain


_SCORE_PLACES = {"network": "config.score.network.params", "network.name": "config.score.network.name"}


def score_task(study: Study) -> ScoreTask:
    """The task of every score model of the study."""
    chosen = study.score.network
    with within(_SCORE_PLACES):
        network = build(chosen.name, **chosen.params)
    return ScoreTask(
        network, make_sde(study), study.score.training.batch_size, study.score.prediction, study.score.weighting
    )


def check(study: Study) -> None:
    """Builds what the config chooses by name: a wrong name or field is found before hours of training, not after.

    Raises:
      InputError: as forward process, sampler, network, classifiers, fingerprint and perturbation do.
    """
    make_chain(study, make_sde(study))
    with within(_SCORE_PLACES):
        score_task(study).check()
    classifiers(study)
    make_mark(study.fingerprint)
    perturbation(study)


def perturbation(study: Study) -> Perturbation:
    """How the classifiers' training images are perturbed; InputError on an unknown field."""
    known = {f.name for f in dataclasses.fields(Perturbation)}
    for name in study.detector.perturbation:
        if name not in known:
            raise InputError(f"config.detector.perturbation.{name}: unknown field; expected one of {sorted(known)}")
    return Perturbation(**study.detector.perturbation)


def load_score(study: Study, workdir: Workdir, name: str) -> ScoreFn:
    """The averaged score of a trained model, as a pytree."""
    params, _ = restore_ema(workdir.root / "train" / name)
    return score_task(study).score(params)


def classifiers(study: Study) -> dict[str, Classify]:
    """C_f with one output, and C_id with one a record and one for everybody else, or as an embedding."""
    fields = study.detector.network
    with within({"network": "config.detector.network"}):
        if study.detector.identity == "embedding":
            identity = Classify(build("embedder", **fields))
        else:
            identity = Classify(build("classifier", num_outputs=study.split.controls + 2, **fields))
        return {"fingerprint": Classify(build("classifier", num_outputs=1, **fields)), "identity": identity}


def pair_scores(study: Study, workdir: Workdir, roles: Roles) -> tuple[Scores, PyTree, np.ndarray]:
    """The pair's scores of all audited records, their parameters, and the lowest identity threshold of each, ``[R]``.

    A classifier's floor is its 50 % line, 0. An embedding's is the cosine that 99 % of other people's records stay
    below: set on records and not on generated negatives, so that the conformal rate is not touched.

    Raises:
      InputError: an embedding, and too few other people's records for its floors.
    """
    nets, params = classifiers(study), load_classifiers(workdir)
    if study.detector.identity == "classifier":
        return PairScores(nets["fingerprint"], nets["identity"]), params, np.zeros(len(roles.marked))
    scores = EmbeddingScores(nets["fingerprint"], nets["identity"])
    clean = np.concatenate([roles.private.image, roles.controls.image])
    vectors = jax.jit(nets["identity"])(params["identity"], jnp.asarray(clean))
    params = {**params, "vectors": vectors}
    people = np.concatenate([roles.private.identity, roles.controls.identity])
    others = roles.train["careful"]
    at_once = detector_at_once(study, scores, params, others.image.shape[1:])
    _, cosines = evaluate(scores, params, others.image, chunk=at_once)
    floors = [conformal_threshold(cosines[others.identity != people[r], r], 0.01) for r in range(len(people))]
    return scores, params, np.array(floors)


def load_classifiers(workdir: Workdir) -> PyTree:
    """Averaged parameters ``{"fingerprint": …, "identity": …}`` on device."""
    names = ("fingerprint", "identity")
    return {n: jax.tree.map(jnp.asarray, restore_ema(workdir.root / "train" / n)[0]) for n in names}
