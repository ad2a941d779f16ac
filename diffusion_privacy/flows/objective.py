"""What a flow is trained on, how it is scored, and the way from images to latents and back.

`FlowModel` is static (hashable, no arrays), parameters are handed in. Functions with `records` in their arguments take
a batch ``[B, ...]``; every random number of record i comes from ``keys[i]`` alone, so nothing depends on the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from diffusion_privacy.errors import InputError
from diffusion_privacy.flows.bijection import Bijection, size
from diffusion_privacy.flows.cinn import FlowConfig, build
from diffusion_privacy.flows.preprocess import Preprocess
from diffusion_privacy.training import sharding
from diffusion_privacy.training.rng import per_record
from diffusion_privacy.types import Array, PyTree

CONDITIONS = ("label", "attributes", "none")


@dataclasses.dataclass(frozen=True)
class FlowModel:
    """A flow with its preprocessing and the meaning of its condition.

    Attributes:
      bijection: maps ``preprocess.shape`` onto ``(D,)``.
      preprocess: dequantisation and fixed map before it.
      cond_dim: K, 0 for unconditional.
      condition: ``label``: one-hot of ``batch["label"]``; ``attributes``: ``batch["attributes"]`` float ``[B, K]``;
        ``none``.

    Raises:
      InputError: a condition that does not agree with its length.
      ValueError: a bijection of other records, or one that does not end in a vector.
    """

    bijection: Bijection
    preprocess: Preprocess
    cond_dim: int
    condition: str

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS or (self.condition == "none") != (self.cond_dim == 0):
            raise InputError(
                f"flow.condition must be one of {', '.join(CONDITIONS)} and agree with cond_dim, "
                f"got {self.condition!r} with cond_dim {self.cond_dim}"
            )
        if self.bijection.shape != self.preprocess.shape:
            raise ValueError(f"flow takes {self.bijection.shape}, preprocessing gives {self.preprocess.shape}")
        if self.bijection.out_shape != (self.dims,):
            given = self.bijection.out_shape
            raise ValueError(f"flow gives {given}, expected a vector ({self.dims},); see chain.Flatten")

    @property
    def dims(self) -> int:
        """D, numbers in a record and in its latent."""
        return size(self.bijection.shape)

    def init(self, key: Array) -> PyTree:
        """Parameters of the flow."""
        return self.bijection.init(key)

    def batch_condition(self, batch: PyTree) -> Array | None:
        """``[B, K]`` from the fields of a batch. A label outside 0..K−1 gives zeros: check with `one_hot` before."""
        if self.condition == "none":
            return None
        if self.condition == "attributes":
            return batch["attributes"]
        return jax.nn.one_hot(batch["label"], self.cond_dim, dtype=batch["image"].dtype)


def flow_model(config: FlowConfig, condition: str, preprocess: str, levels: int, alpha: float = 0.05) -> FlowModel:
    """The model of a config; see `FlowConfig`, `FlowModel` and `Preprocess` for the arguments."""
    return FlowModel(build(config), Preprocess(config.shape, preprocess, levels, alpha), config.cond_dim, condition)


def one_hot(labels: np.ndarray, num_classes: int, source: str) -> np.ndarray:
    """``int[N] -> float32[N, K]``, on the host.

    Raises:
      InputError: a label outside 0..K−1; ``source`` names the field or file and the record is given.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        i = int(wrong[0])
        raise InputError(f"{source}: record {i} has class {labels[i]}, expected 0 to {num_classes - 1}")
    return np.eye(num_classes, dtype=np.float32)[labels]


def standard_normal_logp(z: Array) -> Array:
    """log N(z; 0, I) in nats over the last axis: −½‖z‖² − ½D·log 2π."""
    return -0.5 * jnp.sum(jnp.square(z), axis=-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


class Terms(NamedTuple):
    """One pass over a batch: dequantised and mapped ``y``, latents ``z[B, D]``, ``logp[B]`` in nats a grey level."""

    y: Array
    z: Array
    logp: Array


def evaluate(model: FlowModel, params: PyTree, records: Array, cond: Array | None, keys: Array) -> Terms:
    """Latents and log-likelihoods of ``records[B, *shape]`` under conditions ``cond[B, K]``.

    ``logp`` is log p(v + U | c) = log N(z) + log|det dz/dy| + log|det dy/dv| on the scale of grey levels, whose mean
    over U bounds log P(v | c) from below.
    """
    v = jax.vmap(model.preprocess.dequantise)(jax.vmap(_dequantisation_key)(keys), records)
    y, logdet_map = model.preprocess.forward(v)
    z, logdet_flow = model.bijection.forward(params, y, cond)
    return Terms(y, z, standard_normal_logp(z) + logdet_flow + logdet_map)


def _dequantisation_key(key: Array) -> Array:
    return jax.random.fold_in(key, 0)


def _perturbation_key(key: Array) -> Array:
    return jax.random.fold_in(key, 1)


def bits_per_dim(logp: Array, dims: int) -> Array:
    """``−logp/(D·log 2)``: nats to bits per dimension; comparable with published flows for 256 grey levels."""
    return -logp / (dims * math.log(2))


def loss(
    model: FlowModel,
    params: PyTree,
    batch: PyTree,
    key: Array,
    *,
    reconstruction: float = 0.0,
    perturbation: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
    """Per-example loss ``[B]`` in nats a record and metrics ``{bits_per_dim: [B], reconstruction: [B]}``.

    nll = −log p(v + U | c), to which ``reconstruction · ‖f⁻¹(z + s·ξ; c) − y‖²`` is added with s = ``perturbation`` and
    ξ ~ N(0, I): it keeps the inverse tame where release noise takes it. Without it (0) the inverse is not run and the
    metric is absent.

    Args:
      batch: image ``[B, *shape]``, position int ``[B]``, and what the condition needs.
      key: one key for the step; record i draws from ``fold_in(key, position[i])``.
    """
    keys = per_record(key, batch["position"])
    cond = model.batch_condition(batch)
    terms = evaluate(model, params, batch["image"], cond, keys)
    metrics = {"bits_per_dim": bits_per_dim(terms.logp, model.dims)}
    if not reconstruction:
        return -terms.logp, metrics
    noise = jax.vmap(lambda k: jax.random.normal(_perturbation_key(k), (model.dims,), terms.z.dtype))(keys)
    back, _ = model.bijection.inverse(params, terms.z + perturbation * noise, cond)
    error = jnp.sum(jnp.square(back - terms.y).reshape(back.shape[0], -1), axis=1)
    return -terms.logp + reconstruction * error, metrics | {"reconstruction": error}


def decode_batch(model: FlowModel, params: PyTree, z: Array, cond: Array | None) -> Array:
    """``z[B, D], cond[B, K] -> records [B, *shape]`` on the grey levels of [-1, 1] (see `Preprocess.quantise`)."""
    y, _ = model.bijection.inverse(params, z, cond)
    return model.preprocess.quantise(model.preprocess.inverse(y))


def _encode(
    model: FlowModel, params: PyTree, key: Array, x: Array, cond: Array | None, positions: Array
) -> tuple[Array, Array]:
    terms = evaluate(model, params, x, cond, per_record(key, positions))
    return terms.z, terms.logp


def _decode(model: FlowModel, params: PyTree, z: Array, cond: Array | None) -> tuple[Array]:
    return (decode_batch(model, params, z, cond),)


def _sample(model: FlowModel, params: PyTree, key: Array, cond: Array | None, positions: Array) -> tuple[Array]:
    z = jax.vmap(lambda k: jax.random.normal(k, (model.dims,)))(per_record(key, positions))
    return (decode_batch(model, params, z, cond),)


def _piece(model: FlowModel) -> int:
    """Records that a device has in hand at a time; 0 for as many as it gets.

    Of images, more than 16 leave a CPU core's cache, and what a call needs above 32 MB goes back to the system, to be
    zeroed anew for the next one; fewer change the kernels to tiles more often.
    """
    return 16 if jax.default_backend() == "cpu" and len(model.bijection.shape) == 3 else 0


@functools.cache
def _program(fn: Callable[..., tuple[Array, ...]], model: FlowModel, whole: int, rows: int, mesh: Mesh) -> Any:
    """``fn(model, ...)`` over the mesh: the first ``whole`` arguments on every device, then ``rows`` split ones."""
    specs = (*(sharding.REPLICATED,) * whole, *(sharding.SHARDED,) * rows)

    def on_device(*arrays: Any) -> tuple[Array, ...]:
        return sharding.in_pieces(functools.partial(fn, model, *arrays[:whole]), _piece(model), *arrays[whole:])

    rows_out = sharding.SHARDED
    return sharding.data_parallel(on_device, mesh, in_specs=specs, out_specs=rows_out)


def encode(
    model: FlowModel, params: PyTree, images: np.ndarray, cond: np.ndarray | None, key: Array, batch_size: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """All of ``images[N, *shape], cond[N, K]`` to ``(z[N, D], logp[N])``, by ``batch_size`` over local devices.

    A ``batch_size`` of 0 takes what suits them.

    Record i is dequantised with ``fold_in(key, i)``: the flow was fitted to noisy images and sees noisy images here.
    The dequantisation noise is no part of a privacy guarantee.
    """
    positions = np.arange(len(images), dtype=np.int32)
    z, logp = _chunked(_encode, model, (params, key), batch_size, images, cond, positions)
    return z, logp


def decode(model: FlowModel, params: PyTree, z: np.ndarray, cond: np.ndarray | None, batch_size: int = 0) -> np.ndarray:
    """All of ``z[N, D], cond[N, K]`` to ``images[N, *shape]``, ``batch_size`` at a time.

    ``decode(encode(images)) == images`` up to rounding of a grey level, whatever noise dequantised them.
    Latents should look like draws of N(0, I): far outside (release noise that was not matched to the prior) a trained
    affine flow amplifies rounding until float32 no longer inverts it, and images saturate.
    """
    return _chunked(_decode, model, (params,), batch_size, z, cond)[0]


def sample(
    model: FlowModel, params: PyTree, key: Array, cond: np.ndarray | None, num: int, batch_size: int = 0
) -> np.ndarray:
    """``num`` images with z ~ N(0, I), one for each row of ``cond[num, K]``: the ε_z = 0 control of a release."""
    positions = np.arange(num, dtype=np.int32)
    return _chunked(_sample, model, (params, key), batch_size, cond, positions)[0]


def _chunked(
    fn: Callable[..., tuple[Array, ...]],
    model: FlowModel,
    whole: tuple[Any, ...],
    batch_size: int,
    *arrays: np.ndarray | None,
) -> tuple[np.ndarray, ...]:
    """``fn`` over slices of the first axis, split over this process's devices; padding makes one program serve all."""
    n = next(len(a) for a in arrays if a is not None)
    if n == 0 or any(a is not None and len(a) != n for a in arrays):
        raise ValueError(
            f"expected arrays of one positive length, got {[None if a is None else len(a) for a in arrays]}"
        )
    mesh = sharding.data_mesh(jax.local_devices())
    batch_size = min(batch_size or (64 if jax.default_backend() == "cpu" else 256) * mesh.size, n)
    piece = _piece(model)
    unit = mesh.size * piece if piece and batch_size > mesh.size * piece else mesh.size
    batch_size = -(-batch_size // unit) * unit
    program = _program(fn, model, len(whole), len(arrays), mesh)
    held = [jax.device_put(w, NamedSharding(mesh, sharding.REPLICATED)) for w in whole]
    parts = []
    for start in range(0, n, batch_size):
        chunk = [None if a is None else a[start : start + batch_size] for a in arrays]
        real = min(batch_size, n - start)
        padded = [None if a is None else np.concatenate([a, a[:1].repeat(batch_size - real, 0)]) for a in chunk]
        parts.append([np.asarray(out)[:real] for out in program(*held, *padded)])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
