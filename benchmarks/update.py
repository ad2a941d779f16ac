"""A training step of the one loop, alone and with its data in place: what the benchmarks of training time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.training import partition, sharding, state, steps
from diffusion_privacy.training.state import TrainConfig
from diffusion_privacy.types import PyTree, Task


class Update:
    """One update of a state that it keeps.

    Attributes:
      program: the compiled or to be compiled step; may be replaced by what `lower` made.
      parameters: how many the task has.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        params: PyTree,
        rows: dict[str, np.ndarray],
        metrics: Sequence[str] = (),
        mesh: Mesh | None = None,
    ) -> None:
        """Puts numpy parameters and rows of one batch on the mesh, by default all devices."""
        mesh = mesh or sharding.data_mesh()
        layout = jax.eval_shape(state.make_optimizer(config).init, params)
        moments = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), layout)
        start = state.TrainState(np.zeros((), np.int32), params, params, moments)
        totals = {name: np.zeros((), np.float32) for name in ("loss", "grad_norm", *metrics)}
        parts = partition.of(start, config.sharding, mesh)
        count = len(next(iter(rows.values())))
        self._fixed = sharding.put_batch((rows, np.ones(count, np.float32), np.zeros(count, np.int32)), mesh)
        self._key = sharding.put_replicated(np.asarray(jax.random.key_data(jax.random.key(0))), mesh)
        self._moving = [parts.put(start), sharding.put_replicated(totals, mesh)]
        self.program: Callable[..., Any] = steps.make_step(task, config, mesh, parts)
        self.parameters = sum(p.size for p in jax.tree.leaves(params))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the program is called with next."""
        return (*self._moving, self._key, *self._fixed)

    def start(self) -> Any:
        """Starts one update; returns its sums of metrics and its signals, which may not be there yet."""
        self._moving[0], self._moving[1], signals = self.program(*self.arguments)
        return self._moving[1], signals

    def __call__(self) -> None:
        """One update, to its end.

        Raises:
          FloatingPointError: the loss or the gradient is not finite.
        """
        if np.asarray(self.start()[1])[1]:
            raise FloatingPointError("the loss or the gradient is not finite")
