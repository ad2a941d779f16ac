"""Small tasks and batches whose training takes milliseconds; also the script that subprocess tests run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.training.loop import TrainConfig
from diffusion_privacy.training.rng import per_record


@dataclasses.dataclass(frozen=True)
class ToyTask:
    """A two-layer regression with noise on its inputs, drawn for each position as every task does."""

    width: int = 8

    def init(self, key: Any, batch: Any) -> Any:
        a, b = jax.random.split(key)
        inner, outer = batch["x"].shape[1], batch["y"].shape[1]
        return {
            "first": {"kernel": jax.random.normal(a, (inner, self.width)) / 2, "bias": jnp.zeros(self.width)},
            "second": {"kernel": jax.random.normal(b, (self.width, outer)) / 2, "bias": jnp.zeros(outer)},
        }

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        keys = per_record(key, batch["position"])
        x = batch["x"] + 0.1 * jax.vmap(lambda k: jax.random.normal(k, batch["x"].shape[1:]))(keys)
        hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
        error = hidden @ params["second"]["kernel"] + params["second"]["bias"] - batch["y"]
        return jnp.sum(error**2, axis=1), {"absolute": jnp.sum(jnp.abs(error), axis=1)}

    def evaluate(self, params: Any, batch: Any, key: Any) -> Any:
        losses, _ = self.loss(params, batch, key)
        return {"loss": losses}


@dataclasses.dataclass(frozen=True)
class SlopeTask:
    """Loss w·1: its gradient is constant, so Adam moves every weight by exactly −learning_rate a step."""

    def init(self, key: Any, batch: Any) -> Any:
        return {"w": jnp.zeros(3)}

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return jnp.sum(params["w"]) * jnp.ones(batch["x"].shape[0]), {}

    def evaluate(self, params: Any, batch: Any, key: Any) -> Any:
        return {}


@dataclasses.dataclass(frozen=True)
class ToyBatches:
    """Batch k is a function of k. From step ``poison`` on, one input of every batch is NaN."""

    batch_size: int = 8
    poison: int | None = None
    source: str = "toy"

    def batch(self, step: int) -> dict[str, np.ndarray]:
        draw = np.random.default_rng([7, step])
        x = draw.standard_normal((self.batch_size, 4)).astype(np.float32)
        if self.poison is not None and step >= self.poison:
            x[self.batch_size // 2, 1] = np.nan
        y = np.stack([x[:, 0] * x[:, 1], np.sin(x[:, 2])], axis=1)
        return {"x": x, "y": y, "position": np.arange(self.batch_size, dtype=np.int32)}

    def state(self, step: int) -> dict[str, Any]:
        return {"step": step, "source": self.source}

    def check(self, state: Mapping[str, Any]) -> int:
        if state["source"] != self.source:
            raise InputError(f"checkpointed data state: source was {state['source']!r}, is {self.source!r}")
        return state["step"]


def toy_config(**changes: Any) -> TrainConfig:
    """Twelve short steps with everything switched on except TensorBoard."""
    base = TrainConfig(
        steps=12,
        batch_size=8,
        learning_rate=1e-2,
        warmup_steps=3,
        schedule="cosine",
        weight_decay=0.01,
        grad_clip_norm=1.0,
        ema_decay=0.9,
        log_every=4,
        checkpoint_every=100,
        tensorboard=False,
    )
    return dataclasses.replace(base, **changes)


def summaries(folder: Path) -> list[tuple[int, Any]]:
    """(step, value) of everything in the one TensorBoard file that is in ``folder``, in its order."""
    from tensorboardX.proto.event_pb2 import Event

    [path] = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        # Each record: its length, a checksum of that, itself, a checksum.
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, value) for value in event.summary.value]
        data = data[16 + size :]
    return found


def to_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
