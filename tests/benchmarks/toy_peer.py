"""The other side of toy_jobs.py: half as many units in the same time; and a side that ends while it runs."""

from __future__ import annotations

import os
import time

from benchmarks.job import Job

JOBS = {
    "slow": lambda: Job(lambda: time.sleep(0.04), 0.5),
    "fault": lambda: Job(lambda: os._exit(3), 1.0),
}
