"""Stage `sample`: images drawn from every model, by the sampler under audit."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import jax
import numpy as np

from diffusion_privacy.anonymity import montecarlo
from diffusion_privacy.data import pictures
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.settings import Study
from diffusion_privacy.stages import spaces
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.memory import chunk_size
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng
from diffusion_privacy.types import ScoreFn

_LOG = logging.getLogger(__name__)
_ROUND = 2048


def draw(
    study: Study, chain: Chain, score: ScoreFn, shape: tuple[int, ...], count: int, name: str, chunk: int
) -> np.ndarray:
    """``count`` samples in rounds of one compiled program, with progress."""
    key = rng.stream(study.seed, f"sample.{name}")
    parts: list[np.ndarray] = []
    start, width = time.monotonic(), min(count, chunk * jax.device_count())
    for first in range(0, count, _ROUND):
        # A last round of less than a chunk would need a program of its own: it draws a chunk, and is cut.
        size = min(_ROUND, max(count - first, width))
        parts.append(montecarlo.sample(chain, score, shape, size, key, first=first, chunk=chunk)[: count - first])
        done, seconds = min(first + _ROUND, count), time.monotonic() - start
        rate = done / seconds
        _LOG.info("sample %s: %d/%d, %.3g images/s, %.0f s left", name, done, count, rate, (count - done) / rate)
    return np.concatenate(parts)


def sample(study: Study, workdir: Workdir) -> None:
    """Draws the images that E1 counts and the reference's images that calibrate the detector."""
    counts = {**study.audit.samples, common.REFERENCE: study.detector.negatives}
    if not all(workdir.path("samples", f"{n}.npz").exists() for n in counts):
        draw_all(study, workdir, common.load_roles(study, workdir), counts)
    export(study, workdir, list(counts))


def export(study: Study, workdir: Workdir, names: Sequence[str]) -> None:
    """The first ``outputs.png`` images of each model as ``samples/NAME/000000.png`` …; all are in the npz beside it."""
    if study.outputs.png == 0 or jax.process_index() != 0:
        return
    for name in names:
        images = workdir.read_arrays(workdir.path("samples", f"{name}.npz"))["images"]
        pictures.write_folder(workdir.root / "samples" / name, images[: study.outputs.png])


def draw_all(study: Study, workdir: Workdir, roles: common.Roles, counts: dict[str, int]) -> None:
    """Draws ``counts[name]`` images from each model that has none yet."""
    missing = [n for n in counts if not workdir.path("samples", f"{n}.npz").exists()]
    shape = roles.private.image.shape[1:]
    chain = common.make_chain(study, common.make_sde(study))
    for name in missing:
        score, space = common.load_score(study, workdir, name), spaces.load(study, workdir, name)
        seen = space.shape(shape)
        with workdir.timed(f"sample {name}"):
            drawn = draw(study, chain, score, seen, counts[name], name, chunk_size(study, score, seen))
            arrays = {"images": drawn} if space.latent is None else {"images": space.decode(drawn), "latents": drawn}
        workdir.write_arrays(workdir.path("samples", f"{name}.npz"), arrays)
