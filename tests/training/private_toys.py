"""A toy whose records have convolution gradients and noise of their own; and private steps of it without a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from training_toys import toy_config

from diffusion_privacy.training import sharding
from diffusion_privacy.training import state as states
from diffusion_privacy.training.privacy import Plan, Privacy
from diffusion_privacy.training.private_step import EXTRA, PrivateSteps
from diffusion_privacy.training.rng import per_record
from diffusion_privacy.training.secret import Secret

RECORDS = 11


@dataclasses.dataclass(frozen=True)
class ConvTask:
    """A convolution and a readout; the input noise is keyed by position, as every task does."""

    def init(self, key: Any, batch: Any) -> Any:
        a, b = jax.random.split(key)
        return {"kernel": jax.random.normal(a, (3, 3, 1, 2)), "out": jax.random.normal(b, (2,))}

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        keys = per_record(key, batch["position"])
        x = batch["image"] + 0.1 * jax.vmap(lambda k: jax.random.normal(k, batch["image"].shape[1:]))(keys)
        dims = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=dims)
        out = jnp.mean(jnp.tanh(h), axis=(1, 2)) @ params["out"]
        return (out - batch["y"]) ** 2, {"out": out}

    def evaluate(self, params: Any, batch: Any, key: Any) -> Any:
        return {}


@dataclasses.dataclass(frozen=True)
class PullTask:
    """Record i pulls coordinate i alone, as hard as it can: the worst records for privacy. ``strength`` 0: none."""

    size: int
    strength: float = 1e3

    def init(self, key: Any, batch: Any) -> Any:
        return {"w": jnp.zeros(self.size)}

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return -self.strength * jnp.take(params["w"], batch["position"]), {}

    def evaluate(self, params: Any, batch: Any, key: Any) -> Any:
        return {}


@dataclasses.dataclass(frozen=True)
class ToyRecords:
    """Records that can be fetched one by one, and in batches like `training_toys.ToyBatches`."""

    num_records: int = RECORDS
    batch_size: int = 4
    source: str = "toy"
    bad: int | None = None

    def gather(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(7)
        image = (3 * draw.standard_normal((self.num_records, 5, 5, 1))).astype(np.float32)
        if self.bad is not None:
            image[self.bad] = np.nan
        y = draw.standard_normal(self.num_records).astype(np.float32)
        return {"image": image[chosen], "y": y[chosen], "position": np.asarray(chosen, np.int32)}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return self.gather((step * self.batch_size + np.arange(self.batch_size)) % self.num_records)

    def state(self, step: int) -> dict[str, Any]:
        return {"step": step, "source": self.source, "records": self.num_records}

    def check(self, state: Mapping[str, Any]) -> int:
        assert state["source"] == self.source
        return state["step"]


def private_config(**changes: Any) -> Any:
    """Twelve private steps without warm-up; fields of `Privacy` go by ``p_NAME``."""
    privacy = {"noise_multiplier": 4.0, "clip_norm": 0.5, "micro_batch": 2, "delta": 1e-3}
    privacy |= {name[2:]: changes.pop(name) for name in list(changes) if name.startswith("p_")}
    config = toy_config(batch_size=4, warmup_steps=0, grad_clip_norm=0.0, privacy=Privacy(**privacy))
    return dataclasses.replace(config, **changes)


def plan_of(config: Any, source: ToyRecords) -> Plan:
    privacy = config.privacy
    q = config.batch_size / source.num_records
    return Plan(
        source.num_records, q, privacy.noise_multiplier, privacy.clip_norm, config.steps, privacy.delta,
        privacy.relation,
    )  # fmt: skip


@dataclasses.dataclass
class Bench:
    """Private steps outside of a run."""

    steps: PrivateSteps
    state: states.TrainState
    totals: dict[str, Any]

    def advance(self, step: int) -> dict[str, float]:
        """Makes one step; returns the metrics of it."""
        before = {name: float(value) for name, value in self.totals.items()}
        self.state, self.totals, signals = self.steps.advance(self.state, self.totals, step, 0)
        assert np.asarray(signals).tolist() == [0, 0]
        return {name: float(value) - before[name] for name, value in self.totals.items()}

    def gradient(self) -> Any:
        """The noised mean gradient of the last step; needs beta1 = 0, where Adam's first moment is the gradient."""
        found = [
            s.mu for s in jax.tree.leaves(self.state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
        ]
        return jax.tree.map(np.asarray, found[0])


def bench(
    task: Any, source: ToyRecords, config: Any, devices: int = 1, plan: Plan | None = None, key: bytes = b"k" * 32
):
    """A `Bench` on so many devices."""
    mesh = sharding.data_mesh(jax.devices()[:devices])
    optimizer = states.make_optimizer(config)
    state = jax.jit(lambda k: states.create(task, optimizer, k, source.batch(0)))(jax.random.key(0))
    metrics = jax.eval_shape(task.loss, state.params, source.batch(0), jax.random.key(0))[1]
    names = ["loss", "grad_norm", *sorted(metrics), *EXTRA]
    steps = PrivateSteps(
        task, source, config, mesh, np.asarray(jax.random.key_data(jax.random.key(5))), plan or plan_of(config, source),
        Secret(key, {}), state.params, names,
    )  # fmt: skip
    totals = sharding.put_replicated(dict.fromkeys(names, np.float32(0)), mesh)
    return Bench(steps, sharding.put_replicated(state, mesh), totals)
