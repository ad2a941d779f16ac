"""The conditional flow of the paper's MNIST shape, 5.3 million parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.job import Job, first_call
from benchmarks.shapes import FLOW_BATCH, FLOW_IMAGES, images
from benchmarks.update import Update
from diffusion_privacy.flows import cinn, objective
from diffusion_privacy.flows.cinn import PRESETS, FlowConfig
from diffusion_privacy.flows.objective import FlowModel, flow_model
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism
from diffusion_privacy.mechanisms.release import noised
from diffusion_privacy.stages import operations
from diffusion_privacy.tasks import FlowTask
from diffusion_privacy.training.state import TrainConfig
from diffusion_privacy.types import PyTree

MNIST = PRESETS["mnist"]


def random_params(model: FlowModel) -> PyTree:
    """Numpy parameters of a flow that is not the identity and still inverts: last layers small, the rest He-normal."""
    layout = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key != "kernel":
            return np.zeros(leaf.shape, np.float32)
        last = path[-2].key.endswith("_2")
        scale = 0.01 if last else math.sqrt(2 / math.prod(leaf.shape[1:-1]))
        return (scale * rng.standard_normal(leaf.shape, np.float32)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, layout)


@functools.cache
def _model(config: FlowConfig = MNIST) -> FlowModel:
    return flow_model(config, "label", "affine", 256)


def _flops(model: FlowModel) -> float:
    """Of one record, forward; the inverse costs the same. Those of plain convolutions, whatever form they have here."""
    layout = jax.eval_shape(model.init, jax.random.key(0))
    record, cond = jnp.zeros((1, *model.bijection.shape)), jnp.zeros((1, model.cond_dim))
    return operations.count(cinn.plain_form(model.bijection).forward, layout, record, cond)


def train_step(config: FlowConfig, batch: int, micro: int) -> Update:
    """One update."""
    model = flow_model(config, "label", "affine", 256)
    training = TrainConfig(steps=1_000_000, batch_size=batch, learning_rate=1e-6, micro_batches=micro)
    image, label = images(batch)
    rows = {"image": image, "label": label, "position": np.arange(batch, dtype=np.int32)}
    return Update(FlowTask(model), training, random_params(model), rows, ("bits_per_dim",))


def _train(batch: int) -> Job:
    run = train_step(MNIST, batch, max(1, batch // (8 * jax.device_count())))
    compile_s = first_call(run)
    facts = {"parameters": run.parameters, "batch": batch, "first_call_s": compile_s, "devices": jax.device_count()}
    return Job(run, batch, 3 * batch * _flops(_model()), facts)


def _encode() -> Job:
    model, (image, label) = _model(), images(FLOW_IMAGES)
    params, cond = jax.tree.map(jnp.asarray, random_params(model)), objective.one_hot(label, 10, "labels")
    key = jax.random.key(0)
    run = functools.partial(objective.encode, model, params, image, cond, key)
    return Job(run, FLOW_IMAGES, FLOW_IMAGES * _flops(model), {"first_call_s": first_call(run)})


def _decode() -> Job:
    model, (_, label) = _model(), images(FLOW_IMAGES)
    params, cond = jax.tree.map(jnp.asarray, random_params(model)), objective.one_hot(label, 10, "labels")
    z = np.random.default_rng(2).standard_normal((FLOW_IMAGES, model.dims), np.float32)
    run = functools.partial(objective.decode, model, params, z, cond)
    return Job(run, FLOW_IMAGES, FLOW_IMAGES * _flops(model), {"first_call_s": first_call(run)})


def _privatise() -> Job:
    """Encode, clip, add fresh noise (float32, keys from the operating system), decode."""
    model, (image, label) = _model(), images(FLOW_IMAGES)
    params, cond = jax.tree.map(jnp.asarray, random_params(model)), objective.one_hot(label, 10, "labels")
    mechanism, key = GaussianMechanism(clip_norm=28.0, sigma=1.0), jax.random.key(0)

    def run() -> np.ndarray:
        z, _ = objective.encode(model, params, image, cond, key)
        return objective.decode(model, params, noised(mechanism, jnp.asarray(z)) / 1.4, cond)

    return Job(run, FLOW_IMAGES, 2 * FLOW_IMAGES * _flops(model), {"first_call_s": first_call(run)})


JOBS: dict[str, Callable[[], Job]] = {
    "train_64": functools.partial(_train, FLOW_BATCH),
    "train_512": functools.partial(_train, 512),
    "encode": _encode,
    "decode": _decode,
    "privatise": _privatise,
}
