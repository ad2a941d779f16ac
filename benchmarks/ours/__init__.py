"""This project's side of the benchmarks. Every module has ``JOBS``, a function for each name that makes a `job.Job`."""

from __future__ import annotations

import os

import jax

# As launch.py does: one device a core, so that rows can be shared among them.
jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
