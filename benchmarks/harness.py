"""Runs a benchmark: both sides in processes of their own, in turn, with the machine watched meanwhile."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Any

from benchmarks import load
from benchmarks.cases import Case
from benchmarks.paired import Ratio, Round, Window, compare
from benchmarks.worker import MARK

SCHEMA = 1
PAUSE = 0.3
"""Seconds between turns: threads of the side that has ended spin for a while before they sleep."""


class WorkerError(RuntimeError):
    """A side ended before it was asked to; the message holds the end of what it wrote."""


class Worker:
    """A side of a case: builds it at once, and runs it when told. Use as a context manager."""

    def __init__(self, module: str, name: str, program: str = "benchmarks.worker") -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed where the context ends
        self._process = subprocess.Popen(
            [sys.executable, "-m", program, module, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.pid = self._process.pid
        self._name = f"{module}: {name}"

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def answer(self) -> dict[str, Any]:
        """The next thing that it says; waits for it.

        Raises:
          WorkerError: it ended.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])
        code = self._process.wait()
        self._errors.seek(0)
        raise WorkerError(f"{self._name} ended with code {code}: {self._errors.read()[-2000:]}")

    def turn(self, seconds: float) -> dict[str, Any]:
        """Runs for at least ``seconds``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return self.answer()


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a case is measured.

    Attributes:
      rounds: turns of each side, at most.
      turn_seconds: length of a turn, at least; one call may take longer.
      case_seconds: no round begins later than this after the case did.
      most_foreign: rounds in which others used a larger share of the machine are dropped.
    """

    rounds: int = 12
    turn_seconds: float = 1.0
    case_seconds: float = 80.0
    most_foreign: float = 0.05


def missing(packages: tuple[str, ...]) -> list[str]:
    """Which of these cannot be imported."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _window(worker: Worker, pids: list[int], units: float, settings: Settings) -> tuple[Window, int]:
    time.sleep(PAUSE)
    before = load.snapshot(pids)
    said = worker.turn(settings.turn_seconds)
    share = load.foreign_share(before, load.snapshot(pids), os.cpu_count() or 1)
    return Window(units * said["calls"], said["seconds"], share), said["peak_bytes"]


def run_pair(case: Case, settings: Settings) -> dict[str, Any]:
    """Both sides of a case; without the peer's packages, ours alone with the reason.

    Raises:
      WorkerError: a side failed.
    """
    start = time.perf_counter()
    absent = missing(case.needs)
    result: dict[str, Any] = {"name": case.name, "what": case.what, "unit": case.unit, "goal": case.goal}
    result["peer"] = case.peer_name
    with Worker(case.ours, case.job) as ours:
        built = {"ours": ours.answer()}
        pids = [os.getpid(), ours.pid]
        if absent:
            window, peak = _window(ours, pids, built["ours"]["units"], settings)
            reason = f"not installed: {', '.join(absent)}; see benchmarks/requirements.txt"
            alone = {"rate": window.rate, "foreign": window.foreign, "peak_bytes": peak, **built["ours"]}
            return {**result, "status": "peer skipped", "reason": reason, "ours": alone}
        with Worker(case.peer, case.job) as peer:
            built["peer"] = peer.answer()
            pids.append(peer.pid)
            rounds, peaks = _rounds(ours, peer, built, pids, settings, start)
    ratio = compare(rounds, settings.most_foreign)
    sides = {side: {**built[side], "peak_bytes": peaks[side]} for side in built}
    return {
        **result,
        "status": "done" if ratio.median is not None else "machine too busy",
        "ratio": ratio.json(),
        "sides": sides,
        "rounds": [{**dataclasses.asdict(r), "ratio": r.ratio} for r in rounds],
        "wall_s": time.perf_counter() - start,
    }


def _rounds(
    ours: Worker, peer: Worker, built: dict[str, Any], pids: list[int], settings: Settings, start: float
) -> tuple[list[Round], dict[str, int]]:
    """Turns of both, the first one alternating."""
    rounds, peaks = [], {"ours": 0, "peer": 0}
    workers = {"ours": ours, "peer": peer}
    for i in range(settings.rounds):
        if i >= 2 and time.perf_counter() - start > settings.case_seconds:
            break
        turn = {}
        for side in ("ours", "peer") if i % 2 == 0 else ("peer", "ours"):
            turn[side], peaks[side] = _window(workers[side], pids, built[side]["units"], settings)
        rounds.append(Round(**turn))
    return rounds, peaks


def row(result: dict[str, Any]) -> str:
    """A line of the table."""
    if result["status"] in ("failed", "peer skipped"):
        return f"{result['name']:28s} {result['status']}: {str(result['reason']).splitlines()[-1][:120]}"
    if "ratio" not in result:
        text = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result["values"].items())
        return f"{result['name']:28s} {text}"
    ratio = Ratio(**result["ratio"])
    if ratio.median is None or ratio.ours is None or ratio.peer is None:
        return f"{result['name']:28s} machine too busy: all {ratio.dropped} rounds dropped"
    spread = "" if ratio.interval is None else f" [{ratio.interval[0]:.2f}, {ratio.interval[1]:.2f}]"
    goal = "" if result["goal"] is None else f"  goal {result['goal']:g}"
    share = result.get("share_of_peak")
    floor = "" if share is None else f"  {share:.0%} of the matrix peak"
    return (
        f"{result['name']:28s} {ratio.median:6.2f}x{spread:16s} ours {ratio.ours:9.4g} {result['unit']}/s, "
        f"{result['peer']} {ratio.peer:9.4g}; {ratio.kept} rounds, {ratio.dropped} dropped{goal}{floor}"
    )
