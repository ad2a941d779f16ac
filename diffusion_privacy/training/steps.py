"""One update on the mesh: the mean gradient of a batch, each device taking its share of the rows (and, where the config
splits the state, its part of the parameters).

`private_step` has the private one; both are engines of `loop.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from diffusion_privacy.training import convolutions, rng, sharding
from diffusion_privacy.training import state as states
from diffusion_privacy.training.partition import Partition
from diffusion_privacy.training.programs import kept
from diffusion_privacy.training.sharding import REPLICATED, SHARDED
from diffusion_privacy.training.state import TrainConfig, TrainState
from diffusion_privacy.types import Array, PyTree, Task


class BatchSource(Protocol):
    """Where batches come from: a function of the step alone, the same on every process (`data.pipeline.Batches`)."""

    @property
    def batch_size(self) -> int:
        """Rows of every batch, over all devices."""
        ...

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Arrays with ``batch_size`` rows for step 0, 1, …; an optional ``mask`` float32[B] is 0 for padding."""
        ...

    def state(self, step: int) -> dict[str, Any]:
        """JSON for a checkpoint: where the stream stands before ``step``, and what it is a stream of."""
        ...

    def check(self, state: Mapping[str, Any]) -> int:
        """The step of a saved `state`; raises InputError where it is of another stream."""
        ...


@runtime_checkable
class RowSource(Protocol):
    """A `BatchSource` that can read a part of a batch: each process then reads what its devices get and no more."""

    def rows(self, step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """These rows, int [R], of ``batch(step)``, which has no mask."""
        ...


class Engine(Protocol):
    """How the state advances: `PlainSteps`, or `private_step.PrivateSteps`."""

    def advance(
        self, state: TrainState, totals: dict[str, Array], step: int, stop: int
    ) -> tuple[TrainState, dict[str, Array], Array]:
        """Update number ``step``; ``state`` and ``totals`` are donated. See `make_step` for the rest."""
        ...

    def describe(self, step: int) -> dict[str, float]:
        """Further columns of a row of metrics after ``step`` updates."""
        ...

    def progress(self, step: int) -> dict[str, Any]:
        """Further JSON of a checkpoint after ``step`` updates."""
        ...


@kept
def make_step(task: Task, config: TrainConfig, mesh: Mesh, parts: Partition) -> Callable[..., Any]:
    """The compiled update of a state that lies on the mesh as ``parts`` says.

    Returns:
      ``step(state, totals, key_data, batch, mask, stop) -> (state, totals, signals)``. ``totals`` are running sums of
      the metrics; ``key_data`` is the run's step stream before the step is folded in; ``stop`` int32[B] is non-zero on
      the rows of a process that wants to stop; ``signals`` int32[2] says whether any does and whether this step's loss
      or gradient was not finite. ``state`` and ``totals`` are donated.
    """
    optimizer = states.make_optimizer(config, parts.norm)

    def step(
        state: TrainState, totals: dict[str, Array], key_data: Array, batch: PyTree, mask: Array, stop: Array
    ) -> tuple[TrainState, dict[str, Array], Array]:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=rng.LAW), state.step)
        count = jax.lax.psum(jnp.sum(mask), sharding.DATA)
        share, grads = _sum_gradients(task, parts, state.params, batch, mask, key, count, config.micro_batches)
        loss, metrics = jax.lax.psum(share, sharding.DATA)
        grads = parts.sum_gradients(grads)
        grad_norm = parts.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = states.update_ema(state.ema_params, params, states.ema_decay(config, state.step))
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        signals = jnp.stack([jax.lax.psum(jnp.sum(stop), sharding.DATA), bad.astype(jnp.int32)])
        row = {"loss": loss, "grad_norm": grad_norm, **metrics}
        totals = {name: totals[name] + row[name] for name in totals}
        return TrainState(state.step + 1, params, ema, opt_state), totals, signals

    specs = (parts.specs, REPLICATED, REPLICATED, SHARDED, SHARDED, SHARDED)
    outs = (parts.specs, REPLICATED, REPLICATED)
    library = config.convolutions
    return sharding.data_parallel(step, mesh, in_specs=specs, out_specs=outs, donate=(0, 1), convolutions=library)


class PlainSteps:
    """Updates by the mean gradient of each batch."""

    def __init__(
        self, task: Task, batches: BatchSource, config: TrainConfig, parts: Partition, key_data: np.ndarray
    ) -> None:
        mesh = parts.mesh
        self._batches, self._mesh, self._pieces = batches, mesh, mesh.size * config.micro_batches
        self._size = config.batch_size
        self._update = make_step(task, config, mesh, parts)
        self._key_data = sharding.put_replicated(key_data, mesh)

    def advance(
        self, state: TrainState, totals: dict[str, Array], step: int, stop: int
    ) -> tuple[TrainState, dict[str, Array], Array]:
        count, local, mask = self._local(step)
        asked = np.full(mask.shape, int(stop != 0), np.int32)
        return self._update(state, totals, self._key_data, *sharding.put_rows((local, mask, asked), count, self._mesh))

    def _local(self, step: int) -> tuple[int, dict[str, np.ndarray], np.ndarray]:
        """Rows of the padded batch over all processes; those of this one, and their mask (see `sharding.pad_batch`)."""
        if isinstance(self._batches, RowSource):
            count = -(-self._size // self._pieces) * self._pieces
            rows = sharding.local_rows(count, self._mesh)
            local = self._batches.rows(step, np.minimum(rows, self._size - 1))
            return count, local, (rows < self._size).astype(np.float32)
        padded, mask = sharding.pad_batch(self._batches.batch(step), self._pieces)
        rows = sharding.local_rows(len(mask), self._mesh)
        return len(mask), {name: value[rows] for name, value in padded.items()}, mask[rows]

    def describe(self, step: int) -> dict[str, float]:
        return {}

    def progress(self, step: int) -> dict[str, Any]:
        return {}


def _sum_gradients(
    task: Task, parts: Partition, params: PyTree, batch: PyTree, mask: Array, key: Array, count: Array, pieces: int
) -> tuple[tuple[Array, dict[str, Array]], PyTree]:
    """This device's share of ``((loss, metrics), gradient)``; shares of all devices add up to the means.

    Of parameters that are split over devices the gradient is that of this device's part, summed over devices already.
    """

    def mean(values: Array, mask: Array) -> Array:
        # `where` and not only a product: 0 times a non-finite loss of padding would not be 0.
        return jnp.sum(jnp.where(mask > 0, values.astype(jnp.float32) * mask, 0.0)) / count

    def share(params: PyTree, batch: PyTree, mask: Array) -> tuple[Array, dict[str, Array]]:
        with convolutions.for_training(in_loop=pieces > 1):
            losses, metrics = task.loss(parts.gather(params), batch, key)
        return mean(losses, mask), {name: mean(value, mask) for name, value in metrics.items()}

    gradient = jax.value_and_grad(share, has_aux=True)
    if pieces == 1:
        return gradient(params, batch, mask)
    split = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), (batch, mask))
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], split)))

    def add(total: PyTree, piece: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(params, *piece)), None

    return jax.lax.scan(add, zero, split)[0]


def metric_names(task: Task, params: PyTree, batch: PyTree, key: Array, size: int) -> list[str]:
    """Names of the logged sums; also checks what the task's loss returns, before anything is compiled."""
    losses, metrics = jax.eval_shape(task.loss, params, batch, key)
    rows = (size,)
    for name, value in {"loss": losses, **metrics}.items():
        if value.shape != rows:
            raise ValueError(f"task.loss must return per-example values of shape {rows}, {name!r} has {value.shape}")
    return ["loss", "grad_norm", *sorted(metrics)]
