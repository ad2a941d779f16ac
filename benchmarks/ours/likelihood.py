"""Likelihood by the probability flow, one Hutchinson probe, images of 16x16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import pairs, shapes
from benchmarks.job import Job, fastest, first_call
from diffusion_privacy.diffusion.likelihood import Likelihood, LikelihoodConfig, log_likelihood
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.tasks import ScoreTask
from diffusion_privacy.training import sharding
from diffusion_privacy.training.sharding import REPLICATED, SHARDED
from diffusion_privacy.types import Array

PAIR = pairs.LIKELIHOOD
SDE = VP()


@functools.cache
def _program(config: LikelihoodConfig) -> Callable[..., Likelihood]:
    task = ScoreTask(PAIR.network(), SDE, shapes.LIKELIHOOD_IMAGES)

    def likelihood(params: Any, x: Array, keys: Array) -> Likelihood:
        return log_likelihood(task.score(params), SDE, x, jax.vmap(jax.random.wrap_key_data)(keys), config)

    mesh = sharding.data_mesh()
    return sharding.data_parallel(likelihood, mesh, in_specs=(REPLICATED, SHARDED, SHARDED), out_specs=SHARDED)


@functools.cache
def _inputs() -> tuple[Any, Any, Any]:
    mesh, count = sharding.data_mesh(), shapes.LIKELIHOOD_IMAGES
    params = sharding.put_replicated(pairs.mild_params(PAIR.network(), PAIR.shape), mesh)
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(3), count)))
    x, keys = sharding.put_batch((shapes.images(count, PAIR.shape)[0], keys), mesh)
    return params, x, keys


def _bits(config: LikelihoodConfig) -> tuple[np.ndarray, np.ndarray]:
    """(bits per dimension without the grey levels' constant, network calls), each ``[B]``."""
    found = _program(config)(*_inputs())
    return -np.asarray(found.nats) / np.prod(PAIR.shape) / np.log(2), np.asarray(found.network_calls)


def _exact() -> np.ndarray:
    return _bits(LikelihoodConfig(solver="adams", steps=320, probes=1))[0]


def _adaptive(solver: str, tolerance: float) -> LikelihoodConfig:
    return LikelihoodConfig(solver=solver, rtol=tolerance, atol=tolerance, probes=1, max_steps=10_000)


def _tolerance() -> Job:
    """The faster of the adaptive solvers at the tolerance, with the largest error of both."""
    exact = _exact()
    configs = {solver: _adaptive(solver, shapes.TOLERANCE) for solver in ("adaptive", "adaptive_adams")}
    runs: dict[str, Callable[[], object]] = {s: functools.partial(_bits, c) for s, c in configs.items()}
    first = {solver: first_call(run) for solver, run in runs.items()}
    found = {solver: _bits(config) for solver, config in configs.items()}
    solver, seconds = fastest(runs)
    facts: dict[str, Any] = {"solver": solver, "seconds": seconds, "first_call_s": first[solver]}
    facts["network_calls"] = {s: float(calls.mean()) for s, (_, calls) in found.items()}
    facts["largest_error"] = {s: float(np.max(np.abs(bits - exact))) for s, (bits, _) in found.items()}
    return Job(runs[solver], shapes.LIKELIHOOD_IMAGES, None, facts)


_STEPS = {"rk4": (40, 50, 60, 80, 120), "adams": (48, 56, 64, 68, 72, 76, 80, 88, 96, 120)}
_TOLERANCES = (3e-5, 2e-5, 1.5e-5, 1e-5, 7e-6, 5e-6, 3e-6)
_CANDIDATES = {
    **{s: [LikelihoodConfig(solver=s, steps=n, probes=1) for n in counts] for s, counts in _STEPS.items()},
    "adaptive_adams": [_adaptive("adaptive_adams", tolerance) for tolerance in _TOLERANCES],
}


def _error() -> Job:
    """The fastest of the solvers with their fewest steps within the wanted error of 320 steps of the Adams method."""
    exact = _exact()
    tried: dict[str, dict[str, float]] = {solver: {} for solver in _CANDIDATES}
    found: dict[str, tuple[LikelihoodConfig, float, float]] = {}
    for solver, configs in _CANDIDATES.items():
        for config in configs:
            bits, calls = _bits(config)
            error = float(np.max(np.abs(bits - exact)))
            tried[solver][f"{config.rtol:g}" if "adaptive" in solver else str(config.steps)] = error
            if error <= shapes.WANTED_ERROR:
                found[solver] = config, float(calls.mean()), error
                break
    if not found:
        raise ValueError(f"no number of steps within {shapes.WANTED_ERROR} bits/dim: {tried}")
    runs: dict[str, Callable[[], object]] = {s: functools.partial(_bits, c) for s, (c, _, _) in found.items()}
    solver, seconds = fastest(runs)
    config, count, error = found[solver]
    facts: dict[str, Any] = {"solver": solver, "steps": config.steps, "rtol": config.rtol, "network_calls": count}
    facts |= {"seconds": seconds, "largest_error": error, "tried": tried}
    return Job(runs[solver], shapes.LIKELIHOOD_IMAGES, None, facts)


JOBS: dict[str, Callable[[], Job]] = {"tolerance": _tolerance, "error": _error}
