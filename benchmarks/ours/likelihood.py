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


def _tolerance() -> Job:
    config = LikelihoodConfig(
        solver="adaptive", rtol=shapes.TOLERANCE, atol=shapes.TOLERANCE, probes=1, max_steps=10_000
    )
    run = functools.partial(_bits, config)
    first = first_call(run)
    _, calls = run()
    return Job(run, shapes.LIKELIHOOD_IMAGES, None, {"first_call_s": first, "network_calls": float(calls.mean())})


_STEPS = {"rk4": (40, 50, 60, 80, 120), "adams": (48, 56, 64, 68, 72, 76, 80, 88, 96, 120)}


def _error() -> Job:
    """The faster of the solvers with their fewest steps within the wanted error of 320 steps of the Adams method."""
    exact, _ = _bits(LikelihoodConfig(solver="adams", steps=320, probes=1))
    tried: dict[str, dict[int, float]] = {solver: {} for solver in _STEPS}
    found: dict[str, tuple[LikelihoodConfig, float]] = {}
    for solver, counts in _STEPS.items():
        for steps in counts:
            config = LikelihoodConfig(solver=solver, steps=steps, probes=1)
            bits, calls = _bits(config)
            tried[solver][steps] = float(np.max(np.abs(bits - exact)))
            if tried[solver][steps] <= shapes.WANTED_ERROR:
                found[solver] = config, float(calls.mean())
                break
    if not found:
        raise ValueError(f"no number of steps within {shapes.WANTED_ERROR} bits/dim: {tried}")
    runs: dict[str, Callable[[], object]] = {s: functools.partial(_bits, c) for s, (c, _) in found.items()}
    solver, seconds = fastest(runs)
    config, count = found[solver]
    facts: dict[str, Any] = {"solver": solver, "steps": config.steps, "network_calls": count, "seconds": seconds}
    facts |= {"largest_error": tried[solver][config.steps], "tried": tried}
    return Job(runs[solver], shapes.LIKELIHOOD_IMAGES, None, facts)


JOBS: dict[str, Callable[[], Job]] = {"tolerance": _tolerance, "error": _error}
