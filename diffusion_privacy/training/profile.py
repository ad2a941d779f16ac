"""A trace of some training steps, for TensorBoard's profiler, XProf or Perfetto."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType

import jax

from diffusion_privacy.types import PyTree

_LOG = logging.getLogger(__name__)
_SKIPPED = 2
"""Steps of this process before the trace: the first compiles, the second may still allocate."""


class Trace:
    """Traces steps ``first + 2`` to ``first + 1 + steps`` of a run into ``folder``. Use as a context manager.

    Args:
      folder: where `jax.profiler` writes ``plugins/profile/<date>``.
      first: the step at which this process begins.
      steps: how many to trace; 0 for none. Fewer are traced where training ends before.
    """

    def __init__(self, folder: Path, first: int, steps: int) -> None:
        self._folder, self._start, self._stop = folder, first + _SKIPPED, first + _SKIPPED + steps
        self._running = False

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def before(self, step: int, state: PyTree) -> None:
        """Call before each step with the state that it will change."""
        if step == self._start and self._start < self._stop:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif step == self._stop and self._running:
            # Steps are dispatched ahead; the trace is to hold them whole.
            jax.block_until_ready(state)
            self._end()

    def _end(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            _LOG.info("trace of training steps written to %s", self._folder)
