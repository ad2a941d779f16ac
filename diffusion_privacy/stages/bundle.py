"""A bundle: a folder with a model that can be sampled from without anything else; what is in it and how it is read.

    model.safetensors   the averaged weights, and no other arrays
    config.json         network, forward process, sampler, shape and labels
    README.md           the card (`reports.card`)
    manifest.json       the guarantee, SHA-256 of the other files, versions

No optimizer state, data, metrics, seed or secret is in it. `bundle_write` writes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy import settings
from diffusion_privacy.diffusion import objective
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import InputError
from diffusion_privacy.interop import files
from diffusion_privacy.networks.build import build
from diffusion_privacy.settings import Named, Sampler
from diffusion_privacy.stages import study
from diffusion_privacy.tasks import ScoreTask
from diffusion_privacy.types import PyTree, ScoreFn

SCHEMA_VERSION = "model-bundle-1.0"
WEIGHTS, CONFIG, CARD, MANIFEST = "model.safetensors", "config.json", "README.md", "manifest.json"
FILES = (WEIGHTS, CONFIG, CARD, MANIFEST)
"""All that a bundle holds."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """The classes that a model knows.

    Attributes:
      number: of classes; 0 for none.
      conditional: whether the network takes a class.
      names: one a class, or none at all.
      shares: of each class among the records, one a class and summing to 1, where they are public; or none at all.
    """

    number: int = 0
    conditional: bool = False
    names: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for field in ("names", "shares"):
            given = len(getattr(self, field))
            if given not in (0, self.number):
                raise InputError(f"labels.{field}: expected one for each of {self.number} classes or none, got {given}")
        if self.number < 0 or (self.conditional and self.number < 1):
            raise InputError(f"labels.number: expected at least 1 where the model is conditional, got {self.number}")
        if self.shares and not (min(self.shares) >= 0 and abs(sum(self.shares) - 1) < 1e-6):
            raise InputError(f"labels.shares: expected shares that sum to 1, got {self.shares}")


@dataclasses.dataclass(frozen=True)
class Model:
    """All that is needed to sample, besides the weights; the content of config.json.

    Attributes:
      network: name and fields for `networks.build`, the number of classes among them.
      sde: the forward process.
      prediction: what the network predicts, of `objective.PREDICTIONS`.
      sampler: as it was audited.
      shape: of one image, (H, W, C); values are in [-1, 1].
      labels: classes.
    """

    network: Named
    sde: Named
    prediction: str
    sampler: Sampler
    shape: tuple[int, ...]
    labels: Labels = dataclasses.field(default_factory=Labels)

    def __post_init__(self) -> None:
        objective.check_prediction(self.prediction)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise InputError(f"shape: expected H, W, C of an image, got {self.shape}")


class Loaded(NamedTuple):
    """A model from a bundle.

    Attributes:
      score: ``(x[B, H, W, C], t[B]) -> [B, H, W, C]``, a pytree over the weights.
      chain: the sampler.
      shape: (H, W, C).
    """

    score: ScoreFn
    chain: Chain
    shape: tuple[int, ...]


def read(folder: Path) -> tuple[Model, PyTree, ScoreTask]:
    """Settings, averaged parameters and task of a bundle, all of it checked.

    Raises:
      InputError: a file is missing, damaged or not the one that the manifest was written for; the message names it.
    """
    folder = Path(folder)
    manifest = files.read_json(folder / MANIFEST)
    if manifest.get("schema") != SCHEMA_VERSION or not isinstance(manifest.get("files"), Mapping):
        raise InputError(f"{folder / MANIFEST}: expected the manifest of a {SCHEMA_VERSION}")
    if set(manifest["files"]) != set(FILES) - {MANIFEST}:
        raise InputError(f"{folder / MANIFEST}: expected hashes of {', '.join(FILES[:-1])}")
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: expected this file, found none")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise InputError(f"{folder / name}: its SHA-256 is not that of {MANIFEST}; expected the file as written")
    fields = files.read_json(folder / CONFIG)
    if fields.pop("schema", None) != SCHEMA_VERSION:
        raise InputError(f"{folder / CONFIG}: expected schema {SCHEMA_VERSION}")
    model = settings.parse(Model, fields, str(folder / CONFIG))
    tensors = files.read_safetensors(folder / WEIGHTS, "a bundle")
    require_layout(str(folder / WEIGHTS), model, tensors)
    return model, files.nested(tensors), task_of(model)


def load(folder: Path | str, label: int | None = None) -> Loaded:
    """The model of a bundle, ready for `anonymity.montecarlo.sample`; it needs nothing but the folder.

    Args:
      folder: of the bundle.
      label: the class to draw, 0 … number − 1, of a conditional model, which learned to draw no image without one;
        None for a model that knows no classes.

    Raises:
      InputError: as `read`; a class that the model does not have, or none for a conditional model.
    """
    model, params, task = read(Path(folder))
    known = model.labels.number if model.labels.conditional else 0
    if known and (label is None or not 0 <= label < known):
        raise InputError(f"label: expected one of 0 … {known - 1}, the model knows classes; got {label!r}")
    if not known and label is not None:
        raise InputError(f"label: expected none, the model knows no classes; got {label!r}")
    given = None if label is None else jnp.int32(label)
    return Loaded(
        task.score(params, given), study.chain_of(model.sampler, task.sde, "config.json.sampler"), model.shape
    )


def task_of(model: Model) -> ScoreTask:
    """The task whose network and score these settings describe; InputError where they do not fit each other."""
    sde = study.sde_of(model.sde, "config.json.sde")
    network = build(model.network.name, **model.network.params)
    labels, rows = model.labels, getattr(network, "num_classes", None)
    # A label past the last class would be the network's null class, which no record trained.
    if labels.conditional and rows is not None and rows != labels.number:
        raise InputError(f"labels.number: expected the network's num_classes = {rows}, got {labels.number}")
    # The batch size matters in training alone.
    return ScoreTask(network, sde, 1, model.prediction, conditional=model.labels.conditional)


def require_layout(where: str, model: Model, tensors: Mapping[str, np.ndarray]) -> None:
    """`InputError` unless these are the network's parameters and nothing else; ``where`` names them in the message."""
    task = task_of(model)
    batch = {"image": jnp.zeros((1, *model.shape)), "label": jnp.zeros(1, jnp.int32)}
    made = jax.eval_shape(lambda key: task.init(key, batch), jax.random.key(0))
    wanted = {files.name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(made)}
    absent = "nothing"
    for name in sorted({*wanted, *tensors}):
        there, here = (_kind(leaves[name]) if name in leaves else absent for leaves in (tensors, wanted))
        if there != here:
            raise InputError(f"{where}: {name} is {there}, expected {here} for the network {model.network.name!r}")


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
