"""What a training run is made of: its settings, its state, its optimizer and its moving average."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import partition
from diffusion_privacy.training.platform import CONVOLUTIONS
from diffusion_privacy.training.privacy import Privacy
from diffusion_privacy.types import Array, PyTree, Task

SCHEDULES = ("constant", "cosine")


class TrainState(NamedTuple):
    """Everything that training changes; a pytree of arrays without keys or functions.

    Attributes:
      step: number of updates made so far, int32 scalar. The next one uses ``batches.batch(step)``.
      params: what the optimizer moves.
      ema_params: exponential moving average of ``params``, same structure; what every later stage reads.
      opt_state: the optimizer's moments and its own count.
    """

    step: Array
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run. Durations are in steps.

    Attributes:
      steps: updates in the whole run.
      batch_size: examples in an update, over all devices of all hosts.
      learning_rate: Adam's step length after warm-up.
      warmup_steps: the rate rises linearly over this many steps; 0 for none.
      schedule: ``"constant"``, or ``"cosine"`` down to 0 at ``steps``.
      weight_decay: decoupled (AdamW), on parameters with two or more axes; 0 gives Adam.
      beta1, beta2: Adam's decay rates, in [0, 1).
      grad_clip_norm: the global norm of the summed gradient is clipped to this; 0 for no clipping.
      ema_decay: in [0, 1); 0 makes the average equal to the parameters.
      ema_warmup: use min(ema_decay, (1 + step) / (10 + step)), so that a short run forgets its initialisation.
      micro_batches: each device handles its share in this many pieces, one after the other, to save memory.
      sharding: rules by which the state is split over devices, see `partition`; none keeps it whole on each.
      convolutions: which library convolves on a CPU, a name of `platform.CONVOLUTIONS`; elsewhere nothing changes.
        ``onednn`` trains networks of 32 channels or more a few percent faster, but what it compiles cannot be kept.
      log_every: steps between rows of metrics (averages over these steps).
      eval_every: steps between calls of ``eval_fn``; 0 for never.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep: number of latest checkpoints kept.
      tensorboard: write TensorBoard files besides the CSV.
      privacy: DP-SGD, off by default. ``batch_size`` is then the number of records that a step draws on average.

    Raises:
      InputError: a field is out of range.
    """

    steps: int
    batch_size: int
    learning_rate: float = 2e-4
    warmup_steps: int = 0
    schedule: str = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    grad_clip_norm: float = 1.0
    ema_decay: float = 0.999
    ema_warmup: bool = True
    micro_batches: int = 1
    sharding: tuple[str, ...] = ()
    convolutions: str = "default"
    log_every: int = 100
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep: int = 2
    tensorboard: bool = True
    privacy: Privacy = dataclasses.field(default_factory=Privacy)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batches", "log_every", "checkpoint_every", "keep"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_steps", "eval_every"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("weight_decay", "grad_clip_norm"):
            value = getattr(self, name)
            _require(self, name, math.isfinite(value) and value >= 0, "a finite number, at least 0")
        for name in ("beta1", "beta2", "ema_decay"):
            _require(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        _require(self, "learning_rate", 0 < self.learning_rate < math.inf, "a finite positive number")
        _require(self, "schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        _require(self, "convolutions", self.convolutions in CONVOLUTIONS, f"one of {', '.join(CONVOLUTIONS)}")
        _require(self, "warmup_steps", self.warmup_steps <= self.steps, f"at most steps = {self.steps}")
        for rule in self.sharding:
            partition.parse(rule)
        # Clipped gradients of single records are summed whole on each device.
        _require(self, "sharding", not (self.sharding and self.privacy.on), "empty in private training")
        whole = self.micro_batches == 1 or not self.privacy.on
        _require(self, "micro_batches", whole, "1 in private training, where privacy.micro_batch says it")


def _require(config: TrainConfig, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise InputError(f"training.{name} must be {expected}, got {getattr(config, name)!r}")


# Changing one of these does not change the numbers that training computes, so a checkpoint may be gone on with with
# others. (A workdir of `launch.py` is bound to all of its config but what `stages.workdir` names.)
_BOOKKEEPING = ("log_every", "eval_every", "checkpoint_every", "keep", "tensorboard", "sharding")


def identity(config: TrainConfig, seed: int, name: str) -> dict[str, object]:
    """The fields that decide what a run computes, as flat JSON values; a checkpoint of others is refused."""
    fields = {f"training.{k}": v for k, v in dataclasses.asdict(config).items() if k not in (*_BOOKKEEPING, "privacy")}
    if config.privacy.on:
        fields |= {f"training.privacy.{k}": v for k, v in dataclasses.asdict(config.privacy).items()}
    return {**fields, "seed": seed, "name": name}


def learning_rate_schedule(config: TrainConfig) -> Callable[[Array], Array]:
    """Learning rate of step k = 0, 1, …, steps − 1.

    Warm-up is (k + 1) / warmup_steps of the full rate, so that the first step is not lost to a rate of zero. The
    cosine (Loshchilov & Hutter, arXiv 1608.03983, eq. 5, one cycle to zero) starts where the warm-up ends.
    """
    warmup, span = config.warmup_steps, max(config.steps - config.warmup_steps, 1)

    def rate(step: Array) -> Array:
        k = jnp.asarray(step, jnp.float32)
        value = jnp.minimum(1.0, (k + 1) / max(warmup, 1))
        if config.schedule == "cosine":
            done = jnp.clip((k - warmup) / span, 0.0, 1.0)
            value = value * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return config.learning_rate * value

    return rate


def make_optimizer(
    config: TrainConfig, norm: Callable[[PyTree], Array] = optax.tree.norm
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW (Adam where weight_decay is 0) with the run's schedule.

    Args:
      config: the settings.
      norm: of a gradient; where a device holds a part of it, one that knows the others'.
    """
    adam = optax.adamw(
        learning_rate_schedule(config),
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )
    if config.grad_clip_norm == 0:
        return adam
    return optax.chain(partition.clip_by_norm(config.grad_clip_norm, norm), adam)


def ema_decay(config: TrainConfig, step: Array) -> Array:
    """Decay of the average at step k = 0, 1, …: min(ema_decay, (1 + k) / (10 + k)) with warm-up, else ema_decay."""
    if not config.ema_warmup:
        return jnp.float32(config.ema_decay)
    k = jnp.asarray(step, jnp.float32)
    return jnp.minimum(config.ema_decay, (1 + k) / (10 + k))


def update_ema(ema_params: PyTree, params: PyTree, decay: Array) -> PyTree:
    """decay · ema + (1 − decay) · params, leaf by leaf, in the average's own dtype."""
    return jax.tree.map(lambda e, p: (decay * e + (1 - decay) * p).astype(e.dtype), ema_params, params)


def create(task: Task, optimizer: optax.GradientTransformation, key: Array, batch: PyTree) -> TrainState:
    """The state before the first step. Traceable: under `jax.eval_shape` it gives the layout without any work."""
    params = task.init(key, batch)
    return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))
