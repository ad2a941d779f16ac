"""The one training loop. It owns devices, averaging, clipping, checkpoints, metrics, progress and interruption; a
task owns only its mathematics.

The step: each device computes Σᵢ lossᵢ maskᵢ / N over its rows, N being the real examples of the whole batch;
gradients are summed over devices, clipped by their global norm, and every device makes the same update. How many
devices there are changes the result by rounding only. With ``config.privacy`` on the step is another one, that of
`private_step`; everything else is the same.
"""

from __future__ import annotations

import collections
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.errors import DivergenceError, InputError
from diffusion_privacy.training import partition, privacy, private_step, rng, sharding
from diffusion_privacy.training import secret as secrets
from diffusion_privacy.training import state as states
from diffusion_privacy.training.checkpoint import Checkpoints
from diffusion_privacy.training.metrics import MetricsWriter, Progress
from diffusion_privacy.training.privacy import Plan
from diffusion_privacy.training.private_step import PrivateSteps
from diffusion_privacy.training.profile import Trace
from diffusion_privacy.training.programs import kept
from diffusion_privacy.training.state import TrainConfig, TrainState
from diffusion_privacy.training.steps import BatchSource, Engine, PlainSteps, metric_names
from diffusion_privacy.types import Array, PyTree, Task

__all__ = ["BatchSource", "Preempted", "TrainConfig", "TrainState", "train"]

_LOG = logging.getLogger(__name__)

OnLog = Callable[[int, dict[str, float]], None]
EvalFn = Callable[[TrainState], Mapping[str, float | np.ndarray]]
Pay = Callable[[Path, Plan, str], None]
"""``(workdir, plan, fingerprint of the secret)`` of a private run, see `train`."""


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
    profile: int = 0,
    pay: Pay | None = None,
) -> TrainState:
    """Trains to ``config.steps``, going on from the latest checkpoint in ``workdir``; no work when it is finished.

    Writes ``workdir/checkpoints``, ``workdir/metrics.csv`` (one row every ``log_every`` steps: averages over them) and
    ``workdir/tensorboard``. A resumed run computes what an uninterrupted one would have, bit for bit on CPU. Runs of
    equal tasks and settings share compiled programs; who redefines a function that a task calls, without changing the
    task, calls `programs.forget` first.

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
      eval_fn: called every ``eval_every`` steps with the state; its numbers are logged as ``eval/<name>``, its pictures
        (``uint8[H, W, 1 or 3]``) go to TensorBoard under their names.
      mesh: default `sharding.data_mesh()`.
      profile: so many steps, from the third of this process on, are traced into ``workdir/profile``.
      pay: of a private run: called on the first process before a step is made, and again whenever the run goes on or is
        found finished, so it must know a fingerprint again. What it raises ends the call, and nothing is trained.

    Returns:
      The final state, on all devices of the mesh; split over them where ``config.sharding`` says so.

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
            engine = run.engine(Path(workdir), fields, pay)
            trace = Trace(Path(workdir).absolute() / "profile", run.step, profile)
            with _Stop() as stop, _Log(run, Path(workdir), on_log) as log, trace:
                run.go(engine, stop, log, eval_fn, trace)
        elif run.spent is not None:
            _pay(pay, Path(workdir), privacy.from_json(run.spent), run.spent["secret_fingerprint"])
        if config.privacy.on:
            secrets.erase(Path(workdir))
        return run.state


def _pay(pay: Pay | None, workdir: Path, plan: Plan, fingerprint: str) -> None:
    if pay is not None:
        sharding.once(lambda: pay(workdir, plan, fingerprint), "payment for a private run")


@kept
def _creation(task: Task, config: TrainConfig) -> Callable[[Array, PyTree], TrainState]:
    optimizer = states.make_optimizer(config)
    program = jax.jit(lambda key, batch: states.create(task, optimizer, key, batch))
    return cast(Callable[[Array, PyTree], TrainState], program)


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
        self.spent: Mapping[str, Any] | None = None
        first = {key: np.asarray(value) for key, value in batches.batch(0).items() if key != "mask"}
        for field, value in first.items():
            if value.shape[:1] != (config.batch_size,):
                # Every process gives the whole batch; its devices take their rows.
                raise InputError(f"batch field {field!r} has shape {value.shape}, expected {config.batch_size} rows")
        if config.privacy.on:
            # Initialisation may look at shapes, not at a private record.
            first = {key: np.zeros_like(value) for key, value in first.items()}
        key = rng.stream(seed, f"{name}.init")
        create = _creation(task, config)
        template = jax.eval_shape(create, key, first)
        names = metric_names(task, template.params, first, key, config.batch_size)
        sums = dict.fromkeys([*names, *private_step.EXTRA] if config.privacy.on else names, 0.0)
        self.parts = partition.of(template, config.sharding, mesh)
        restored = checkpoints.restore(template)
        if restored is None:
            self.step, self.window = 0, 0
            state = self._created(create, key, first)
        else:
            state = restored.state
            self.step, self.window = batches.check(restored.progress["data"]), restored.progress["window_steps"]
            if self.step != int(state.step):
                raise InputError(f"{checkpoints.folder}: data at step {self.step}, parameters at step {state.step}")
            sums = _same_names(restored.progress["window_sums"], sums, checkpoints.folder)
            self.spent = restored.progress["privacy"] if config.privacy.on else None
            _LOG.info("%s: going on after step %d", name, self.step)
        self.state: TrainState = state if self.parts.split and restored is None else self.parts.put(state)
        self.totals = self._device_totals(sums)

    def _created(self, create: Callable[[Array, PyTree], TrainState], key: Array, batch: PyTree) -> TrainState:
        if not self.parts.split:
            return create(key, batch)
        # No device may be asked to hold all of it, not even at the start.
        data, law = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
        return self.parts.create(
            lambda words, rows: create(jax.random.wrap_key_data(words, impl=law), rows), data, batch
        )

    def _device_totals(self, sums: Mapping[str, float]) -> dict[str, Array]:
        return sharding.put_replicated({name: np.float32(value) for name, value in sums.items()}, self.mesh)

    def engine(self, workdir: Path, fields: Mapping[str, object], pay: Pay | None) -> Engine:
        """What makes the steps; a private run gets its secret here, and is paid for by it."""
        if not self.config.privacy.on:
            return PlainSteps(self.task, self.batches, self.config, self.parts, self.key_data)
        source = private_step.require_source(self.batches)
        plan = private_step.make_plan(self.config, source, self.spent)
        # Other settings or other records must never meet the same noise.
        context = {"fields": dict(fields), "data": self.batches.state(0)}
        fingerprint = None if self.spent is None else self.spent["secret_fingerprint"]
        secret = secrets.obtain(workdir, context, fingerprint)
        _pay(pay, workdir, plan, secret.fingerprint)
        _LOG.info("%s: private, noise multiplier %.4g, %s", self.name, plan.noise_multiplier, plan.describe())
        return PrivateSteps(
            self.task, source, self.config, self.mesh, self.key_data, plan, secret, self.state.params, list(self.totals)
        )

    def go(self, engine: Engine, stop: _Stop, log: _Log, eval_fn: EvalFn | None, trace: Trace) -> None:
        """Makes the remaining steps."""
        config = self.config
        pending: collections.deque[tuple[int, Array]] = collections.deque()
        stopping, first = False, self.step
        while self.step < config.steps:
            trace.before(self.step, self.state)
            self.state, self.totals, signals = engine.advance(self.state, self.totals, self.step, stop.received)
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
                log.row(self.step, {**self._averages(), **engine.describe(self.step)})
            if due_eval and eval_fn is not None:
                log.evaluation(self.step, eval_fn(self.state))
            if stopping and self.step < config.steps:
                self._read(pending, 0)
                self._save(engine)
                self.checkpoints.wait()
                raise Preempted(self.name, self.step, stop.received)
            if due_save:
                self._save(engine)
        self.checkpoints.wait()

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

    def _save(self, engine: Engine) -> None:
        sums = {name: float(total) for name, total in self.totals.items()}
        progress = {"data": self.batches.state(self.step), "window_steps": self.window, "window_sums": sums}
        self.checkpoints.save(self.state, {**progress, **engine.progress(self.step)})


def _same_names(found: dict[str, float], wanted: Mapping[str, float], folder: Path) -> dict[str, float]:
    if set(found) != set(wanted):
        raise InputError(f"{folder}: logs {sorted(found)}, this task logs {sorted(wanted)}; use another workdir")
    return found


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

    def evaluation(self, step: int, values: Mapping[str, float | np.ndarray]) -> None:
        named = {f"eval/{name}": float(value) for name, value in values.items() if np.ndim(value) == 0}
        self.progress.line(step, named)
        if self._writer is not None:
            for name, pixels in values.items():
                if isinstance(pixels, np.ndarray) and pixels.ndim > 0:
                    self._writer.picture(step, name, pixels)
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
