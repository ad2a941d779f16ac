"""Time by kernel, read from a trace of JAX's profiler."""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def kernel_times(run: Callable[[], Any], most: int = 250) -> dict[str, Any]:
    """Seconds by kernel of what ``run`` starts, the ``most`` that take longest, and what all take together.

    On a GPU the lines of the streams are summed; elsewhere every line of every plane is listed apart.

    Raises:
      FileNotFoundError: the profiler wrote nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        if not files:
            raise FileNotFoundError("the profiler wrote no trace")
        data = jax.profiler.ProfileData.from_file(str(files[0]))
        planes = [plane for plane in data.planes if "GPU" in plane.name or "TPU" in plane.name] or list(data.planes)
        lines: dict[str, Any] = {}
        for plane in planes:
            for line in plane.lines:
                total: collections.Counter[str] = collections.Counter()
                count: collections.Counter[str] = collections.Counter()
                for event in line.events:
                    total[event.name] += event.duration_ns * 1e-9
                    count[event.name] += 1
                top = [{"kernel": n[:160], "seconds": s, "calls": count[n]} for n, s in total.most_common(most)]
                lines[f"{plane.name} | {line.name}"] = {"seconds": sum(total.values()), "top": top}
        longest = sorted(lines.items(), key=lambda pair: -pair[1]["seconds"])[:6]
        return {"lines": dict(longest)}
