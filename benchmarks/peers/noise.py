"""Gaussian noise by OpenDP and diffprivlib; they add noise alone, without clipping."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.job import Job
from benchmarks.shapes import NOISE_DIM


def _opendp() -> Job:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)
    measure = dp.m.make_gaussian(*space, scale=1.0)
    values = [float(v) for v in np.random.default_rng(0).standard_normal(8 * NOISE_DIM)]
    return Job(lambda: measure(values), len(values))


def _diffprivlib() -> Job:
    from diffprivlib.mechanisms import GaussianAnalytic

    mechanism = GaussianAnalytic(epsilon=1.0, delta=1e-5, sensitivity=1.0)
    values = [float(v) for v in np.random.default_rng(0).standard_normal(NOISE_DIM)]
    return Job(lambda: [mechanism.randomise(v) for v in values], len(values))


JOBS: dict[str, Callable[[], Job]] = {"opendp": _opendp, "opendp_exact": _opendp, "diffprivlib": _diffprivlib}
