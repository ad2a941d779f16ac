"""Ours beside what people would use instead, in turn on this machine.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks [--only NAME …] [--rounds N] [--out FILE.json]

Every case builds both sides in processes of their own and lets them work in turn; a round is one turn of each, and its
ratio is our rate over the peer's: above 1 we are faster. Rounds in which other programs used more of the machine than
``--foreign`` are dropped. Printed are the median with its exact 95 % interval; the JSON holds every round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks import harness, load
from benchmarks.cases import CASES, SOLOS, Case, Solo
from benchmarks.harness import SCHEMA, Settings, Worker


def _solo(solo: Solo) -> dict[str, Any]:
    """A measurement without a peer, with the share of the machine that others used."""
    with Worker(solo.module, solo.job, program="benchmarks.solo") as worker:
        pids = [os.getpid(), worker.pid]
        before = load.snapshot(pids)
        said = worker.answer()
        share = load.foreign_share(before, load.snapshot(pids), os.cpu_count() or 1)
    return {"name": solo.name, "what": solo.what, "status": "done", "foreign": share, **said}


def measure(chosen: Case | Solo, settings: Settings) -> dict[str, Any]:
    """One benchmark; a fault is its result, with the traceback, so that the others still run."""
    try:
        return _solo(chosen) if isinstance(chosen, Solo) else harness.run_pair(chosen, settings)
    except (harness.WorkerError, ProcessLookupError):
        fault = traceback.format_exc()
        return {"name": chosen.name, "what": chosen.what, "status": "failed", "reason": fault}


def add_shares(results: list[dict[str, Any]]) -> None:
    """Puts the share of the measured matrix peak beside each case whose operations are counted."""
    peak = next((r["values"]["flops_per_s"] for r in results if r["name"] == "peak" and "values" in r), None)
    for result in results:
        sides, ratio = result.get("sides"), result.get("ratio")
        if peak is None or sides is None or ratio is None or sides["ours"]["flops"] is None or ratio["ours"] is None:
            continue
        result["share_of_peak"] = sides["ours"]["flops"] / sides["ours"]["units"] * ratio["ours"] / peak


def main() -> int:
    names = [c.name for c in (*SOLOS, *CASES)]
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=default.rounds, help="turns of each side")
    parser.add_argument("--turn", type=float, default=default.turn_seconds, help="seconds of a turn, at least")
    parser.add_argument("--case", type=float, default=default.case_seconds, help="no round begins later in a case")
    parser.add_argument("--foreign", type=float, default=default.most_foreign, help="share of others, 0 to 1")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"), help="file of the results")
    asked = parser.parse_args()
    settings = Settings(asked.rounds, asked.turn, asked.case, asked.foreign)
    fixed = {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "settings": vars(settings),
    }
    results: list[dict[str, Any]] = []
    for chosen in (*SOLOS, *CASES):
        if chosen.name not in asked.only:
            continue
        results.append(measure(chosen, settings))
        add_shares(results)
        asked.out.write_text(json.dumps({**fixed, "results": results}, indent=1) + "\n")
        print(harness.row(results[-1]), flush=True)
    return int(any(r["status"] == "failed" for r in results))


def _processor() -> str:
    """Its name, as Linux has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
