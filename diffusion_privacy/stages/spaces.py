"""The space that a score model of the study works in: pixels, or the latents of an autoencoder of its own.

Each model's autoencoder is trained on that model's records, the private one included where it belongs: what a hospital
would give away is the pair, and a decoder can memorise too. Images are decoded before anything looks at them.
"""

from __future__ import annotations

import dataclasses
import hashlib

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
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages import watching
from diffusion_privacy.stages.memory import draw_and_look, images_at_once
from diffusion_privacy.stages.watching import Watch
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import AutoencoderTask
from diffusion_privacy.training.checkpoint import restore_ema
from diffusion_privacy.types import Array, PyTree, ScoreFn


def _encode_lanes(encode: Encode, operands: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    return {"out": encode(operands["params"], batch["x"])[0] * operands["scale"]}


def _decode_lanes(decode: Decode, operands: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    return {"out": decoded(decode, operands["params"], operands["scale"], batch["x"])}


def _at_once(study: Study, look: jax.tree_util.Partial, x: tuple[int, ...], image: tuple[int, ...]) -> int:
    chosen = study.score.autoencoder
    assert chosen is not None
    return images_at_once(study.audit, look, x, int(np.prod(image[:2])), chosen.network.get("channels", 32))


def _encoded(study: Study, encode: Encode, params: PyTree, scale: float, images: np.ndarray) -> np.ndarray:
    shape = images.shape[1:]
    chunk = _at_once(study, jax.tree_util.Partial(encode, params), shape, shape)
    operands = {"params": params, "scale": jnp.float32(scale)}
    found = lanes.run(_encode_lanes, encode, operands, {"x": np.asarray(images, np.float32)}, chunk=chunk)
    return np.asarray(found["out"])


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """Where a score model works.

    Attributes:
      latent: its autoencoder; None for pixels, and then nothing here changes anything.
      digest: of the autoencoder's parameters and scale; empty for pixels.
      study: says how much memory encoding and decoding may take; None for pixels.
    """

    latent: Latent | None = None
    digest: str = ""
    study: Study | None = None

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what the score sees of one image of this shape."""
        if self.latent is None:
            return image
        return tuple(jax.eval_shape(self.latent.encode, jax.ShapeDtypeStruct((1, *image), jnp.float32)).shape[1:])

    def encode(self, images: np.ndarray) -> np.ndarray:
        """``[N, H, W, C]`` as the score sees them."""
        if self.latent is None or self.study is None:
            return images
        return _encoded(self.study, self.latent.encoder, self.latent.params, self.latent.scale, images)

    def decode(self, drawn: np.ndarray) -> np.ndarray:
        """What the chain draws, ``[N, ...]``, as images ``[N, H, W, C]``."""
        if self.latent is None or self.study is None:
            return drawn
        latent, shape = self.latent, drawn.shape[1:]
        image = jax.eval_shape(latent.decode, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1:]
        chunk = _at_once(self.study, jax.tree_util.Partial(latent.decoder, latent.params), shape, image)
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

    def measured(self, score: ScoreFn, detect: PyTree) -> PyTree:
        """For `memory.chunk_size`: the score, and beside it decoder and detector where images are decoded.

        Args:
          score: of the model.
          detect: ``margin(images[B, ...], record[B]) -> [B]``.
        """
        if self.latent is None:
            return score
        return jax.tree_util.Partial(draw_and_look, lanes.operand(score), self.latent.detector(detect))


def planned_shape(study: Study, image: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what the score models of the study will see of images of this shape; nothing is trained.

    Raises:
      InputError: images that the autoencoder does not take, or latents that the score network does not.
    """
    if study.score.autoencoder is None:
        return image
    learned, one = task(study, image[-1]), jax.ShapeDtypeStruct((1, *image), jnp.float32)
    try:
        params = jax.eval_shape(learned.network.init, jax.random.key(0), one)
        found = tuple(jax.eval_shape(learned.encoder, params, one)[0].shape[1:])
    except InputError as error:
        raise InputError(f"config.score.autoencoder.network: {error}") from error
    latents = {"image": np.zeros((1, *found), np.float32)}
    try:
        jax.eval_shape(common.score_task(study).init, jax.random.key(0), latents)
    except InputError as error:
        raise InputError(f"config.score.network, for latents of shape {found}: {error}") from error
    return found


def task(study: Study, image_channels: int) -> AutoencoderTask:
    """The task of every autoencoder of the study, which has one; InputError on an unknown field of the network."""
    chosen = study.score.autoencoder
    assert chosen is not None
    try:
        network = build("autoencoder", **{**chosen.network, "image_channels": image_channels})
    except InputError as error:
        raise InputError(f"config.score.autoencoder.{error}") from error
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
        means = _encoded(study, learned.encoder, jax.tree.map(jnp.asarray, params), 1.0, records.image)
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
    latent = Latent(learned.encoder, learned.decoder, on_device, float(found["scale"]))
    return Space(latent, digest.hexdigest(), study)
