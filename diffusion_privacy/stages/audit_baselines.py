"""The audit's baselines: membership, extraction, authenticity and the like, over one model (`audits.baselines`)."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import numpy as np

from diffusion_privacy.anonymity.intervals import outwards
from diffusion_privacy.audits import baselines
from diffusion_privacy.networks.classifier import Classifier, ConvTrunk
from diffusion_privacy.networks.embedding import Embedder
from diffusion_privacy.reports import baselines as entries
from diffusion_privacy.settings import Study
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.spaces import Space
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.types import Array, PyTree, ScoreFn

_LOG = logging.getLogger(__name__)


def trunk_features(trunk: ConvTrunk, params: PyTree, at_once: int) -> Callable[[np.ndarray], np.ndarray]:
    """``x[N, H, W, C] -> [N, F]`` of a classifier's last layer but one, ``at_once`` rows at a time."""

    @jax.jit
    def some(x: Array) -> Array:
        return cast(Array, trunk.apply(params, x))

    def features(x: np.ndarray) -> np.ndarray:
        # The last block repeats its last row, so that one compiled program serves sets of any length.
        rows = [np.minimum(np.arange(start, start + at_once), len(x) - 1) for start in range(0, len(x), at_once)]
        return np.concatenate([np.asarray(some(x[r])) for r in rows])[: len(x)]

    return features


def _latent(subject: baselines.Subject, space: Space, samples: np.ndarray) -> baselines.Subject:
    return dataclasses.replace(
        subject,
        members=space.encode(subject.members),
        non_members=space.encode(subject.non_members),
        samples=samples,
        features=None,
        canaries=None if subject.canaries is None else space.encode(subject.canaries),
    )


def _with_left_out(row: baselines.Row, count: int) -> baselines.Row:
    """The row with a note on ``count`` held-out records that were none; canaries are looked at without any."""
    if not count or row.name.startswith("one_run"):
        return row
    return dataclasses.replace(
        row, notes=(*row.notes, f"held-out records that equal a training record, left out: {count}")
    )


def rows(
    study: Study,
    workdir: Workdir,
    roles: common.Roles,
    score: ScoreFn,
    space: Space,
    drawn: Mapping[str, np.ndarray],
    name: str,
    at_once: int,
) -> list[entries.Baseline]:
    """What ``audit.baselines`` asks for, as entries of release.json; empty when it asks for nothing.

    Members are the model's training set; non-members the held-out and control records, clean and without those that
    equal a training record, which a note counts. In latent space those that ask the score get latents, those that
    compare images get decoded ones.

    Args:
      study, workdir, roles: of the run.
      score, space: the model and where it works.
      drawn: its draws, ``images [G, H, W, C]`` and in latent space ``latents [G, ...]``.
      name: of the model.
      at_once: images that the detector's networks look at at a time.
    """
    chosen = study.audit.baselines
    if not chosen:
        return []
    held_out, numbers = common.never_seen(roles, name)
    network = cast(Classifier | Embedder, common.classifiers(study)["identity"].network)
    trunk = ConvTrunk(network.channels, network.max_channels, network.dtype)
    params: Any = common.load_classifiers(workdir)["identity"]
    subject = baselines.Subject(
        score=score,
        sde=common.make_sde(study),
        members=roles.train[name].image,
        non_members=held_out,
        samples=drawn["images"],
        features=trunk_features(trunk, {"params": params["params"]["trunk"]}, at_once),
        canaries=None if roles.canaries is None else roles.canaries.image,
        included=roles.included,
        delta=study.score.training.privacy.delta,
        seed=study.seed,
        level=study.audit.level,
    )
    if space.latent is None:
        found = baselines.run(chosen, subject)
    else:
        latent = _latent(subject, space, drawn["latents"])
        asked = [(kind, latent if kind in baselines.ASK_THE_SCORE else subject) for kind in chosen]
        found = [row for kind, whom in asked for row in baselines.run((kind,), whom)]
    found = [_with_left_out(row, len(roles.held_out) + len(roles.controls) - len(numbers)) for row in found]
    for row in found:
        if row.value is not None:
            lower = -math.inf if row.lower is None else row.lower
            upper = math.inf if row.upper is None else row.upper
            limits = f"{outwards(lower, 'down')} to {outwards(upper, 'up')}"
            _LOG.info("audit %s: %s %.3g (%s)", name, row.name, row.value, limits)
    return [entries.entry(row) for row in found]
