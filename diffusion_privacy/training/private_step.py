"""One step of private training on the mesh, for any task: gradients clipped record by record, summed, noised.

A Poisson draw has no fixed size. It goes through one compiled program in pieces of a fixed one, as many as it takes,
the last padded and masked: nothing is truncated, nothing compiles twice, and no gradient of a convolution stands inside
a scan. A second program sums over devices, adds the noise and makes the update.

What a record may move, and what it may not:

- A record's gradient comes from a batch that holds this record alone, and the record's own number is its ``position``,
  to which tasks key their draws: no other record, drawn or not, changes it. A place in the batch would do just that.
- Parameters are initialised from a batch of zeros.
- A gradient that is not finite counts as zero, and a loss that is not finite stops nothing: both would tell of a
  record.
- Logged losses and clipped shares are averages over private records WITHOUT noise: like the secret they stay in the
  workdir. The guarantee is for the parameters, their average and the optimizer's moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import convolutions, privacy, rng, sharding
from diffusion_privacy.training import state as states
from diffusion_privacy.training.gradients import add_exactly, clip_one, noised_mean
from diffusion_privacy.training.privacy import Plan
from diffusion_privacy.training.programs import kept
from diffusion_privacy.training.secret import Secret
from diffusion_privacy.training.sharding import REPLICATED, SHARDED
from diffusion_privacy.training.state import TrainConfig, TrainState
from diffusion_privacy.types import Array, PyTree, Task

EXTRA = ("clipped", "sampled")
"""Logged besides the task's own metrics: share of drawn records whose gradient was shortened, number drawn."""


@runtime_checkable
class RecordSource(Protocol):
    """Batches whose records can be fetched one by one (`data.pipeline.Batches`)."""

    @property
    def num_records(self) -> int:
        """n."""
        ...

    def gather(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of these records, int [R] in 0 … n − 1; ``position`` is the record's own number."""
        ...


class Carry(NamedTuple):
    """What has been summed of a step so far, one part a device, ``[devices, ...]``: clipped gradients, what rounding
    took from them (`gradients.add_exactly`), and metrics."""

    gradients: PyTree
    lost: PyTree
    metrics: dict[str, Array]


def record_gradient(
    task: Task, params: PyTree, record: PyTree, key: Array, augmentations: int
) -> tuple[PyTree, dict[str, Array]]:
    """Gradient and metrics of ONE record (fields without a batch axis), averaged over the task's draws."""
    batch = jax.tree.map(lambda field: field[None], record)

    def mean(params: PyTree) -> tuple[Array, dict[str, Array]]:
        if augmentations == 1:
            losses, metrics = task.loss(params, batch, key)
        else:
            keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(augmentations))
            losses, metrics = jax.vmap(lambda k: task.loss(params, batch, k))(keys)
        return jnp.mean(losses.astype(jnp.float32)), {k: jnp.mean(v) for k, v in {"loss": losses, **metrics}.items()}

    with convolutions.for_training():
        return jax.grad(mean, has_aux=True)(params)


def clipped_sum(
    task: Task, params: PyTree, batch: PyTree, mask: Array, key: Array, *, clip_norm: float, augmentations: int
) -> tuple[PyTree, dict[str, Array]]:
    """Σᵢ maskᵢ·clip(gᵢ) over the rows of a batch, and the sums of their metrics. All rows are in memory at once."""

    def one(record: PyTree, weight: Array) -> tuple[PyTree, dict[str, Array]]:
        gradient, metrics = record_gradient(task, params, record, key, augmentations)
        clipped, shortened = clip_one(gradient, clip_norm)
        metrics = {**metrics, "clipped": shortened, "sampled": jnp.float32(1)}
        kept = {k: jnp.where((weight > 0) & jnp.isfinite(v), v.astype(jnp.float32), 0.0) for k, v in metrics.items()}
        return jax.tree.map(lambda leaf: jnp.where(weight > 0, leaf, 0.0), clipped), kept

    rows = jax.vmap(one)(batch, mask)
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), rows)


class PrivateSteps:
    """Private updates of a run; an engine of `loop.train`.

    Args:
      task: per-record losses.
      source: its records.
      config: with ``privacy`` on.
      mesh: devices.
      key_data: the run's step stream, for the task's own draws, which need not be secret.
      plan: what was promised.
      secret: sampling and noise.
      params: the parameters' layout.
      names: of the logged sums.
    """

    def __init__(
        self,
        task: Task,
        source: RecordSource,
        config: TrainConfig,
        mesh: Mesh,
        key_data: np.ndarray,
        plan: Plan,
        secret: Secret,
        params: PyTree,
        names: list[str],
    ) -> None:
        self._source, self._config, self._mesh, self.plan, self._secret = source, config, mesh, plan, secret
        self._key_data = sharding.put_replicated(key_data, mesh)
        self._scale = sharding.put_replicated(np.float32(plan.noise_multiplier * plan.clip_norm), mesh)
        self._rows = config.privacy.micro_batch * mesh.size
        self._local = sharding.local_rows(self._rows, mesh)
        self._leaves = len(jax.tree.leaves(params))
        self.accumulate = _accumulate(task, config, mesh)
        self.finish = _finish(config, mesh)
        summed = [name for name in names if name != "grad_norm"]
        sums: PyTree = dict.fromkeys(summed, np.zeros(mesh.size, np.float32))
        # Two sets of zeros: both are donated.
        zeros, again = (
            jax.tree.map(lambda leaf: np.zeros((mesh.size, *leaf.shape), np.float32), params) for _ in range(2)
        )
        self._carry = sharding.put_batch(Carry(zeros, again, sums), mesh)

    def advance(
        self, state: TrainState, totals: dict[str, Array], step: int, stop: int
    ) -> tuple[TrainState, dict[str, Array], Array]:
        """Step number ``step``; see `steps.make_step` for what comes back."""
        plan = self.plan
        chosen = self._secret.sample(step, plan.records, plan.sampling_probability)
        carry = self._carry
        for start in range(0, len(chosen), self._rows):
            part = chosen[start : start + self._rows]
            mask = (self._local < len(part)).astype(np.float32)
            padded = np.concatenate([part, np.zeros(self._rows - len(part), part.dtype)])
            # Each process fetches the records of its own devices.
            local = (self._source.gather(padded[self._local]), mask)
            rows = sharding.put_rows(local, self._rows, self._mesh)
            carry = self.accumulate(state.params, state.step, carry, self._key_data, *rows)
        keys = sharding.put_replicated(self._secret.noise_keys(step, self._leaves), self._mesh)
        asked = sharding.put_batch(np.full(self._mesh.size, int(stop != 0), np.int32), self._mesh)
        state, totals, self._carry, signals = self.finish(state, totals, carry, keys, self._scale, asked)
        return state, totals, signals

    def describe(self, step: int) -> dict[str, float]:
        """ε after ``step`` steps, in nats, at the plan's δ under its relation."""
        return {"epsilon": self.plan.epsilon(step)}

    def progress(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps: the plan, what is spent, and which secret it was."""
        spent = {"steps_done": step, "epsilon_so_far": self.plan.epsilon(step)}
        return {"privacy": {**self.plan.to_json(), **spent, "secret_fingerprint": self._secret.fingerprint}}


@kept
def _accumulate(task: Task, config: TrainConfig, mesh: Mesh) -> Any:
    options = config.privacy

    def accumulate(params: PyTree, step: Array, carry: Carry, key_data: Array, batch: PyTree, mask: Array) -> Carry:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=rng.LAW), step)
        found = clipped_sum(
            task, params, batch, mask, key, clip_norm=options.clip_norm, augmentations=options.augmentations
        )
        gradients, metrics = jax.tree.map(lambda new: new[None], found)
        total, lost = add_exactly(carry.gradients, carry.lost, gradients)
        return Carry(total, lost, jax.tree.map(jnp.add, carry.metrics, metrics))

    specs = (REPLICATED, REPLICATED, SHARDED, REPLICATED, SHARDED, SHARDED)
    library = config.convolutions
    return sharding.data_parallel(
        accumulate, mesh, in_specs=specs, out_specs=SHARDED, donate=(2,), convolutions=library
    )


@kept
def _finish(config: TrainConfig, mesh: Mesh) -> Any:
    optimizer = states.make_optimizer(config)

    def finish(
        state: TrainState, totals: dict[str, Array], carry: Carry, keys: Array, scale: Array, stop: Array
    ) -> tuple[TrainState, dict[str, Array], Carry, Array]:
        whole = jax.tree.map(jnp.add, carry.gradients, carry.lost)
        gradients, metrics = jax.lax.psum(jax.tree.map(lambda part: part[0], (whole, carry.metrics)), sharding.DATA)
        # After the sum over devices and from keys that all of them share: noise is added once.
        mean = noised_mean(gradients, keys, scale, float(config.batch_size))
        updates, opt_state = optimizer.update(mean, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = states.update_ema(state.ema_params, params, states.ema_decay(config, state.step))
        grad_norm = optax.tree.norm(mean)
        # Only noised numbers may stop a run.
        bad = ~(jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(params)))
        signals = jnp.stack([jax.lax.psum(jnp.sum(stop), sharding.DATA), bad.astype(jnp.int32)])
        count = metrics["sampled"]
        row = {name: value / jnp.maximum(count, 1.0) for name, value in metrics.items()}
        row = {**row, "sampled": count, "grad_norm": grad_norm}
        totals = {name: totals[name] + row[name] for name in totals}
        return TrainState(state.step + 1, params, ema, opt_state), totals, jax.tree.map(jnp.zeros_like, carry), signals

    specs = (REPLICATED, REPLICATED, SHARDED, REPLICATED, REPLICATED, SHARDED)
    outs = (REPLICATED, REPLICATED, SHARDED, REPLICATED)
    library = config.convolutions
    return sharding.data_parallel(finish, mesh, in_specs=specs, out_specs=outs, donate=(0, 1, 2), convolutions=library)


def require_source(batches: object) -> RecordSource:
    """``batches`` as a source of single records; InputError where it is none."""
    if not isinstance(batches, RecordSource):
        raise InputError(
            "training.privacy: expected a stream whose batches are made of single records, each drawn by itself; "
            "this task's batches are not"
        )
    return batches


def make_plan(config: TrainConfig, source: RecordSource, stored: Mapping[str, Any] | None) -> Plan:
    """The plan of a run: what its checkpoint says, or a new one.

    A stored one is not calibrated again: another version of the accountant might find another noise.
    """
    if stored is not None:
        return privacy.from_json(stored)
    return privacy.make_plan(
        config.privacy, records=source.num_records, batch_size=config.batch_size, steps=config.steps
    )
