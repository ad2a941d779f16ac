"""What one side of a benchmark is: something to run again and again, and what is to be known of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Job:
    """Built once, run many times.

    Attributes:
      run: does it once and waits for the end.
      units: done by one call.
      flops: floating-point operations of one call; None where they are not counted.
      facts: for the record: parameters, sizes, seconds of compilation, which setting was fastest.
    """

    run: Callable[[], object]
    units: float
    flops: float | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def first_call(run: Callable[[], object]) -> float:
    """Seconds of a call; of the first one, compilation included."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fastest(candidates: dict[str, Callable[[], object]], calls: int = 2) -> tuple[str, dict[str, float]]:
    """(name of the fastest, seconds of a call of each): one call to warm up, then the best of ``calls``."""
    seconds = {}
    for name, run in candidates.items():
        run()
        seconds[name] = min(first_call(run) for _ in range(calls))
    return min(seconds, key=lambda name: seconds[name]), seconds
