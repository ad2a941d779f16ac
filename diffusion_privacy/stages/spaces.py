"""The space that a score model of the study works in: pixels, or the latents of an autoencoder of its own.

Each model's autoencoder is trained on that model's records, the private one included where it belongs: what a hospital
would give away is the pair, and a decoder can memorise too. Images are decoded before anything looks at them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy import settings
from diffusion_privacy.anonymity import lanes
from diffusion_privacy.data.latents import LatentRecords
from diffusion_privacy.data.pipeline import Batches
from diffusion_privacy.data.records import Records
from diffusion_privacy.diffusion.latent import Decode, Encode, Latent, decoded
from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.build import build
from diffusion_privacy.settings import Study
from diffusion_privacy.stages import watching
from diffusion_privacy.stages.watching import Watch
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import AutoencoderTask
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.types import Array, PyTree, ScoreFn

_PIXELS_AT_ONCE = 2**20


def _encode_lanes(encode: Encode, operands: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    return {"out": encode(operands["params"], batch["x"])[0] * operands["scale"]}


def _decode_lanes(decode: Decode, operands: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    return {"out": decoded(decode, operands["params"], operands["scale"], batch["x"])}


def _encoded(encode: Encode, params: PyTree, scale: float, images: np.ndarray) -> np.ndarray:
    chunk = int(np.clip(_PIXELS_AT_ONCE // np.prod(images.shape[1:3]), 4, 256))
    operands = {"params": params, "scale": jnp.float32(scale)}
    found = lanes.run(_encode_lanes, encode, operands, {"x": np.asarray(images, np.float32)}, chunk=chunk)
    return np.asarray(found["out"])


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """Where a score model works.

    Attributes:
      latent: its autoencoder; None for pixels, and then nothing here changes anything.
      digest: of the autoencoder's parameters and scale; empty for pixels.
    """

    latent: Latent | None = None
    digest: str = ""

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what the score sees of one image of this shape."""
        if self.latent is None:
            return image
        return tuple(jax.eval_shape(self.latent.encode, jax.ShapeDtypeStruct((1, *image), jnp.float32)).shape[1:])

    def encode(self, images: np.ndarray) -> np.ndarray:
        """``[N, H, W, C]`` as the score sees them."""
        if self.latent is None:
            return images
        return _encoded(self.latent.encoder, self.latent.params, self.latent.scale, images)

    def decode(self, drawn: np.ndarray) -> np.ndarray:
        """What the chain draws, ``[N, ...]``, as images ``[N, H, W, C]``."""
        if self.latent is None:
            return drawn
        latent = self.latent
        image = jax.eval_shape(latent.decode, jax.ShapeDtypeStruct((1, *drawn.shape[1:]), jnp.float32)).shape
        chunk = int(np.clip(_PIXELS_AT_ONCE // np.prod(image[1:3]), 4, 256))
        operands = {"params": latent.params, "scale": jnp.float32(latent.scale)}
        return np.asarray(lanes.run(_decode_lanes, latent.decoder, operands, {"x": drawn}, chunk=chunk)["out"])

    def detector(self, detect: PyTree) -> PyTree:
        """A detector of images as one of what the chain draws."""
        return detect if self.latent is None else self.latent.detector(detect)

    def records(self, records: Records) -> Records | LatentRecords:
        """What the score model is trained on."""
        if self.latent is None:
            return records
        return LatentRecords(records, self.encode(records.image), self.digest)

    def measured(self, score: ScoreFn) -> ScoreFn:
        """For `lanes.chunk_for_budget`: the score, and beside it the decoder if there is one."""
        latent = self.latent
        if latent is None:
            return score

        def both(x: Array, t: Array) -> Any:
            return score(x, t), latent.decode(x)

        return both


def task(study: Study, image_channels: int) -> AutoencoderTask:
    """The task of every autoencoder of the study, which has one; InputError on an unknown field of the network."""
    chosen = study.score.autoencoder
    assert chosen is not None
    network = build("autoencoder", **{**chosen.network, "image_channels": image_channels})
    return AutoencoderTask(network, chosen.std, chosen.kl_weight)


def fit(study: Study, workdir: Workdir, name: str, records: Records) -> Space:
    """Trains the autoencoder of model ``name`` on its records, unless it works on pixels or is trained already.

    Raises:
      InputError: images that the halvings do not divide, or latents that do not depend on the record.
    """
    chosen = study.score.autoencoder
    if chosen is None:
        return Space()
    learned, own = task(study, records.image.shape[-1]), f"autoencoder_{name}"
    described = {"autoencoder": settings.to_dict(chosen), "name": own}
    with workdir.timed(f"train {own}"):
        watching.train(
            learned,
            Batches(records, chosen.training.batch_size, study.seed),
            chosen.training,
            Watch(study.outputs, study.profile),
            workdir=workdir.path("train", own),
            seed=study.seed,
            name=own,
            identity={"config": settings.digest(described)},
        )
    path = workdir.path("train", own, "latent.json")
    if not path.exists():
        params, _ = restore_ema(workdir.root / "train" / own)
        means = _encoded(learned.encoder, jax.tree.map(jnp.asarray, params), 1.0, records.image)
        spread = float(np.std(np.asarray(means, np.float64)))
        if not 0 < spread < float("inf"):
            raise InputError(
                f"config.score.autoencoder: expected latents that differ between records, those of {name} have "
                f"standard deviation {spread:g}; take a smaller std or kl_weight, or train longer"
            )
        workdir.write_json(path, {"scale": 1 / spread, "image_channels": int(records.image.shape[-1])})
    return load(study, workdir, name)


def load(study: Study, workdir: Workdir, name: str) -> Space:
    """The space of the trained model ``name``; InputError when its autoencoder is not there."""
    if study.score.autoencoder is None:
        return Space()
    folder = workdir.root / "train" / f"autoencoder_{name}"
    found = workdir.read_json(folder / "latent.json")
    learned = task(study, int(found["image_channels"]))
    params, _ = restore_ema(folder)
    digest = hashlib.sha256(repr(float(found["scale"])).encode())
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf, "<f4").data)
    on_device = jax.tree.map(jnp.asarray, params)
    return Space(Latent(learned.encoder, learned.decoder, on_device, float(found["scale"])), digest.hexdigest())
