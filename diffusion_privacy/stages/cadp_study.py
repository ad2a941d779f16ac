"""What all stages of a CADP study share: the shares, the trained flow, the mechanism, the released data sets."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.data import sources
from diffusion_privacy.data.records import Records, split_records
from diffusion_privacy.errors import InputError
from diffusion_privacy.flows import objective
from diffusion_privacy.flows.cinn import FlowConfig
from diffusion_privacy.flows.objective import FlowModel, flow_model
from diffusion_privacy.mechanisms import clipping, decoding, noise, study
from diffusion_privacy.mechanisms.condition import ConditionMechanism, PublicCondition, RandomizedResponse
from diffusion_privacy.mechanisms.decoding import CoarseSelection
from diffusion_privacy.mechanisms.discrete import DiscreteGaussian, DiscreteLaplace
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism, LaplaceMechanism, Mechanism
from diffusion_privacy.mechanisms.relation import Neighbours, Relation, parse_relation
from diffusion_privacy.settings_cadp import Cadp
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import FlowTask
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Parts:
    """The records by share; no person is in two."""

    public: Records
    private: Records
    test: Records


def load_parts(study_settings: Cadp, workdir: Workdir) -> Parts:
    """Loads the source and divides it; writes split.json once."""
    source = sources.load(study_settings.data.source, **study_settings.data.params)
    wanted = study_settings.split
    parts = Parts(*split_records(source, (wanted.public, wanted.private, wanted.test), study_settings.seed))
    path = workdir.path("split.json")
    if not path.exists():
        workdir.write_json(path, {f.name: getattr(parts, f.name).index.tolist() for f in dataclasses.fields(parts)})
    return parts


def make_model(settings: Cadp, records: Records) -> FlowModel:
    """The flow of the config for records of this shape; InputError on an unknown field."""
    known = {f.name for f in dataclasses.fields(FlowConfig)} - {"shape", "cond_dim"}
    for name in settings.flow.params:
        if name not in known:
            raise InputError(f"config.flow.params.{name}: unknown field; expected one of {', '.join(sorted(known))}")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.flow.params.items()}
    shape = tuple(int(v) for v in records.image.shape[1:])
    config = FlowConfig(shape=shape, cond_dim=records.num_classes, **given)
    return flow_model(config, "label", settings.flow.preprocess, records.levels)


def flow_task(settings: Cadp, records: Records) -> FlowTask:
    """What the loop learns."""
    return FlowTask(make_model(settings, records), settings.flow.reconstruction, settings.flow.perturbation)


@dataclasses.dataclass(frozen=True)
class TrainedFlow:
    """The averaged flow and the ways through it; conditions are class numbers."""

    model: FlowModel
    params: PyTree

    def one_hot(self, labels: np.ndarray) -> np.ndarray:
        """``int [N] -> float32 [N, K]``; InputError names the record with a class outside the declared ones."""
        return objective.one_hot(labels, self.model.cond_dim, "labels")

    def encode(self, images: np.ndarray, labels: np.ndarray, key: Array) -> tuple[np.ndarray, np.ndarray]:
        """``(z[N, D], log p in nats [N])``; the dequantisation noise comes from ``key``."""
        return objective.encode(self.model, self.params, images, self.one_hot(labels), key)

    def decode(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """``z[N, D] -> images[N, H, W, C]`` in [-1, 1]."""
        return objective.decode(self.model, self.params, z, self.one_hot(labels))

    def sample(self, labels: np.ndarray, key: Array) -> np.ndarray:
        """Class-conditional draws: what a release is held against, since they hold nothing of a private record."""
        return objective.sample(self.model, self.params, key, self.one_hot(labels), len(labels))

    def release_encode(self, x: Array, classes: Array) -> Array:
        """The encoder of a release: dequantised with fresh entropy, never with a key of the run."""
        return jnp.asarray(self.encode(np.asarray(x), np.asarray(classes), noise.fresh_key())[0])

    def release_decode(self, z: Array, classes: Array) -> Array:
        """The decoder of a release."""
        return jnp.asarray(self.decode(np.asarray(z), np.asarray(classes)))


def load_flow(settings: Cadp, workdir: Workdir, records: Records) -> TrainedFlow:
    """The trained flow; InputError when it was not trained yet."""
    params, _ = restore_ema(workdir.root / "train" / "flow")
    return TrainedFlow(make_model(settings, records), jax.tree.map(jnp.asarray, params))


# --- the mechanism ----------------------------------------------------------------------------------------------------


def make_relation(settings: Cadp) -> Relation:
    """The neighbouring relation; InputError when it does not go with how the class is released."""
    relation = parse_relation(settings.release.relation, settings.release.records_per_person)
    randomised = settings.release.label_epsilon > 0
    if randomised != (relation.neighbours is Neighbours.ANY_CONDITION):
        raise InputError(
            f"config.release.relation: {relation.neighbours.value!r} with label_epsilon = "
            f"{settings.release.label_epsilon:g}; expected {Neighbours.ANY_CONDITION.value!r} exactly where the class "
            "is randomised"
        )
    return relation


def make_condition(settings: Cadp, classes: int) -> ConditionMechanism:
    """How the class is released."""
    if settings.release.label_epsilon > 0:
        return RandomizedResponse(settings.release.label_epsilon, classes)
    return PublicCondition(classes)


def make_selection(settings: Cadp, dims: int) -> CoarseSelection | None:
    """The coarse latents that carry the record; None for all."""
    coarse = settings.release.coarse
    if coarse > dims:
        raise InputError(f"config.release.coarse: expected at most the {dims} latents of the flow, got {coarse}")
    return CoarseSelection(tuple(range(coarse)), dims) if 0 < coarse < dims else None


def clip_norm(settings: Cadp, dims: int) -> float:
    """The clip radius: a quantile of the prior's norm, the same for every data set."""
    norm: clipping.Norm = "l1" if settings.release.mechanism.endswith("laplace") else "l2"
    return clipping.clip_radius(settings.release.coarse or dims, norm, settings.release.coverage)


def make_mechanism(settings: Cadp, epsilon: float, dims: int, records: int) -> Mechanism:
    """The latent mechanism calibrated to ``epsilon``: the one that releases, and the one that the audit attacks."""
    release, relation, radius = settings.release, make_relation(settings), clip_norm(settings, dims)
    if release.mechanism == "gaussian":
        return GaussianMechanism.calibrated(epsilon, release.delta, radius, relation, records)
    if release.mechanism == "discrete_gaussian":
        return DiscreteGaussian.calibrated(epsilon, release.delta, radius, relation, records)
    if release.mechanism == "laplace":
        return LaplaceMechanism.calibrated(epsilon, radius, relation)
    return DiscreteLaplace.calibrated(epsilon, radius, relation)


def study_images(
    settings: Cadp, flow: TrainedFlow, records: Records, epsilons: tuple[float, ...], key: Array
) -> np.ndarray:
    """Privatised images ``[E, N, H, W, C]`` at many ε from one unit noise a record: never to leave the workdir.

    A discrete mechanism is stood in for by the continuous one with its noise scale.
    """
    keys = jax.random.split(key, 3)
    z, _ = flow.encode(records.image, records.label, keys[0])
    scales = [make_mechanism(settings, e, z.shape[1], len(records)).noise_scale for e in epsilons]
    latents = _study_latents(
        settings.release.mechanism.removeprefix("discrete_"),
        clip_norm(settings, z.shape[1]),
        make_selection(settings, z.shape[1]),
        settings.release.prior_matched,
        jnp.asarray(scales),
        keys[1:],
        jnp.asarray(z),
    )
    return np.stack([flow.decode(np.asarray(latent), records.label) for latent in latents])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _study_latents(
    mechanism: str,
    radius: float,
    selection: CoarseSelection | None,
    match: bool,
    scales: Array,
    keys: Array,
    z: Array,
) -> Array:
    """``z[N, D] -> [E, N, D]``: what the decoder gets at each noise scale."""
    chosen = z if selection is None else selection.take(z)
    curve = study.latent_curve_for_internal_study(
        GaussianMechanism if mechanism == "gaussian" else LaplaceMechanism,
        radius,
        scales,
        jax.random.split(keys[0], len(z)),
        chosen,
    )
    if match:
        to_prior = decoding.match_gaussian if mechanism == "gaussian" else decoding.match_laplace
        curve = jax.vmap(to_prior)(curve, scales)
    return curve if selection is None else jax.vmap(lambda row: selection.complete(keys[1], row))(curve)


# --- released data sets -----------------------------------------------------------------------------------------------


def release_path(workdir: Workdir, epsilon: float) -> Path:
    """The folder of one released data set."""
    return workdir.root / "releases" / f"eps_{epsilon:g}"


@dataclasses.dataclass(frozen=True)
class Released:
    """A released data set as anybody would read it."""

    epsilon: float
    records: Records
    manifest: dict[str, Any]


def load_release(workdir: Workdir, epsilon: float, like: Records) -> Released:
    """Reads ``data.npz`` and the manifest of a release.

    Args:
      like: the private records, whose order and source numbers a release shares.
    """
    folder = release_path(workdir, epsilon)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a released data set, found none; run --mode=privatize first")
    arrays = workdir.read_arrays(folder / "data.npz")
    if set(arrays) != {"image", "label"} or len(arrays["image"]) != len(like):
        raise InputError(f"{folder / 'data.npz'}: expected image and label of {len(like)} records")
    images = (arrays["image"].astype(np.float32) / 127.5 - 1).clip(-1, 1)
    records = dataclasses.replace(like.with_images(images), label=arrays["label"].astype(np.int32))
    return Released(epsilon, records, workdir.read_json(folder / "manifest.json"))
