"""The audit of one record and of 64 by the project's own estimators, checked against the truth every time it runs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import audit, pairs
from benchmarks.audit_setting import MANY, ONE, Setting, check_brackets, check_rates
from benchmarks.job import Job

_CHUNK = 8
"""Lanes a device takes at a time; with 64, bisection of 64 records waits for its longest lanes twice as long."""


def _job(setting: Setting, *, rates: bool) -> Job:
    known = audit.truth(setting)
    # Of held-out records the grid decides the lowest level, whose bracket has a width of 1.
    width = known.width if setting.leaked == setting.records else 1
    run = audit.Audit(setting, audit.score(setting, pairs.AUDIT), width, _CHUNK, rates)
    facts: dict[str, Any] = {"parameters": pairs.AUDIT.parameters, "devices": jax.device_count(), "chunk": _CHUNK}
    facts |= {"asked_width": width, "grid_width": known.width, "asked_log_width": setting.log_width, "seconds": []}

    def once() -> None:
        begin = time.perf_counter()
        said, calls = run()
        facts["seconds"].append(time.perf_counter() - begin)
        check_brackets(setting, said, known, known.width)
        if rates:
            check_rates(setting, said, setting.log_width)
            facts["log_width"] = {r: float(np.log(upper / lower)) for r, (lower, upper) in said.rates.items()}
        facts["network_calls"] = calls
        facts["t_prime"] = [said.lower[: setting.leaked].tolist(), said.upper[: setting.leaked].tolist()]

    return Job(once, 1.0, None, facts)


JOBS: dict[str, Callable[[], Job]] = {
    "one": functools.partial(_job, ONE, rates=True),
    "64": functools.partial(_job, MANY, rates=True),
    "one_t": functools.partial(_job, ONE, rates=False),
    "64_t": functools.partial(_job, MANY, rates=False),
}
