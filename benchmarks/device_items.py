"""Items of `benchmarks.device_unet`: run in order in a process of their own, each recorded as it ends, failures too."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Item = Callable[["Sizes"], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
      small: a trial of the program and not a measurement.
      matrix: side of the square matrices whose product gives the peak.
      batch, large_batch: images of a step.
      sampled: images drawn together.
      steps: of a DDIM sample.
      groups: timed repetitions; the median counts.
      group_seconds: how long one lasts at least.
    """

    small: bool
    matrix: int
    batch: int
    large_batch: int
    sampled: int
    steps: int
    groups: int
    group_seconds: float


FULL = Sizes(False, 8192, 128, 512, 128, 50, 7, 0.4)
SMALL = Sizes(True, 256, 4, 8, 4, 3, 3, 0.01)


def timed(run: Callable[[], Any], wait: Callable[[Any], Any], sizes: Sizes) -> dict[str, Any]:
    """Seconds of a call: median, quartiles and all, of groups of calls that are waited for together.

    Args:
      run: starts one call and returns what to wait for.
      wait: blocks until everything that was started has ended.
      sizes: how many groups, and how long each.
    """
    for _ in range(3):
        wait(run())
    start = time.perf_counter()
    wait(run())
    once = time.perf_counter() - start
    inner = max(1, min(200, round(sizes.group_seconds / max(once, 1e-6))))
    seconds = []
    for _ in range(sizes.groups):
        start = time.perf_counter()
        last = None
        for _ in range(inner):
            last = run()
        wait(last)
        seconds.append((time.perf_counter() - start) / inner)
    low, _, high = statistics.quantiles(seconds, n=4)
    return {"seconds": statistics.median(seconds), "quartiles": [low, high], "all": seconds, "calls_a_group": inner}


def run_items(
    items: Mapping[str, Item], asked: list[str], lines: Path, deadline: float, side: str, sizes: Sizes
) -> None:
    """Runs the items named in ``asked`` and appends a line of JSON to ``lines`` for each, as soon as it is known.

    Args:
      items: all that this side has.
      asked: which, in this order.
      lines: the file.
      deadline: seconds since 1970; an item that would begin later is recorded as skipped.
      side: ``"ours"`` or ``"peer"``.
      sizes: of the items.
    """
    for name in asked:
        row: dict[str, Any] = {"name": name, "side": side}
        start = time.time()
        if start > deadline:
            row |= {"status": "skipped", "reason": "it would have begun after the time limit"}
        else:
            try:
                row |= {"status": "done", **items[name](sizes)}
            except Exception:
                # One item's fault must not cost the others: the machine is there once. The fault is in the result.
                row |= {"status": "failed", "traceback": traceback.format_exc()}
        row["wall_s"] = time.time() - start
        with lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{side}: {name}: {row['status']} in {row['wall_s']:.1f} s", flush=True)
