"""How much of the machine others used, from Linux's own accounts."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Seconds of processor time until now: of everything (``busy``) and of given processes (``own``)."""

    at: float
    busy: float
    own: float


def busy_ticks(stat: str) -> int:
    """Ticks in which any processor was not idle, from the text of /proc/stat; stolen time counts, waiting does not."""
    fields = [int(v) for v in stat.splitlines()[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = fields
    return user + nice + system + irq + softirq + steal


def process_ticks(stat: str) -> int:
    """Ticks of a process and of its children that have ended, from the text of /proc/PID/stat."""
    # The name may hold spaces and brackets; what follows its last bracket does not.
    fields = stat.rpartition(")")[2].split()
    return sum(int(v) for v in fields[11:15])


def snapshot(processes: Sequence[int]) -> Snapshot:
    """Now; ``processes`` are their numbers.

    Raises:
      ProcessLookupError: one of them is gone.
    """
    try:
        own = sum(process_ticks(Path(f"/proc/{pid}/stat").read_text()) for pid in processes)
    except FileNotFoundError as error:
        raise ProcessLookupError(f"a process of the benchmark ended: {error}") from error
    return Snapshot(time.perf_counter(), busy_ticks(Path("/proc/stat").read_text()) / _TICK, own / _TICK)


def foreign_share(before: Snapshot, after: Snapshot, processors: int) -> float:
    """Share of ``processors`` that others used between the two, 0 to 1; the accounts' grain may make it 0 too small."""
    capacity = (after.at - before.at) * processors
    return min(1.0, max(0.0, (after.busy - before.busy - (after.own - before.own)) / capacity))
