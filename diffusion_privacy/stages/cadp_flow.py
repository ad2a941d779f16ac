"""The trained flow of a CADP study and the ways through it, for images and for rows of a table."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_privacy.data.records import Records
from diffusion_privacy.data.table_encoding import Encoder, digits, one_hots
from diffusion_privacy.data.table_rows import Rows
from diffusion_privacy.data.tables import Table
from diffusion_privacy.errors import InputError, require_like
from diffusion_privacy.flows import objective
from diffusion_privacy.flows.cinn import FlowConfig, build
from diffusion_privacy.flows.objective import FlowModel, flow_model
from diffusion_privacy.flows.preprocess import Preprocess
from diffusion_privacy.mechanisms import noise
from diffusion_privacy.mechanisms.condition import check_attributes
from diffusion_privacy.settings_cadp import Flow
from diffusion_privacy.types import Array, PyTree


def flow_config(settings: Flow, shape: tuple[int, ...], cond_dim: int, training: bool = False) -> FlowConfig:
    """The network of a config for records of this shape; InputError on an unknown field or another kind of value.

    Args:
      training: in the precision of training, and compiled as ``params["scan"]`` says. Afterwards the flow is used in
        float32 and scanned, whatever that says: without a backward pass this is as fast, and compiles far sooner.
    """
    fixed = ("shape", "cond_dim", "conv_precision")
    known = {f.name: f.default for f in dataclasses.fields(FlowConfig) if f.name not in fixed}
    for name, value in settings.params.items():
        if name not in known:
            raise InputError(f"config.flow.params.{name}: unknown field; expected one of {', '.join(sorted(known))}")
        require_like(f"config.flow.params.{name}", value, known[name])
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.params.items()}
    if training:
        return FlowConfig(shape=shape, cond_dim=cond_dim, conv_precision=settings.training_precision, **given)
    return FlowConfig(shape=shape, cond_dim=cond_dim, **{**given, "scan": True})


def image_model(settings: Flow, records: Records, training: bool = False) -> FlowModel:
    """The flow of images like these, given their class or their attributes."""
    size = records.num_classes if settings.condition == "label" else len(records.attribute_names)
    config = flow_config(settings, tuple(int(v) for v in records.image.shape[1:]), size, training)
    return flow_model(config, settings.condition, settings.preprocess, records.levels, settings.logit_alpha)


def row_model(settings: Flow, rows: Rows, spread: float, training: bool = False) -> FlowModel:
    """The flow of rows like these, given their columns apart; ``spread`` is the deviation of the noise on numbers."""
    encoder = rows.encoder
    config = flow_config(settings, (encoder.dim,), sum(encoder.sizes), training)
    width = tuple(float(w) for w in encoder.noise_width)
    blurred = Preprocess((encoder.dim,), "none", width=width, spread=spread)
    return FlowModel(build(config), blurred, config.cond_dim, "attributes" if config.cond_dim else "none")


def condition_of(records: Records | Rows, kind: str) -> np.ndarray:
    """The condition of these records, int32: classes [N], or attributes [N, K] where ``kind`` says so."""
    if kind != "attributes":
        return records.label
    if records.attributes is None:
        raise InputError(f"{records.name}: expected records with attributes, which the flow is conditioned on")
    return records.attributes


@dataclasses.dataclass(frozen=True)
class TrainedFlow:
    """The averaged flow and the ways through it; conditions are class numbers [N], or attributes [N, K]."""

    model: FlowModel
    params: PyTree

    def given(self, records: Records | Rows) -> np.ndarray:
        """What of these records the flow is conditioned on, int [N] or [N, K]."""
        return condition_of(records, self.model.condition)

    def condition(self, labels: np.ndarray) -> np.ndarray | None:
        """``int [N] or [N, K] -> float32 [N, K]``; InputError names the record whose class or attribute is none."""
        if self.model.condition == "attributes":
            return check_attributes(labels, self.model.cond_dim).astype(np.float32)
        return objective.one_hot(labels, self.model.cond_dim, "labels")

    def encode(self, images: np.ndarray, labels: np.ndarray, key: Array) -> tuple[np.ndarray, np.ndarray]:
        """``(z[N, D], log p in nats [N])``; the dequantisation noise comes from ``key``."""
        return objective.encode(self.model, self.params, images, self.condition(labels), key)

    def decode(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """``z[N, D] -> records [N, ...]`` as a release writes them: images in [-1, 1], vectors of rows of the table."""
        return objective.decode(self.model, self.params, z, self.condition(labels))

    def sample(self, labels: np.ndarray, key: Array) -> np.ndarray:
        """Draws for these conditions: what a release is held against, since they hold nothing of a private record."""
        return objective.sample(self.model, self.params, key, self.condition(labels), len(labels))

    def attacker(self) -> TrainedFlow:
        """The flow as an attacker encodes with it."""
        return self

    def release_encode(self, x: Array, classes: Array) -> Array:
        """The encoder of a release: dequantised with fresh entropy, never with a key of the run."""
        return jnp.asarray(self.encode(np.asarray(x), np.asarray(classes), noise.fresh_key())[0])

    def release_decode(self, z: Array, classes: Array) -> Array:
        """The decoder of a release."""
        return jnp.asarray(self.decode(np.asarray(z), np.asarray(classes)))


@dataclasses.dataclass(frozen=True)
class TableFlow(TrainedFlow):
    """A flow of vectors that stand for rows; conditions are combinations of the columns apart.

    What it decodes is rounded to rows of the table, as a CSV file holds them, and given as their vectors.
    """

    encoder: Encoder

    def given(self, records: Records | Rows) -> np.ndarray:
        """Combinations of the columns apart, int [N]."""
        return records.label

    def condition(self, labels: np.ndarray) -> np.ndarray | None:
        """``int [N] -> float32 [N, K]``; None without columns apart."""
        return one_hots(labels, self.encoder.sizes) if self.model.cond_dim else None

    def table(self, vectors: np.ndarray, labels: np.ndarray, name: str) -> Table:
        """The rows that ``vectors[N, D]`` and ``labels[N]`` stand for."""
        return self.encoder.decode(vectors, digits(labels, self.encoder.sizes), name)

    def decode(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self._rounded(super().decode(z, labels), labels)

    def sample(self, labels: np.ndarray, key: Array) -> np.ndarray:
        return self._rounded(super().sample(labels, key), labels)

    def attacker(self) -> TrainedFlow:
        """Without noise on the numbers, which would only blur what the attacker holds."""
        return self._blurred(width=(), spread=0.0)

    def _blurred(self, *, width: tuple[float, ...], spread: float) -> TableFlow:
        blurred = dataclasses.replace(self.model.preprocess, width=width, spread=spread)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, preprocess=blurred))

    def _rounded(self, vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self.encoder.encode(self.table(vectors, labels, "decoded"))

    def release_encode(self, x: Array, classes: Array) -> Array:
        """``x[B, D]`` that `mechanisms.table` dequantised, with ``classes[B, K]``; the rest of the noise is fresh."""
        model = self._blurred(width=(), spread=self.model.preprocess.spread).model
        cond = np.asarray(classes) if self.model.cond_dim else None
        return jnp.asarray(objective.encode(model, self.params, np.asarray(x), cond, noise.fresh_key())[0])

    def release_decode(self, z: Array, classes: Array) -> Array:
        """Vectors that `mechanisms.table` rounds to rows; ``classes[B, K]``."""
        cond = np.asarray(classes) if self.model.cond_dim else None
        return jnp.asarray(objective.decode(self.model, self.params, np.asarray(z), cond))
