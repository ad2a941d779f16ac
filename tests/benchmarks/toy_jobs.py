"""Jobs of known speed for test_harness.py; a worker imports this module by name."""

from __future__ import annotations

import time

from benchmarks.job import Job

JOBS = {
    "slow": lambda: Job(lambda: time.sleep(0.04), 1.0, 5.0, {"parameters": 3}),
    "fault": lambda: 1 / 0,
}
