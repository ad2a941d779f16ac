"""One side of one benchmark in a process of its own; started by `benchmarks.harness`.

Speaks lines of JSON on its standard output, marked so that a library's own output does no harm: once what was built,
then for every line of input ("seconds to run, at least") what was done; it ends with its input. A fault ends the
process with its traceback on standard error.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time

from benchmarks.job import Job

MARK = "benchmark> "


def say(value: dict[str, object]) -> None:
    """One answer."""
    print(MARK + json.dumps(value), flush=True)


def peak_bytes() -> int:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    module, name = sys.argv[1:]
    start, before = time.perf_counter(), peak_bytes()
    job: Job = importlib.import_module(module).JOBS[name]()
    job.run()
    facts = {**job.facts, "build_s": time.perf_counter() - start, "bytes_before": before}
    say({"facts": facts, "units": job.units, "flops": job.flops})
    for line in sys.stdin:
        least, calls, begin = float(line), 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < least or calls == 0:
            job.run()
            calls += 1
        say({"calls": calls, "seconds": elapsed, "peak_bytes": peak_bytes()})


if __name__ == "__main__":
    main()
