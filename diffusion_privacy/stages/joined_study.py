"""What all stages of a joined study share: the sets of records, the ledger's entries, the trained models.

privatize   trains the flow, releases the private copy
train       the score models of three ways to share, the reference and the detector
sample      labelled images of each model
evaluate    what each way is good for
audit       what each way gives away, and what its guarantee is worth
report      release.json, the page, bundles to share
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.data.records import Records, split_records
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend
from diffusion_privacy.mechanisms.ledger import Entry, Ledger
from diffusion_privacy.settings import Named
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.stages import cadp_study, private_order, reading
from diffusion_privacy.stages import study as score_study
from diffusion_privacy.stages.cadp_study import Parts
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import ScoreTask
from diffusion_privacy.training import rng
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.types import ConditionalScore

MODELS = ("raw_model", "dp_model", "copy_model")
"""The ways to share that are score models, by their name in the report and in the workdir."""
COPY = "copy"
"""The way to share that is a data set."""

RAW_STAGE = "train raw_model on the records as they are"
COPY_STAGE = "train copy_model on the private copy (post-processing)"
DETECTOR_STAGE = "train detectors and choose thresholds (not given away)"
AUDIT_STAGE = "audit, evaluation, report (not given away)"


@dataclasses.dataclass(frozen=True)
class Sets:
    """Who is where. No person is in two of private, public, test and controls.

    Attributes:
      parts: the private records with their fingerprints, the public ones, the test records without the controls.
      roles: the same as the stages of the fingerprint audit take them: the first private records are the audited ones.
      audited: positions of the audited private records in ``parts.private``: 0 … R − 1.
    """

    parts: Parts[Records]
    roles: score_study.Roles

    @property
    def audited(self) -> int:
        """R, the number of private records with a fingerprint."""
        return len(self.roles.private)


def load_sets(settings: Joined, workdir: Workdir) -> Sets:
    """Loads the source, divides it, plants the fingerprints; writes split.json, and draws the order of the private
    records that are not marked, both once.

    Raises:
      InputError: too few people for the marked records or the controls; as `reading.write_split` (other records than
        when the workdir was made) and `private_order.places`.
    """
    source = reading.load(settings.data)
    shares = settings.split
    public, private, rest = split_records(source, (shares.public, shares.private, shares.test), settings.seed)
    private = _first_people(private, settings.marks.private, settings.seed, "marks.private")
    rest = _first_people(rest, settings.marks.controls, settings.seed, "marks.controls")
    count, held = settings.marks.private, rest.take(np.arange(settings.marks.controls))
    test = rest.take(np.flatnonzero(~np.isin(rest.identity, held.identity)))
    listed, order = private, private_order.places(workdir, private.index)
    # The audited records come first, chosen by the seed, which the manifest calls public. Other places tell nothing.
    private = private.take(np.concatenate([np.arange(count), order[order >= count]]))
    clean = _joined(private.take(np.arange(count)), held)
    keys = rng.per_record(rng.stream(settings.seed, "fingerprint"), jnp.asarray(clean.index))
    planted = score_study.plant(settings.fingerprint, clean.image, keys)
    marked = clean.with_images(np.asarray(planted.image))
    params = [{k: np.asarray(v)[i].tolist() for k, v in planted.params.items()} for i in range(len(clean))]
    images = np.array(private.image)
    images[:count] = marked.image[:count]
    parts = Parts(public, private.with_images(images), test)
    for number in range(count):
        without(parts, number)  # refused before anything is paid for
    train = {score_study.REFERENCE: public, "careful": public}
    roles = score_study.Roles(clean.take(np.arange(count)), held, marked, params, test, train)
    rows = {"public": public, "private": listed, "marked": roles.private, "controls": held, "test": test}
    index = {name: one.index for name, one in rows.items()}
    reading.write_split(workdir, source, index, {name: one.identity for name, one in rows.items()}, rows)
    return Sets(parts, roles)


def without(parts: Parts[Records], number: int) -> Records:
    """The private records with marked record ``number`` replaced by the first test record of its class, unmarked.

    Raises:
      InputError: no test record has that class.
    """
    private, test = parts.private, parts.test
    same = np.flatnonzero(test.label == private.label[number])
    if not same.size:
        raise InputError(
            f"config.split.test: expected a test record of class {int(private.label[number])}, to replace the marked "
            f"record {int(private.index[number])} in the certificate"
        )
    images = np.array(private.image)
    images[number] = test.image[same[0]]
    return private.with_images(images)


def _joined(one: Records, two: Records) -> Records:
    """Both, one after the other."""
    fields = {f: np.concatenate([getattr(one, f), getattr(two, f)]) for f in ("image", "label", "identity", "index")}
    return dataclasses.replace(one, source_hash=None, hash_kind="", **fields)  # type: ignore[arg-type]


def _first_people(records: Records, count: int, seed: int, field: str) -> Records:
    """The same records, ``count`` of different people, dealt by the seed, first."""
    order = np.random.default_rng([seed, 20]).permutation(len(records))
    _, first = np.unique(records.identity[order], return_index=True)
    chosen = order[np.sort(first)][:count]
    if len(chosen) < count or len(chosen) == len(records):
        raise InputError(f"config.{field}: expected fewer than the {len(first)} people of that share, got {count}")
    return records.take(np.concatenate([chosen, np.setdiff1d(np.arange(len(records)), chosen)]))


# --- models -----------------------------------------------------------------------------------------------------------


def score_task(settings: Joined, classes: int) -> ScoreTask:
    """The task of every shared score model: conditional on the class."""
    network = settings.score.network
    named = Named(network.name, {**network.params, "num_classes": classes})
    score = dataclasses.replace(settings.score, network=named)
    task = score_study.score_task(dataclasses.replace(settings.study, score=score))
    return dataclasses.replace(task, conditional=True)


def load_score(settings: Joined, workdir: Workdir, name: str, classes: int) -> ConditionalScore:
    """The averaged conditional score of a trained model, as a pytree."""
    params, _ = restore_ema(workdir.root / "train" / name)
    return score_task(settings, classes).conditional_score(params)


def class_shares(records: Records) -> np.ndarray:
    """Share of each class among the records, float64 ``[K]``: public, and the first step of every model's sampler."""
    return np.bincount(records.label, minlength=records.num_classes) / len(records)


def draw_labels(settings: Joined, private: Records, count: int, name: str, number: int = 0) -> np.ndarray:
    """``count`` classes, int32, drawn independently from `class_shares`; a function of the seed, name and number."""
    key = rng.stream(settings.seed, f"labels.{name}", number)
    log_shares = jnp.log(jnp.asarray(class_shares(private)))
    return np.asarray(jax.random.categorical(key, log_shares, shape=(count,)), np.int32)


def load_copy(settings: Joined, workdir: Workdir, private: Records) -> cadp_study.Released[Records]:
    """The released private copy as anybody would read it."""
    return cadp_study.load_release(workdir, settings.epsilon, private)


# --- the ledger -------------------------------------------------------------------------------------------------------


def make_ledger(settings: Joined, workdir: Workdir) -> Ledger:
    """The one ledger of the private records."""
    return cadp_study.make_ledger(settings.cadp, workdir)


def release_stage(settings: Joined, workdir: Workdir) -> str:
    """The release's name in the ledger, as `mechanisms.export.publish` writes it."""
    return f"release {cadp_study.release_path(workdir, settings.epsilon).name}"


def note(ledger: Ledger, stage: str, spend: Spend | None, private: Records) -> None:
    """Enters a stage that touched the private records, once, whether it has an event or not."""
    entry = Entry(stage, spend, cadp_study.hashes(private), kind=cadp_study.hash_kind(private))
    # By name and records: a ledger may be shared with studies of others.
    if entry not in ledger.entries():
        ledger.record(entry)


def dp_folder(workdir: Workdir) -> Path:
    """Where the privately trained score model lies."""
    return workdir.path("train", "dp_model")
