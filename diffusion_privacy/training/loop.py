"""The one training loop. It owns devices, averaging, clipping, checkpoints, metrics, progress and interruption; a
task owns only its mathematics.

The step: each device computes Σᵢ lossᵢ maskᵢ / N over its rows, N being the real examples of the whole batch;
gradients are summed over devices, clipped by their global norm, and every device makes the same update. How many
devices there are changes the result by rounding only.
"""

from __future__ import annotations

import collections
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from diffusion_privacy.errors import DivergenceError, InputError
from diffusion_privacy.training import rng, sharding
from diffusion_privacy.training import state as states
from diffusion_privacy.training.checkpoint import Checkpoints
from diffusion_privacy.training.metrics import MetricsWriter, Progress
from diffusion_privacy.training.sharding import REPLICATED, SHARDED
from diffusion_privacy.training.state import TrainConfig, TrainState
from diffusion_privacy.types import Array, PyTree, Task

__all__ = ["BatchSource", "Preempted", "TrainConfig", "TrainState", "make_step", "train"]

_LOG = logging.getLogger(__name__)

Batch = Mapping[str, np.ndarray]
OnLog = Callable[[int, dict[str, float]], None]
EvalFn = Callable[[TrainState], Mapping[str, float]]


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


class Preempted(RuntimeError):
    """Training was asked to stop by a signal, has saved its state, and goes on at the next start.

    Attributes:
      step: updates that were made and saved.
      signal_number: which signal was received; 0 when another process of the job received it.
    """

    def __init__(self, name: str, step: int, signal_number: int) -> None:
        cause = signal.Signals(signal_number).name if signal_number else "a signal to another process"
        super().__init__(f"training {name!r} stopped by {cause} after step {step} and saved; start it again to go on")
        self.step = step
        self.signal_number = signal_number


def make_step(task: Task, config: TrainConfig, mesh: Mesh) -> Callable[..., Any]:
    """The compiled update.

    Returns:
      ``step(state, totals, key_data, batch, mask, stop) -> (state, totals, signals)``. ``totals`` are running sums of
      the metrics; ``key_data`` is the run's step stream before the step is folded in; ``stop`` int32[B] is non-zero on
      the rows of a process that wants to stop; ``signals`` int32[2] says whether any does and whether this step's loss
      or gradient was not finite. ``state`` and ``totals`` are donated.
    """
    optimizer = states.make_optimizer(config)

    def step(
        state: TrainState, totals: dict[str, Array], key_data: Array, batch: PyTree, mask: Array, stop: Array
    ) -> tuple[TrainState, dict[str, Array], Array]:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), state.step)
        count = jax.lax.psum(jnp.sum(mask), sharding.DATA)
        share = _sum_gradients(task, state.params, batch, mask, key, count, config.micro_batches)
        (loss, metrics), grads = jax.lax.psum(share, sharding.DATA)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = states.update_ema(state.ema_params, params, states.ema_decay(config, state.step))
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        signals = jnp.stack([jax.lax.psum(jnp.sum(stop), sharding.DATA), bad.astype(jnp.int32)])
        row = {"loss": loss, "grad_norm": grad_norm, **metrics}
        totals = {name: totals[name] + row[name] for name in totals}
        return TrainState(state.step + 1, params, ema, opt_state), totals, signals

    specs = (REPLICATED, REPLICATED, REPLICATED, SHARDED, SHARDED, SHARDED)
    return sharding.data_parallel(step, mesh, in_specs=specs, out_specs=REPLICATED, donate=(0, 1))


def _sum_gradients(
    task: Task, params: PyTree, batch: PyTree, mask: Array, key: Array, count: Array, pieces: int
) -> tuple[tuple[Array, dict[str, Array]], PyTree]:
    """This device's share of ``((loss, metrics), gradient)``; shares of all devices add up to the means."""

    def mean(values: Array, mask: Array) -> Array:
        # `where` and not only a product: 0 times a non-finite loss of padding would not be 0.
        return jnp.sum(jnp.where(mask > 0, values.astype(jnp.float32) * mask, 0.0)) / count

    def share(params: PyTree, batch: PyTree, mask: Array) -> tuple[Array, dict[str, Array]]:
        losses, metrics = task.loss(params, batch, key)
        return mean(losses, mask), {name: mean(value, mask) for name, value in metrics.items()}

    gradient = jax.value_and_grad(share, has_aux=True)
    if pieces == 1:
        return gradient(params, batch, mask)
    split = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), (batch, mask))
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], split)))

    def add(total: PyTree, piece: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(params, *piece)), None

    return jax.lax.scan(add, zero, split)[0]


def train(
    task: Task,
    batches: BatchSource,
    config: TrainConfig,
    *,
    workdir: Path,
    seed: int,
    name: str,
    identity: Mapping[str, object] | None = None,
    on_log: OnLog | None = None,
    eval_fn: EvalFn | None = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """Trains to ``config.steps``, going on from the latest checkpoint in ``workdir``; no work when it is finished.

    Writes ``workdir/checkpoints``, ``workdir/metrics.csv`` (one row every ``log_every`` steps: averages over them) and
    ``workdir/tensorboard``. A resumed run computes what an uninterrupted one would have, bit for bit on CPU.

    Args:
      task: initial parameters and per-example losses.
      batches: batch k feeds step k = 0, 1, …; their size must be ``config.batch_size``.
      config: the settings.
      workdir: created if needed.
      seed: the run's seed.
      name: names the run's random streams and its lines of progress.
      identity: flat JSON fields of the caller (network, data) that a checkpoint must share, besides the
        training settings, the seed and the name.
      on_log: called with (updates made, row) whenever a row is written, on every process.
      eval_fn: called every ``eval_every`` steps with the state; its numbers are logged as ``eval/<name>``.
      mesh: default `sharding.data_mesh()`.

    Returns:
      The final state, on all devices of the mesh.

    Raises:
      InputError: the settings, the batches or the workdir are not usable; nothing has been overwritten.
      DivergenceError: a loss or gradient is not finite; the message names the step, which is never saved.
      Preempted: SIGTERM or SIGINT was received; the state is saved.
    """
    if batches.batch_size != config.batch_size:
        raise InputError(f"training.batch_size is {config.batch_size}, but the batches have {batches.batch_size} rows")
    mesh = sharding.data_mesh() if mesh is None else mesh
    fields = {**states.identity(config, seed, name), **(identity or {})}
    with Checkpoints(workdir, fields, keep=config.keep) as checkpoints:
        run = _Run(task, batches, config, seed, name, mesh, checkpoints)
        if run.step < config.steps:
            with _Stop() as stop, _Log(run, Path(workdir), on_log) as log:
                run.go(stop, log, eval_fn)
        return run.state


class _Run:
    """The state of one call of `train` and the ways it changes."""

    def __init__(
        self,
        task: Task,
        batches: BatchSource,
        config: TrainConfig,
        seed: int,
        name: str,
        mesh: Mesh,
        checkpoints: Checkpoints,
    ) -> None:
        self.task, self.batches, self.config, self.name, self.mesh = task, batches, config, name, mesh
        self.checkpoints = checkpoints
        self.key_data = np.asarray(jax.random.key_data(rng.stream(seed, f"{name}.step")))
        optimizer = states.make_optimizer(config)
        first = {key: np.asarray(value) for key, value in batches.batch(0).items() if key != "mask"}
        for field, value in first.items():
            if value.shape[:1] != (config.batch_size,):
                # Every process gives the whole batch; its devices take their rows.
                raise InputError(f"batch field {field!r} has shape {value.shape}, expected {config.batch_size} rows")
        key = rng.stream(seed, f"{name}.init")

        def create(key: Array, batch: PyTree) -> TrainState:
            return states.create(task, optimizer, key, batch)

        template = jax.eval_shape(create, key, first)
        sums = dict.fromkeys(_metric_names(task, template.params, first, key, config.batch_size), 0.0)
        restored = checkpoints.restore(template)
        if restored is None:
            self.step, self.window = 0, 0
            state = jax.jit(create)(key, first)
        else:
            state = restored.state
            self.step, self.window = batches.check(restored.progress["data"]), restored.progress["window_steps"]
            if self.step != int(state.step):
                raise InputError(f"{checkpoints.folder}: data at step {self.step}, parameters at step {state.step}")
            sums = _same_names(restored.progress["window_sums"], sums, checkpoints.folder)
            _LOG.info("%s: going on after step %d", name, self.step)
        self.state: TrainState = sharding.put_replicated(state, mesh)
        self.totals = self._device_totals(sums)

    def _device_totals(self, sums: Mapping[str, float]) -> dict[str, Array]:
        return sharding.put_replicated({name: np.float32(value) for name, value in sums.items()}, self.mesh)

    def go(self, stop: _Stop, log: _Log, eval_fn: EvalFn | None) -> None:
        """Makes the remaining steps."""
        config, update = self.config, make_step(self.task, self.config, self.mesh)
        key_data = sharding.put_replicated(self.key_data, self.mesh)
        pending: collections.deque[tuple[int, Array]] = collections.deque()
        stopping, first = False, self.step
        while self.step < config.steps:
            rows = self._rows(self.batches.batch(self.step), stop.received)
            self.state, self.totals, signals = update(self.state, self.totals, key_data, *rows)
            pending.append((self.step, signals))
            self.step, self.window = self.step + 1, self.window + 1
            due_log = self.step % config.log_every == 0 or self.step == config.steps
            due_eval = eval_fn is not None and config.eval_every > 0 and self.step % config.eval_every == 0
            due_save = self.step % config.checkpoint_every == 0 or self.step == config.steps
            ahead = 0 if due_log or due_eval or due_save or self.step == first + 1 else _steps_ahead(self.mesh)
            stopping = self._read(pending, ahead) or stopping
            if self.step == first + 1:
                log.progress.started(self.step)
            log.progress.tick(self.step)
            if due_log:
                log.row(self.step, self._averages())
            if due_eval and eval_fn is not None:
                log.evaluation(self.step, eval_fn(self.state))
            if stopping and self.step < config.steps:
                self._read(pending, 0)
                self._save()
                self.checkpoints.wait()
                raise Preempted(self.name, self.step, stop.received)
            if due_save:
                self._save()
        self.checkpoints.wait()

    def _rows(self, batch: Batch, stop: int) -> tuple[PyTree, ...]:
        padded, mask = sharding.pad_batch(batch, self.mesh.size * self.config.micro_batches)
        asked = np.full(mask.shape, int(stop != 0), np.int32)
        return sharding.put_batch((padded, mask, asked), self.mesh)

    def _read(self, pending: collections.deque[tuple[int, Array]], ahead: int) -> bool:
        """Waits until at most ``ahead`` steps are under way; returns whether a process wants to stop.

        Every process reads the signals of the same steps, so all of them stop at the same one.
        """
        stopping = False
        while len(pending) > ahead:
            step, signals = pending.popleft()
            stop, bad = (int(v) for v in np.asarray(signals))
            if bad:
                raise DivergenceError(
                    f"training {self.name!r}: loss or gradient is not finite in step {step} (counted from 0); "
                    "try a smaller learning rate, or check the data of that batch"
                )
            stopping = stopping or stop != 0
        return stopping

    def _averages(self) -> dict[str, float]:
        row = {name: float(total) / self.window for name, total in self.totals.items()}
        self.totals, self.window = self._device_totals(dict.fromkeys(row, 0.0)), 0
        schedule = states.learning_rate_schedule(self.config)
        return {**row, "learning_rate": float(schedule(jnp.asarray(self.step - 1)))}

    def _save(self) -> None:
        sums = {name: float(total) for name, total in self.totals.items()}
        data = self.batches.state(self.step)
        self.checkpoints.save(self.state, {"data": data, "window_steps": self.window, "window_sums": sums})


def _same_names(found: dict[str, float], wanted: Mapping[str, float], folder: Path) -> dict[str, float]:
    if set(found) != set(wanted):
        raise InputError(f"{folder}: logs {sorted(found)}, this task logs {sorted(wanted)}; use another workdir")
    return found


def _metric_names(task: Task, params: PyTree, batch: PyTree, key: Array, size: int) -> list[str]:
    """Names of the logged sums; also checks what the task's loss returns, before anything is compiled."""
    losses, metrics = jax.eval_shape(task.loss, params, batch, key)
    rows = (size,)
    for name, value in {"loss": losses, **metrics}.items():
        if value.shape != rows:
            raise ValueError(f"task.loss must return per-example values of shape {rows}, {name!r} has {value.shape}")
    return ["loss", "grad_norm", *sorted(metrics)]


def _steps_ahead(mesh: Mesh) -> int:
    """Steps dispatched but not waited for: enough to hide the host's work, few enough to stop soon."""
    # Simulated CPU devices can deadlock when several steps with collectives are under way.
    simulated = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return 0 if simulated else 3


class _Log:
    """Rows of metrics on process 0, ``on_log`` on all."""

    def __init__(self, run: _Run, workdir: Path, on_log: OnLog | None) -> None:
        config, self._on_log = run.config, on_log
        self._main = jax.process_index() == 0
        self.progress = Progress(
            run.name, start=run.step, total=config.steps, batch_size=config.batch_size, silent=not self._main
        )
        self._writer = (
            MetricsWriter(workdir, resume_step=run.step, tensorboard=config.tensorboard) if self._main else None
        )

    def __enter__(self) -> _Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def row(self, step: int, values: dict[str, float]) -> None:
        self.progress.line(step, {"loss": values["loss"]})
        self._write(step, {**values, **self.progress.rates(step)})

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        named = {f"eval/{name}": float(value) for name, value in values.items()}
        self.progress.line(step, named)
        self._write(step, named)

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            self._writer.write(step, values)
        if self._on_log is not None:
            self._on_log(step, values)


class _Stop:
    """Notes SIGTERM and SIGINT; a second one has its usual effect. Signals are left alone outside the main thread."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._previous[number])
