"""Noise of a release on latents of 784 numbers, clipping included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.job import Job
from benchmarks.shapes import NOISE_DIM, NOISE_ROWS
from diffusion_privacy.mechanisms.discrete import DiscreteGaussian, grid_step
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism, Mechanism
from diffusion_privacy.mechanisms.release import noised


def _job(mechanism: Mechanism, rows: int) -> Job:
    z = np.random.default_rng(0).standard_normal((rows, NOISE_DIM), np.float32)
    return Job(lambda: noised(mechanism, z), rows * NOISE_DIM, None, {"arithmetic": mechanism.arithmetic})


def _short() -> Job:
    return _job(GaussianMechanism(clip_norm=28.0, sigma=1.0), NOISE_ROWS)


def _exact() -> Job:
    step = grid_step(1.0)
    return _job(DiscreteGaussian(28.0, step, round(1.0 / step)), 32)


JOBS: dict[str, Callable[[], Job]] = {"opendp": _short, "opendp_exact": _exact, "diffprivlib": _short}
